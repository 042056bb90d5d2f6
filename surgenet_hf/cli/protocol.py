"""Train and evaluate several models on several datasets under one protocol, and report the results.

  surgenet protocol run surgenetxl --data_root data --output_dir outputs/surgenetxl --dry_run
  surgenet protocol run surgenetxl --data_root data --output_dir outputs/surgenetxl
  surgenet protocol run my_protocol.yaml --data_root data --output_dir outputs/mine --cluster slurm \\
      --slurm partition=gpu time=1440
  surgenet protocol report outputs/surgenetxl

Each cell is one model on one dataset with one seed, in its own process and folder. To resume a run that was killed,
repeat the command. A cell that failed does not stop the others.
"""

import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from ..errors import UserError
from ..options import option
from .arguments import ArgumentParser, command

ACTIONS = ("run", "report")


@dataclass
class RunArguments:
    """Arguments of `surgenet protocol run`."""

    protocol: str = option(
        MISSING, "Name of a shipped protocol (surgenetxl, open, quick, quick-endoscapes), or a YAML file."
    )
    output_dir: str = option(MISSING, "Folder for the protocol, its cells, and the report.")
    data_root: str = option(".", "Folder that contains the folders of the datasets, by their names.")
    dry_run: bool = option(False, "Whether to list the cells and to time a few steps, instead of running.")
    retry_failed: bool = option(False, "Whether to compute cells again that failed in an earlier call.")
    cluster: str = option("local", "Where the cells run.", choices=["local", "slurm"])
    jobs: int | None = option(
        None, "Number of cells at a time. Default: one per GPU, or one without GPUs; on Slurm all."
    )
    gpus: int | None = option(
        None, "Number of GPUs of a cell, with torchrun for several. Default: 1 if there are any."
    )
    slurm: list[str] | None = option(None, "Options of Slurm as KEY=VALUE, e.g. partition=gpu time=1440 (minutes).")


@dataclass
class ReportArguments:
    """Arguments of `surgenet protocol report`."""

    output_dir: str = option(MISSING, "Output folder of `surgenet protocol run`.")


@command
def main(argv: list[str] | None = None) -> None:
    """Run `surgenet protocol run` or `surgenet protocol report`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    action = argv.pop(0) if argv and argv[0] in ACTIONS else None
    if action is None:
        parser = ArgumentParser(RunArguments, prog="surgenet protocol run", description=__doc__)
        if argv[:1] in (["-h"], ["--help"]):
            parser.parse_args_into_dataclasses(argv)  # prints the help and exits
        parser.error(f"expected {' or '.join(ACTIONS)} first, got {argv[0] if argv else 'nothing'}")
    names = ["protocol"] if action == "run" else ["output_dir"]
    positional = [f"--{name}={argv.pop(0)}" for name in names if argv and not argv[0].startswith("-")]
    kind = RunArguments if action == "run" else ReportArguments
    parser = ArgumentParser(kind, prog=f"surgenet protocol {action}", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses([*positional, *argv])
    (run if action == "run" else report)(args)


def run(args: RunArguments) -> None:
    """Run the cells of a protocol that are not done."""
    from ..checkpointing import check_output_dir, lock_run
    from ..protocol.cells import cell_folder, cell_state, cells_of, read_failure
    from ..protocol.definition import read_protocol
    from ..protocol.execute import Resources, check_resources, execute, prepare_model
    from ..protocol.run_cell import LOG, remove_checkpoints
    from ..protocol.storage import check_cells, check_name, store_protocol

    protocol = read_protocol(args.protocol)
    output_dir = check_output_dir(args.output_dir).absolute()
    data_root = Path(args.data_root).expanduser().absolute()
    resources = Resources(args.cluster, args.jobs, args.gpus, parse_slurm(args.slurm))
    check_resources(resources)
    check_name(protocol, output_dir)
    cells = list(cells_of(protocol))
    states = {cell.name: cell_state(output_dir, cell) for cell in cells}
    check_cells([cell for cell in cells if states[cell.name] in ("done", "started")], protocol, output_dir)
    if args.dry_run:
        dry_run(protocol, cells, states, data_root, resources)
        return
    with lock_run(output_dir):
        for entry in protocol.models:
            prepare_model(entry, output_dir)
        store_protocol(protocol, output_dir)  # not before the models, which can be wrong
        for cell in cells:
            if states[cell.name] == "done":  # a killed cell may have left some
                remove_checkpoints(cell_folder(output_dir, cell))
        skipped = () if args.retry_failed else ("failed",)
        left = [cell for cell in cells if states[cell.name] not in ("done", *skipped)]
        print(f"{len(cells)} cells, {len(left)} to compute")

        def show(cell, state: str) -> None:
            print(f"{state}: {cell.name}", flush=True)

        execute(protocol, left, data_root, output_dir, resources, show)
    left = [cell for cell in cells if cell_state(output_dir, cell) != "done"]
    print(f"{len(cells) - len(left)} of {len(cells)} cells are done")
    print(f"`surgenet protocol report {args.output_dir}` shows their results")
    if left:
        lines = []
        for cell in left:
            folder = cell_folder(output_dir, cell)
            state = cell_state(output_dir, cell)
            if state == "new":
                lines.append(f"{cell.name}: not started")
                continue
            reason = read_failure(folder)["message"] if state == "failed" else "its job ended without a result"
            lines += [f"{cell.name}: {reason}", f"  log: {folder}-{LOG}"]
        advice = "repeat the command, with --retry_failed for those that failed"
        sys.exit("\n".join([f"error: {len(left)} cells are not done; {advice}:", *lines]))


def dry_run(protocol, cells, states: dict[str, str], data_root: Path, resources) -> None:
    """List the cells, and estimate their training time from a few steps of each kind of training."""
    import logging
    import tempfile

    from ..finetuning.trainer import format_duration
    from ..protocol.estimate import estimate_hours

    logging.getLogger("surgenet_hf").setLevel(logging.WARNING)  # the messages of the trainings are of no interest
    with tempfile.TemporaryDirectory() as folder:
        hours = estimate_hours(protocol, cells, data_root, Path(folder), resources)
    total = 0.0
    for cell in cells:
        estimate = hours[cell.name]
        total += 0.0 if states[cell.name] == "done" or estimate is None else estimate
        text = "no training" if estimate is None else format_duration(3600 * estimate)
        print(f"{states[cell.name]:<8} {text:>12}  {cell.name}")
    print(
        f"{len(cells)} cells. Training of those that are not done: about {format_duration(3600 * total)} on this "
        "machine, one cell at a time. Not included: probes, evaluations, checkpoints, loading of models and data, and "
        "stage 2 of phase recognition"
    )


def report(args: ReportArguments) -> None:
    """Write tables and figures of the cells that are done."""
    from ..protocol.storage import stored_protocol
    from ..protocol.summary import write_report
    from .compare import draw_charts

    output_dir = Path(args.output_dir)
    found = write_report(stored_protocol(output_dir), output_dir, draw_charts)
    print(found.text)
    print("Written\n" + "\n".join(f"  {path}" for path in found.files))
    if found.omitted:
        print("Omitted\n" + "\n".join(f"  {reason}" for reason in found.omitted))


def parse_slurm(entries: list[str] | None) -> dict[str, str | int]:
    """Return KEY=VALUE entries as options of submitit.

    Raises:
        UserError: an entry has another form.
    """
    found: dict[str, str | int] = {}
    for entry in entries or []:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise UserError(f"--slurm takes KEY=VALUE, got {entry!r}; for example partition=gpu")
        found[key] = int(value) if value.isdigit() else value
    return found


if __name__ == "__main__":
    main()
