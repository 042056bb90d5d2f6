"""Checkpoints of a pretraining run: Accelerate states with the record of the run."""

import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from ..checkpointing import (
    delete_checkpoint,
    delete_later_checkpoints,
    delete_old_checkpoints,
    list_checkpoints,
    write_record,
)
from ..errors import UnavailableError
from .dino.method import DinoModel

WEIGHTS = "model.safetensors"


def register_model(accelerator: Accelerator, model: DinoModel) -> None:
    """Make Accelerate save and load student, teacher, and center as one file, whether or not it wraps the student."""

    def save(models, weights, output_dir):
        weights.clear()  # their names would depend on whether Accelerate wraps the student
        if accelerator.is_main_process:
            save_model(model, os.path.join(output_dir, WEIGHTS))

    def load(models, input_dir):
        models.clear()
        load_model(model, os.path.join(input_dir, WEIGHTS))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, record: dict, keep: int) -> Path:
    """Write `checkpoint-STEP`, and then delete all but the last `keep` checkpoints.

    The checkpoint has a temporary name until it is complete. Checkpoints of later steps are also deleted, because they
    would be mistaken for the latest. They were written before the run was resumed from an earlier step, or with a
    different number of processes. A run on several nodes needs a shared `output_dir`.

    Args:
        accelerator: accelerator of the run.
        output_dir: folder of the run.
        step: number of completed steps.
        record: record that `checkpointing.write_record` writes to the checkpoint.
        keep: number of checkpoints to keep.

    Returns:
        Folder of the checkpoint.

    Raises:
        UnavailableError: the checkpoint could not be written, e.g. because the disk is full. Earlier checkpoints are
            unchanged.
    """
    folder, temporary = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}"
    if accelerator.is_main_process:
        for leftover in output_dir.glob(".checkpoint-*"):  # left by a run that was killed
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_record(temporary, record)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk can cause any of these errors
        shutil.rmtree(temporary, ignore_errors=True)
        last = [None, *list_checkpoints(output_dir)][-1]
        raise UnavailableError(
            f"{folder} could not be written ({error}). The last complete checkpoint is {last or 'none'}. Free some "
            "space, and resume with --resume_from_checkpoint true"
        ) from error
    if accelerator.is_main_process:
        if folder.exists():  # written before the run was resumed from an earlier step
            delete_checkpoint(folder)
        temporary.replace(folder)
        delete_later_checkpoints(output_dir, step)
        delete_old_checkpoints(output_dir, keep)
    accelerator.wait_for_everyone()
    return folder
