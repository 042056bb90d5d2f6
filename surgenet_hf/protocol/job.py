"""Job of submitit that runs one cell. It is pickled with its code, because importing the package takes seconds."""

import psutil
from submitit.helpers import CommandFunction, DelayedSubmission

GRACE_SECONDS = 60  # submitit asks Slurm for a signal 90 seconds before the time limit


class CellJob(CommandFunction):
    """Command of a cell. At the time limit of Slurm, the cell saves a checkpoint, and the job is queued again."""

    def checkpoint(self) -> DelayedSubmission:
        """End the command with SIGTERM, wait for it, and return the job that continues it."""
        processes = psutil.Process().children()
        for process in processes:
            process.terminate()
        psutil.wait_procs(processes, timeout=GRACE_SECONDS)
        return DelayedSubmission(self)
