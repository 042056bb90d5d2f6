"""Start of a run: random or published weights, its own checkpoint, or a full DINO checkpoint of the original code."""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, PreTrainedConfig

from ..checkpointing import compare_records, read_record
from ..checkpoints.catalog import NORMALIZATIONS, RANDOM_WEIGHTS, recorded_normalization
from ..checkpoints.conversion import choose_normalization
from ..checkpoints.facebook_dino import DinoCheckpoint, DinoTraining, backbone_config, load_dino_checkpoint
from ..configuration_surgenet import SurgeNetConfig
from ..errors import UnavailableError, UserError
from ..fast_gradients import speed_up
from ..image_processing import load_image_processor
from ..modeling_surgenet import SurgeNetModel
from ..models import is_surgenet, load_config, resolve_model
from .arguments import VITS, CropConfig, DinoConfig, PretrainingArguments
from .dino.method import Backbone, DinoModel
from .dino.vit import build_vit, check_crops, load_vit
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


def build_backbone(args: PretrainingArguments, crops: CropConfig, resume: Path | DinoCheckpoint | None) -> Backbone:
    """Build the student's backbone with its start weights, or with the sizes of a checkpoint that is loaded later.

    Args:
        args: arguments of the run.
        crops: sizes of the crops.
        resume: see `arguments.implied_defaults`.

    Raises:
        UserError: the start weights have no embedding, the backbone is not supported or differs from that of the
            checkpoint, or the sizes of the crops do not fit it.
        UnavailableError: the start weights are damaged.
    """
    if resume is not None:
        backbone = _build(_checkpoint_config(args, resume), args.drop_path_rate)
    elif args.model_name_or_path:
        backbone = _load(resolve_model(args.model_name_or_path), args.drop_path_rate)
    elif args.backbone in VITS:
        backbone = build_vit(args.backbone, crops.global_crops_size, args.drop_path_rate)
    else:
        backbone = _build(resolve_model(None, args.backbone or DEFAULT_BACKBONE), args.drop_path_rate)
    check_crops(backbone, crops)
    return backbone


def _checkpoint_config(args: PretrainingArguments, resume: Path | DinoCheckpoint) -> PreTrainedConfig:
    config: PreTrainedConfig
    if isinstance(resume, DinoCheckpoint):
        config = backbone_config(resume)
    else:
        recorded = read_record(resume)["backbone"]
        is_vit = recorded.get("model_type") == Dinov2WithRegistersConfig.model_type
        config = (Dinov2WithRegistersConfig if is_vit else SurgeNetConfig).from_dict(recorded)
    if args.backbone:
        vit = VITS.get(args.backbone)
        asked = Dinov2WithRegistersConfig(**vit) if vit else resolve_model(None, args.backbone)
        kinds = [_describe_backbone(one) for one in (config, asked)]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"--resume_from_checkpoint contains a {kinds[0]}, but --backbone is a {kinds[1]}: omit one of the two"
            )
    return config


def _describe_backbone(config: PreTrainedConfig) -> str:
    if isinstance(config, SurgeNetConfig):
        depths, widths = (list(sizes or ()) for sizes in (config.depths, config.hidden_sizes))
        return f"{config.backbone} with widths {widths} and depths {depths}"
    return f"vision transformer with {config.num_hidden_layers} layers and width {config.hidden_size}"


def _build(config: PreTrainedConfig, drop_path_rate: float) -> Backbone:
    config = copy.deepcopy(config)
    config.drop_path_rate = drop_path_rate
    if isinstance(config, SurgeNetConfig):
        return SurgeNetModel(config)
    assert isinstance(config, Dinov2WithRegistersConfig)
    return Dinov2WithRegistersModel(config)


def _load(source: str, drop_path_rate: float) -> Backbone:
    config = load_config(source)
    if not is_surgenet(config):
        return load_vit(source, config, drop_path_rate)
    try:
        return SurgeNetModel.from_pretrained(source, drop_path_rate=drop_path_rate)
    except SafetensorError as error:
        raise UnavailableError(
            f"the weights in {source} cannot be read ({error}): copy or download them again"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{error} A model that was fine-tuned for segmentation has no trained embedding: start from the "
            "backbone that it was fine-tuned from"
        ) from error


def build_model(
    args: PretrainingArguments,
    dino: DinoConfig,
    crops: CropConfig,
    device: torch.device,
    resume: Path | DinoCheckpoint | None = None,
) -> DinoModel:
    """Build student and teacher on the device, with the memory format and compilation of the arguments.

    Raises:
        UserError: see `build_backbone`, or the backbone does not support an option.
        UnavailableError: see `build_backbone`.
    """
    torch.manual_seed(args.seed)  # all processes start with the same weights
    backbone = build_backbone(args, crops, resume)
    if isinstance(backbone, Dinov2WithRegistersModel):
        for name in ("channels_last", "export_dino_checkpoint"):
            if getattr(args, name):
                raise UserError(f"--{name} is not possible with a vision transformer: omit it")
    model = DinoModel(backbone, dino).to(device)
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
        start = Start(pretraining=getattr(config, "pretraining", None) if name else {"name": RANDOM_WEIGHTS})
        start.notes.append(
            f"Student and teacher start from {name or f'random weights ({args.backbone or DEFAULT_BACKBONE})'}."
        )
        found = recorded_normalization(start.pretraining)
        if found is None and name and not is_surgenet(config) and args.normalization == "auto":
            found = _processor_normalization(resolve_model(name))
        start.normalization = found or "surgenet"
        if (args.resume_from_checkpoint or "").lower() == "true":
            start.notes.append(f"There is no checkpoint in {args.output_dir} yet.")
    _align_moments(optimizer)
    if args.normalization != "auto":
        start.normalization = args.normalization
    return start


def _processor_normalization(source: str) -> str:
    """Return the normalization of the image processor of a model whose config does not record one.

    Raises:
        UserError: the model has no image processor, or it has another mean or standard deviation.
    """
    processor = load_image_processor(source)
    for name, normalization in NORMALIZATIONS.items():
        if np.allclose([processor.image_mean, processor.image_std], normalization, atol=1e-4):
            return name
    raise UserError(
        f"the image processor of {source} has mean {processor.image_mean} and std {processor.image_std}, which are "
        f"not those of {' or '.join(NORMALIZATIONS)}: choose one of these with --normalization"
    )


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
