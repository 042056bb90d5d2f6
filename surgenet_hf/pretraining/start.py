"""Start of a run: random or published weights, its own checkpoint, or a full DINO checkpoint of the original code."""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from ..checkpointing import compare_records, read_record
from ..checkpoints.catalog import RANDOM_WEIGHTS, recorded_normalization
from ..checkpoints.conversion import choose_normalization
from ..checkpoints.facebook_dino import DinoCheckpoint, DinoTraining, backbone_config, load_dino_checkpoint
from ..configuration_surgenet import SurgeNetConfig
from ..errors import UnavailableError, UserError
from ..fast_gradients import speed_up
from ..modeling_surgenet import SurgeNetModel
from ..models import resolve_model
from .arguments import DinoConfig, PretrainingArguments
from .dino.method import DinoModel
from .plan import Plan, count

DEFAULT_BACKBONE = "caformer_s18"


@dataclass
class Start:
    """Initial state of a run.

    Attributes:
        step: number of completed optimizer steps.
        pretraining: origin of the start weights, as in `config.pretraining`.
        normalization: "surgenet" or "imagenet".
        counts: counts of a resumed run: `frames_read`, `unreadable_frames`, `skipped_steps`.
        notes: messages about what was loaded.
    """

    step: int = 0
    pretraining: dict | None = None
    normalization: str = "surgenet"
    counts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_backbone(args: PretrainingArguments, resume: Path | DinoCheckpoint | None) -> SurgeNetModel:
    """Build the student's backbone with its start weights, or with the sizes of a checkpoint that is loaded later.

    Args:
        args: arguments of the run.
        resume: see `arguments.implied_defaults`.

    Raises:
        UserError: the start weights have no embedding, or the backbone differs from that of the checkpoint.
        UnavailableError: the start weights are damaged.
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
            raise UnavailableError(
                f"the weights in {config} cannot be read ({error}): copy or download them again"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{error} A model that was fine-tuned for segmentation has no trained embedding: start from the "
                "backbone that it was fine-tuned from"
            ) from error
    config = copy.deepcopy(config)
    config.drop_path_rate = args.drop_path_rate
    return SurgeNetModel(config)


def build_model(
    args: PretrainingArguments,
    dino: DinoConfig,
    device: torch.device,
    resume: Path | DinoCheckpoint | None = None,
) -> DinoModel:
    """Build student and teacher on the device, with the memory format and compilation of the arguments."""
    torch.manual_seed(args.seed)  # all processes start with the same weights
    model = DinoModel(build_backbone(args, resume), dino).to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.gradient_checkpointing:
        model.student.backbone.gradient_checkpointing_enable()
    if args.torch_compile:
        model.student.backbone.compile(dynamic=False)  # compiles once for each crop size
        model.teacher.backbone.compile(dynamic=False)
    if device.type == "cpu":
        speed_up(model, half=args.bf16)
    return model


def _compare_backbones(asked: SurgeNetConfig, found: SurgeNetConfig) -> None:
    if any(getattr(asked, name) != getattr(found, name) for name in ("backbone", "depths", "hidden_sizes")):
        raise UserError(
            f"--resume_from_checkpoint contains a {found.backbone} with widths {list(found.hidden_sizes)}, but "
            f"--backbone is a {asked.backbone} with widths {list(asked.hidden_sizes)}: omit one of the two"
        )


def load_start(
    args: PretrainingArguments,
    plan: Plan,
    model: DinoModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    resume: Path | DinoCheckpoint | None,
) -> Start:
    """Set weights and optimizer to the start of the run.

    Args:
        args, plan: arguments and plan of the run.
        model: student, teacher, and loss.
        optimizer: optimizer as wrapped by Accelerate.
        accelerator: accelerator that loads the run's own checkpoints.
        resume: see `arguments.implied_defaults`.

    Raises:
        UserError: the checkpoint does not match the run, or is at the end of its schedules.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if isinstance(resume, DinoCheckpoint):
        start = _load_original(args, plan, as_dino_training(model, inner), resume)
    elif resume is not None:
        start = _load_own(args, plan, accelerator, resume)
    else:
        config = model.student.backbone.config
        name = args.model_name_or_path
        start = Start(pretraining=config.pretraining if name else {"name": RANDOM_WEIGHTS})
        start.notes.append(
            f"Student and teacher start from {name or f'random weights ({args.backbone or config.backbone})'}."
        )
        start.normalization = recorded_normalization(start.pretraining) or "surgenet"
        if (args.resume_from_checkpoint or "").lower() == "true":
            start.notes.append(f"There is no checkpoint in {args.output_dir} yet.")
    _align_moments(optimizer)
    if args.normalization != "auto":
        start.normalization = args.normalization
    return start


