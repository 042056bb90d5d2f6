"""Runs of fine-tuning commands in other processes, see `tests.processes`."""

import os
from contextlib import redirect_stdout
from pathlib import Path

from surgenet_hf.cli.finetune_segmentation import main


def finetune_segmentation(argv: list[str], folder: Path) -> None:
    """Run the command, and write what it prints to `RANK.txt`."""
    with open(folder / f"{os.environ['RANK']}.txt", "w") as file, redirect_stdout(file):
        main(argv)
