"""Where a run starts: random weights, published ones, its own checkpoint, or a full DINO checkpoint of the authors."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from ..checkpointing import compare_records, read_record
from ..checkpoints.catalog import RANDOM_WEIGHTS, recorded_normalization
from ..checkpoints.conversion import choose_normalization
from ..checkpoints.facebook_dino import DinoCheckpoint, backbone_config
from ..configuration_surgenet import SurgeNetConfig
from ..modeling_surgenet import SurgeNetModel
from ..models import resolve_model
from .arguments import PretrainingArguments
from .original import load_dino_checkpoint

if TYPE_CHECKING:
    from .run import Pretraining

DEFAULT_BACKBONE = "caformer_s18"


@dataclass
class Start:
    """The beginning of a run.

    Attributes:
        step: number of optimiser steps done.
        pretraining: what is known of the start weights, as in `config.pretraining`.
        statistics: of the images, "surgenet" or "imagenet".
        counts: of what a resumed run has counted.
        notes: what was taken from where, to be printed.
    """

    step: int = 0
    pretraining: dict | None = None
    statistics: str = "surgenet"
    counts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_backbone(args: PretrainingArguments, resume: Path | DinoCheckpoint | None) -> SurgeNetModel:
    """The student's backbone: with its start weights, or, where a checkpoint will set them, of the right sizes.

    Raises:
        OSError: damaged start weights.
        ValueError: another backbone is asked for than the checkpoint has.
    """
    if isinstance(resume, DinoCheckpoint):
        config = backbone_config(resume)
    elif resume is not None:
        config = SurgeNetConfig.from_dict(read_record(resume)["backbone"])
    else:
        name = args.backbone or (None if args.model_name_or_path else DEFAULT_BACKBONE)
        config = resolve_model(args.model_name_or_path, name)
    if resume is not None and args.backbone:
        _compare_backbones(resolve_model(None, args.backbone), config)
    if isinstance(config, str):
        try:
            return SurgeNetModel.from_pretrained(config, drop_path_rate=args.drop_path_rate)
        except SafetensorError as error:
            raise OSError(f"the weights in {config} cannot be read ({error}): copy or download them again") from error
        except ValueError as error:
            raise ValueError(
                f"{error} A model that was fine-tuned for segmentation has no embedding to go on with: start from the "
                "backbone that it was fine-tuned from"
            ) from error
    config = copy.deepcopy(config)
    config.drop_path_rate = args.drop_path_rate
    return SurgeNetModel(config)


def _compare_backbones(asked: SurgeNetConfig, found: SurgeNetConfig) -> None:
    if any(getattr(asked, name) != getattr(found, name) for name in ("backbone", "depths", "hidden_sizes")):
        raise ValueError(
            f"--resume_from_checkpoint holds a {found.backbone} of widths {list(found.hidden_sizes)}, --backbone asks "
            f"for a {asked.backbone} of widths {list(asked.hidden_sizes)}: leave out one of the two"
        )


def load_start(run: "Pretraining", resume: Path | DinoCheckpoint | None) -> Start:
    """Set the run's weights and optimiser to where it starts.

    Raises:
        ValueError: a checkpoint that does not fit the run, or at the end of its schedules.
    """
    if isinstance(resume, DinoCheckpoint):
        start = _load_original(run, resume)
    elif resume is not None:
        start = _load_own(run, resume)
    else:
        config = run.model.student.backbone.config
        name = run.args.model_name_or_path
        start = Start(pretraining=config.pretraining if name else {"name": RANDOM_WEIGHTS})
        start.notes.append(f"Student and teacher start from {name or f'random weights ({config.backbone})'}.")
        if (run.args.resume_from_checkpoint or "").lower() == "true":
            start.notes.append(f"There is no checkpoint in {run.output_dir} yet.")
    _align_moments(run.optimizer)
    if run.args.normalization != "auto":
        start.statistics = run.args.normalization
    elif resume is None and (recorded := recorded_normalization(start.pretraining)):
        start.statistics = recorded
    if isinstance(resume, DinoCheckpoint) and start.step >= len(run.schedules.lr):
        raise ValueError(
            f"the checkpoint is at the end of its {run.dino.epochs} epochs; lay new schedules with --extend_epochs N, "
            "in another --output_dir"
        )
    return start


def _align_moments(optimizer) -> None:
    """Lay the loaded moments out as their weights, e.g. channels last: the fused AdamW takes that for granted."""
    for parameter, state in optimizer.state.items():
        for name in {"exp_avg", "exp_avg_sq"} & state.keys():
            state[name] = torch.empty_like(parameter).copy_(state[name])


def _load_original(run: "Pretraining", checkpoint: DinoCheckpoint) -> Start:
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    report = load_dino_checkpoint(checkpoint, run.model, optimizer)
    extended = run.args.extend_epochs is not None
    statistics, reason = choose_normalization(
        checkpoint.backbone, run.model.student.backbone.config, run.args.normalization
    )
    start = Start(
        step=0 if extended else checkpoint.epoch * run.steps_per_epoch,
        pretraining=checkpoint.pretraining,
        statistics=statistics,
        notes=[str(report), f"Image statistics: {statistics} ({reason})."],
    )
    if extended:
        start.notes.append(f"Schedules are laid anew over {run.dino.epochs} epochs.")
    return start


def _load_own(run: "Pretraining", folder: Path) -> Start:
    """From a checkpoint of this package: its run goes on; or, extended, its weights and moments begin another."""
    record = read_record(folder)
    own = folder.resolve().parent == run.output_dir.resolve()
    extended = run.args.extend_epochs is not None and not own
    if not extended:
        compare_records(
            record["options"] | {"frames": record["frames"]},
            run.options | {"frames": run.feed.description},
            folder,
            "Give the same options and data. Or start new schedules with --extend_epochs N "
            "--resume_from_checkpoint CHECKPOINT in another --output_dir",
        )
    try:
        run.accelerator.load_state(str(folder))
    except (RuntimeError, SafetensorError) as error:  # `resume_point` has verified the files
        raise ValueError(f"{folder} is of a network of other sizes: {error}") from error
    start = Start(
        pretraining=record["start"]["pretraining"], statistics=record["start"]["statistics"], counts=record["counts"]
    )
    if extended:
        start.counts = {}
        start.pretraining = record["pretraining"]
        start.notes.append(f"Weights and moments of {folder}; schedules are laid anew over {run.dino.epochs} epochs.")
        return start
    start.step = record["step"]
    start.notes.append(f"Going on from {folder}, after step {record['step']}.")
    processes = run.accelerator.num_processes
    if processes != record["num_processes"]:
        epoch = record["step"] // record["steps_per_epoch"]
        start.step = epoch * run.steps_per_epoch
        start.notes.append(
            f"It was written by {record['num_processes']} processes, these are {processes}: going on from the start "
            f"of epoch {epoch}, now step {start.step}, with the weights of the checkpoint."
        )
    return start