def as_dino_training(model: DinoModel, optimizer: torch.optim.Optimizer | None = None) -> DinoTraining:
    """Return the parts of a model that a full DINO checkpoint contains."""
    sizes = model.student.backbone.config.to_dict() | asdict(model.config)
    return DinoTraining(
        model.student, model.teacher, model.loss.center, model.student.original_names(), optimizer, sizes
    )


def _align_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give the loaded moments the memory format of their weights, which the fused AdamW requires."""
    for parameter, state in optimizer.state.items():
        for name in {"exp_avg", "exp_avg_sq"} & state.keys():
            state[name] = torch.empty_like(parameter).copy_(state[name])


def _load_original(
    args: PretrainingArguments, plan: Plan, training: DinoTraining, checkpoint: DinoCheckpoint
) -> Start:
    report = load_dino_checkpoint(checkpoint, training)
    extended = args.extend_epochs is not None
    normalization, reason = choose_normalization(
        checkpoint.backbone, training.student.backbone.config, args.normalization
    )
    start = Start(
        step=0 if extended else checkpoint.epoch * plan.steps_per_epoch,
        pretraining=checkpoint.pretraining,
        normalization=normalization,
        notes=[str(report), f"Normalization: {normalization} ({reason})."],
    )
    if extended:
        start.notes.append(f"New schedules over {count(plan.epochs, 'epoch')}.")
    elif start.step >= plan.num_steps:
        raise UserError(
            f"the checkpoint is at the end of its {count(plan.epochs, 'epoch')}; start new schedules with "
            "--extend_epochs N, in another --output_dir"
        )
    return start


def _load_own(args: PretrainingArguments, plan: Plan, accelerator: Accelerator, folder: Path) -> Start:
    """Resume from a checkpoint of this package. With `--extend_epochs`, use it as the start of another run."""
    record = read_record(folder)
    if "normalization" not in record["start"]:
        raise UserError(
            f"{folder} was written by an earlier version of surgenet_hf, from which runs cannot be resumed. Start a "
            "new run from its weights with --model_name_or_path OUTPUT_DIR/model"
        )
    own = folder.resolve().parent == Path(args.output_dir).resolve()
    extended = args.extend_epochs is not None and not own
    if not extended:
        compare_records(
            record["options"] | {"frames": record["frames"]},
            plan.options | {"frames": plan.frames},
            folder,
            "Give the same options and data, or start new schedules with --extend_epochs N "
            "--resume_from_checkpoint CHECKPOINT in another --output_dir",
        )
    try:
        accelerator.load_state(str(folder))
    except (RuntimeError, SafetensorError) as error:  # `resume_point` has already verified the files
        raise UserError(f"{folder} contains a model of a different size: {error}") from error
    start = Start(
        pretraining=record["start"]["pretraining"],
        normalization=record["start"]["normalization"],
        counts=record["counts"],
    )
    if extended:
        start.counts = {}
        start.pretraining = record["pretraining"]
        start.notes.append(
            f"Loaded weights and optimizer moments from {folder}. New schedules over {count(plan.epochs, 'epoch')}."
        )
        return start
    start.step = record["step"]
    start.notes.append(f"Resuming from {folder}, after step {record['step']}.")
    if plan.num_processes != record["num_processes"]:
        epoch = record["step"] // record["steps_per_epoch"]
        start.step = epoch * plan.steps_per_epoch
        start.notes.append(
            f"It was written by {record['num_processes']} processes, but this run has {plan.num_processes}: resuming "
            f"at the start of epoch {epoch}, now step {start.step}, with the weights of the checkpoint."
        )
    return start
