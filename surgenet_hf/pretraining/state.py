"""Checkpoints of a pretraining run: Accelerate states, written whole or not at all, and what is needed to go on."""

import json
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from ..files import sync_folder
from .method import DinoModel

RECORD = "pretraining.json"  # what a run is, beside Accelerate's files
WEIGHTS = "model.safetensors"


def register_model(accelerator: Accelerator, model: DinoModel):
    """Let Accelerate save and load student, teacher and centre as one file, whatever wraps the student."""

    def save(models, weights, output_dir):
        weights.clear()  # of the wrapped student: its names depend on the number of processes
        if accelerator.is_main_process:
            save_model(model, os.path.join(output_dir, WEIGHTS))

    def load(models, input_dir):
        models.clear()
        load_model(model, os.path.join(input_dir, WEIGHTS))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, record: dict, keep: int) -> Path:
    """Write `checkpoint-STEP`, under another name until it is whole; then delete all but the last `keep`.

    Checkpoints of later steps are deleted, too: they are of a run that was resumed from before them, or with another
    number of processes and other steps, and would be mistaken for the newest. Several nodes need an `output_dir` that
    they share.

    Args:
        record: goes into the checkpoint as JSON, see `read_record`.

    Raises:
        OSError: it could not be written, e.g. for want of room; earlier ones are as they were.
    """
    folder, temporary = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}"
    if accelerator.is_main_process:
        for leftover in output_dir.glob(".checkpoint-*"):  # of a run that was killed
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except (OSError, RuntimeError, SafetensorError) as error:  # full disks come as any of them
        shutil.rmtree(temporary, ignore_errors=True)
        last = [None, *list_checkpoints(output_dir)][-1]
        raise OSError(
            f"{folder} could not be written ({error}). The last whole checkpoint is {last or 'none'}. Make room, and "
            "go on with --resume_from_checkpoint true"
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)  # of the same step, from a run that went on from before it
        temporary.replace(folder)
        checkpoints = list_checkpoints(output_dir)
        end = checkpoints.index(folder) + 1
        for old in checkpoints[end:] + checkpoints[:end][:-keep]:
            # half deleted, a later one must not be taken for the last
            shutil.rmtree(old.replace(old.with_name(f".{old.name}")))
    accelerator.wait_for_everyone()
    return folder


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a folder by their steps; others than `checkpoint-STEP` by name do not count."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output_dir.glob("checkpoint-*")}
    return sorted(filter(steps.get, steps), key=lambda path: int(steps[path][1]))


def read_record(folder: Path) -> dict:
    """What `save_checkpoint` recorded.

    Raises:
        FileNotFoundError: the folder is no checkpoint of a pretraining run.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no checkpoint of a pretraining run: it holds no {RECORD}. Give the folder checkpoint-STEP "
            "of a run, or the authors' full DINO checkpoint as a .pth file"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def resume_point(output_dir: Path, asked: str | None) -> Path | None:
    """What to go on from: a checkpoint's folder, a `.pth` file, or None for a new run.

    Args:
        asked: --resume_from_checkpoint: a path, or "true" for the last checkpoint in `output_dir`.

    Raises:
        ValueError: there is a checkpoint in `output_dir`, and nobody asked to go on from it.
        FileNotFoundError: there is no such path.
    """
    last = list_checkpoints(output_dir)
    if asked is None or asked.lower() == "false":
        if last:
            raise ValueError(
                f"{last[-1]} is from an earlier run: go on from it with --resume_from_checkpoint true, or name "
                "another --output_dir"
            )
        return None
    if asked.lower() == "true":
        return last[-1] if last else None
    path = Path(asked)
    if not path.exists():
        raise FileNotFoundError(f"--resume_from_checkpoint {asked}: there is no such file or folder")
    if last and path.resolve() not in [checkpoint.resolve() for checkpoint in last]:
        raise ValueError(
            f"{output_dir} holds {last[-1].name} of another run: go on from that with --resume_from_checkpoint true, "
            "or name another --output_dir"
        )
    return path
