"""Arguments of a pretraining run, and the defaults that presets and checkpoints imply.

The command line imports this module for `--help`, so it imports neither training code nor `datasets`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..checkpointing import read_record, resume_point
from ..checkpoints.facebook_dino import (
    HEAD_SETTINGS,
    DinoCheckpoint,
    head_settings,
    read_dino_checkpoint,
    read_setting,
)
from ..configuration_surgenet import BACKBONES
from ..errors import UserError
from ..options import option

# widths, depths, and heads of the vision transformers of facebookresearch/dino
VITS: dict[str, dict[str, Any]] = {
    "vit_small_patch16": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "vit_base_patch16": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
NUM_GLOBAL_CROPS = 2  # the first crops of each sample; the teacher sees only these, the student sees all
IN_FOLDERS = ("folder", "shards", "parquet")  # kinds of datasets that need a data_dir
# For a few thousand frames: fewer prototypes, a faster teacher, a longer warm-up, and a sharper teacher. With a
# temperature of 0.04, the outputs drifted to uniform ones (343 frames, small CAFormer, momentum 0.99 and 0.996).
SMALL = {
    "out_dim": 4096,
    "momentum_teacher": 0.99,
    "warmup_epochs": 20,
    "warmup_teacher_temp": 0.02,
    "teacher_temp": 0.02,
}
PRESETS = {"surgenet": {}, "small": SMALL}
# Options of `PretrainingArguments` that influence the losses of a run.
RECORDED = tuple(
    """
    per_device_train_batch_size gradient_accumulation_steps drop_path_rate normalization seed bf16 fp16 crop_on
    """.split()
)

_MAX_EPOCHS = 100_000  # schedules store a value per step; 100 times as long as published trainings
# Far more than recipes use (10 local crops, 518 pixels). All crops of a batch are in memory at once.
_MAX_LOCAL_CROPS = 100
_MAX_SIZE = 4096


def _check(arguments, requirement: str, is_valid: Callable, *names: str, prefix: str = "") -> None:
    """Raise a UserError for values that do not meet a requirement. Values of None are skipped."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not is_valid(value):
            shown = f"{value:,}" if isinstance(value, int) else value
            raise UserError(f"{prefix}{name} must {requirement}, got {shown}")


def _at_least(minimum: float) -> tuple[str, Callable]:
    return "not be negative" if minimum == 0 else f"be at least {minimum}", lambda value: value >= minimum


@dataclass
class PretrainingArguments:
    """Weights, hardware, and outputs of a run. The names are those of TrainingArguments."""

    output_dir: str = option("", "Folder for checkpoints, the model, the log, and figures.")
    model_name_or_path: str | None = option(
        None, "Initial weights of student and teacher: a published checkpoint, a Hub repository, or a local folder."
    )
    backbone: str | None = option(
        None,
        "Backbone with random initial weights. Cannot be combined with --model_name_or_path. Default: caformer_s18.",
        choices=[*BACKBONES, *VITS, "tiny"],
    )  # fmt: skip
    resume_from_checkpoint: str | None = option(
        None,
        "Checkpoint to resume from: true (the last one in output_dir), a checkpoint folder, or a full DINO "
        "checkpoint (.pth) of the original code.",
    )
    extend_epochs: int | None = option(
        None,
        "Number of epochs to train with new schedules, from the weights and optimizer moments of "
        "--resume_from_checkpoint.",
    )
    preset: str = option(
        "surgenet",
        "Recipe for options that are not given: surgenet (the authors' recipe) or small (for a few thousand frames).",
        choices=list(PRESETS),
    )  # fmt: skip
    normalization: str = option(
        "auto", "Mean and std that normalize the frames. auto: those of the initial weights, otherwise SurgeNet's.",
        choices=["auto", "surgenet", "imagenet"],
    )  # fmt: skip
    drop_path_rate: float = option(
        0.1,
        "Stochastic depth rate of the student's last block, in [0, 1). It grows linearly from 0 at the first block. "
        "The teacher uses none.",
    )
    per_device_train_batch_size: int = option(64, "Number of frames per process in one forward pass.")
    gradient_accumulation_steps: int = option(1, "Number of forward passes in one optimizer step.")
    max_steps: int = option(
        -1, "Number of optimizer steps after which the run ends. -1: no limit. The schedules still cover all epochs."
    )
    seed: int = option(0, "Random seed of weights, frame order, crops, and drop path. Default: 0.")
    bf16: bool = option(False, "Whether to train under bfloat16 autocast.")
    fp16: bool = option(False, "Whether to train under float16 autocast, with loss scaling.")
    gradient_checkpointing: bool = option(
        False, "Whether to recompute activations in the backward pass, which saves memory but takes longer."
    )
    torch_compile: bool = option(False, "Whether to compile the backbones.")
    channels_last: bool = option(
        False, "Whether weights and crops use the channels-last memory format. Not for vision transformers."
    )
    crop_on: str = option(
        "auto", "Place where crops are made. auto: in the data loading workers on a CPU, otherwise on the device.",
        choices=["auto", "workers", "device"],
    )  # fmt: skip
    dataloader_num_workers: int = option(
        0, "Number of data loading workers per training process. Default: 0 (the training process reads the frames)."
    )
    logging_steps: int = option(10, "Number of steps between log entries.")
    ignore_collapse: bool = option(
        False, "Whether to log a warning instead of ending the run when training collapses."
    )
    save_steps: int = option(
        1000, "Number of steps between checkpoints. A checkpoint is also saved at the end of each epoch."
    )
    save_total_limit: int = option(2, "Number of most recent checkpoints to keep.")
    export_dino_checkpoint: bool = option(
        False,
        "Whether to also write a full DINO checkpoint (.pth) in the original format at the end. Not for vision "
        "transformers.",
    )
    knn_dataset: str | None = option(None, "Labeled dataset for k-NN metrics after each epoch.")
    knn_data_dir: str | None = option(None, "Folder of the labeled dataset.")
    report_to: list[str] = option(
        ["none"], "Experiment trackers: tensorboard, wandb, ..., all, or none. Default: none."
    )
    push_to_hub: bool = option(False, "Whether to upload the teacher to the Hub at the end.")
    hub_model_id: str | None = option(None, "Repository on the Hub. Default: the name of output_dir.")
    hub_private_repo: bool = option(False, "Whether a new repository is private.")

    def __post_init__(self):
        if not self.output_dir:
            raise UserError("--output_dir is missing")
        if self.bf16 and self.fp16:
            raise UserError("--bf16 and --fp16 are mutually exclusive; give only one")
        if self.model_name_or_path and self.backbone:
            raise UserError(
                "--model_name_or_path and --backbone are mutually exclusive: the initial weights determine the "
                "backbone. Give only one"
            )
        if self.extend_epochs is not None and (self.extend_epochs < 1 or not self.resume_from_checkpoint):
            raise UserError("--extend_epochs must be at least 1, and needs --resume_from_checkpoint")
        if self.max_steps == 0:
            raise UserError("--max_steps must be at least 1, or -1 for no limit; got 0")
        if Path(self.output_dir).is_file():
            raise UserError(f"--output_dir {self.output_dir} is a file; expected a folder")
        batches = ("per_device_train_batch_size", "gradient_accumulation_steps")
        intervals = ("logging_steps", "save_steps", "save_total_limit")
        _check(self, "be in [0, 1)", lambda value: 0 <= value < 1, "drop_path_rate", prefix="--")
        _check(self, *_at_least(0), "seed", "dataloader_num_workers", prefix="--")
        _check(self, *_at_least(1), *batches, *intervals, prefix="--")

    @property
    def step_batch_size(self) -> int:
        """Return the number of frames of one process in a step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def mixed_precision(self) -> str:
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"


@dataclass
class FrameArguments:
    """Frames to train on."""

    dataset: list[str] = option(
        [],
        "One or more datasets: folder (images at any depth of data_dir), shards (zip and tar files), parquet, "
        "synthetic, or an argument of datasets.load_dataset: a name on the Hub (name:config) or a local path.",
    )
    data_dir: list[str] | None = option(
        None,
        "Folders of the datasets: one per dataset, one per dataset of kind folder, shards, or parquet, or a single "
        "one that these share.",
    )
    dataset_weights: list[float] | None = option(
        None,
        "Relative weight of each dataset in an epoch; the sum is arbitrary. Default: every frame of every dataset "
        "once per epoch.",
    )
    dataset_split: str = option("train", "Split of parquet files and Hub datasets.")
    image_column: str | None = option(
        None,
        "Column with the frames, required if several columns contain images. For shards: suffix of the images, for "
        "example jpg.",
    )
    streaming: bool = option(
        False,
        "Whether to read frames sequentially through a shuffle buffer. A resumed run rereads its epoch up to the "
        "checkpoint.",
    )
    shuffle_buffer: int = option(1000, "Number of frames in the shuffle buffer of each worker.")
    frames_per_epoch: int | None = option(
        None, "Number of frames in an epoch. Default: all. Required with --streaming."
    )
    max_unreadable_fraction: float = option(
        0.01, "Maximum fraction of unreadable frames. The run ends when it is exceeded."
    )

    def __post_init__(self):
        if not self.dataset:
            raise UserError("--dataset is missing")
        if self.dataset_weights is not None:
            if len(self.dataset_weights) != len(self.dataset):
                raise UserError(
                    f"got {len(self.dataset_weights)} --dataset_weights for {len(self.dataset)} datasets; give one "
                    "weight per dataset"
                )
            if not all(0 < weight < float("inf") for weight in self.dataset_weights):
                raise UserError(f"--dataset_weights must be positive and finite, got {self.dataset_weights}")
        _check(self, "be in [0, 1]", lambda value: 0 <= value <= 1, "max_unreadable_fraction", prefix="--")
        _check(self, *_at_least(1), "frames_per_epoch", "shuffle_buffer", prefix="--")
        if self.streaming and self.frames_per_epoch is None:
            raise UserError("--streaming needs --frames_per_epoch: the number of frames of a stream is unknown")
        if self.streaming and len(self.dataset) > 1 and self.dataset_weights is None:
            raise UserError("--streaming of several datasets needs --dataset_weights: their sizes are unknown")
        self.data_dirs()

    def data_dirs(self) -> list[str | None]:
        """Return the folder of each dataset, or None for datasets without a folder."""
        given = self.data_dir or []
        if len(given) == len(self.dataset):
            return list(given)
        in_folders = [dataset in IN_FOLDERS for dataset in self.dataset]
        needed = sum(in_folders)
        if len(given) not in {needed, min(needed, 1)}:
            raise UserError(
                f"got {len(given)} --data_dir for {len(self.dataset)} datasets, of which {needed} need a folder. Give "
                "one per dataset, one per dataset that needs a folder, or a single one that these share"
            )
        folders = iter(given * needed if len(given) == 1 else given)
        return [next(folders) if needs else None for needs in in_folders]


@dataclass
class CropConfig:
    """Number, sizes, and scales of the crops, with the names of the original code.

    There are always two global crops.

    Raises:
        UserError: a size or number is outside its limits, or a scale does not meet 0 < min <= max <= 1.
    """

    global_crops_scale: list[float] = option(
        [0.4, 1.0], "Minimum and maximum area of a global crop, as fractions of the frame's area."
    )
    local_crops_scale: list[float] = option(
        [0.05, 0.4], "Minimum and maximum area of a local crop, as fractions of the frame's area."
    )
    local_crops_number: int = option(8, "Number of local crops per frame. 0: global crops only.")
    global_crops_size: int = option(224, "Side length of the two global crops, in pixels.")
    local_crops_size: int = option(96, "Side length of the local crops, in pixels.")

    def __post_init__(self):
        def is_scale(scale) -> bool:
            numbers = len(scale) == 2 and all(isinstance(share, int | float) for share in scale)
            return numbers and 0 < scale[0] <= scale[1] <= 1

        scales, sizes = ("global_crops_scale", "local_crops_scale"), ("global_crops_size", "local_crops_size")
        _check(self, "be two fractions of the area with 0 < min <= max <= 1", is_scale, *scales)
        _check(self, "be at least 1 pixel", lambda size: size >= 1, *sizes)
        _check(self, f"be at most {_MAX_SIZE:,} pixels", lambda size: size <= _MAX_SIZE, *sizes)
        _check(self, *_at_least(0), "local_crops_number")
        _check(self, f"be at most {_MAX_LOCAL_CROPS}", lambda number: number <= _MAX_LOCAL_CROPS, "local_crops_number")

    @property
    def sizes(self) -> list[int]:
        """Return the side of each crop in pixels, the global crops first."""
        return [self.global_crops_size] * NUM_GLOBAL_CROPS + [self.local_crops_size] * self.local_crops_number


@dataclass
class DinoConfig:
    """Hyperparameters of the method, with the names of the original code. The defaults are SurgeNet's recipe."""

    epochs: int = option(50, "Number of epochs, which is the length of all schedules.", aliases=["--num_train_epochs"])
    lr: float = option(
        5e-4,
        "Peak learning rate for a total batch size of 256. It is scaled linearly with the total batch size.",
        aliases=["--learning_rate"],
    )
    min_lr: float = option(1e-6, "Final learning rate, which is not scaled.")
    warmup_epochs: int = option(10, "Length of the learning rate warm-up from 0, in epochs.")
    weight_decay: float = option(0.04, "Initial weight decay. Biases and one-dimensional parameters have none.")
    weight_decay_end: float = option(0.4, "Final weight decay.")
    clip_grad: float = option(3.0, "Maximum L2 norm of the gradient of each parameter tensor. 0: no clipping.")
    freeze_last_layer: int = option(1, "Number of initial epochs in which the last layer of the head is frozen.")
    momentum_teacher: float = option(0.996, "Initial momentum of the teacher's moving average. It increases to 1.")
    warmup_teacher_temp: float = option(0.04, "Initial temperature of the teacher.")
    teacher_temp: float = option(0.04, "Temperature of the teacher after its warm-up.")
    warmup_teacher_temp_epochs: int = option(0, "Length of the teacher temperature warm-up, in epochs. Default: 0.")
    student_temp: float = option(0.1, "Temperature of the student.")
    center_momentum: float = option(0.9, "Momentum of the center, the running mean of the teacher's logits.")
    out_dim: int = option(65_536, "Number of prototypes of the head.")
    hidden_dim: int = option(2048, "Width of the head's hidden layers.")
    bottleneck_dim: int = option(256, "Width of the head's output before the prototypes.")
    head_layers: int = option(3, "Number of layers of the head's MLP.")
    use_bn_in_head: bool = option(False, "Whether the head has batch normalization.")
    norm_last_layer: bool = option(True, "Whether each prototype has a fixed norm of 1, which is more stable.")

    def __post_init__(self):
        # This also rejects NaN, and integers that no float can represent.
        _check(self, "be finite and at most 1e9", lambda value: abs(value) <= 1e9, *vars(self))
        temperatures = ("warmup_teacher_temp", "teacher_temp", "student_temp")
        sizes = ("out_dim", "hidden_dim", "bottleneck_dim", "head_layers")
        rates = ("lr", "min_lr", "weight_decay", "weight_decay_end", "clip_grad")
        _check(self, "be positive", lambda value: value > 0, "epochs", *temperatures, *sizes)
        _check(self, *_at_least(0), *rates, "freeze_last_layer")
        _check(self, "be in [0, 1]", lambda value: 0 <= value <= 1, "momentum_teacher", "center_momentum")
        _check(self, f"be at most {_MAX_EPOCHS:,}", lambda epochs: epochs <= _MAX_EPOCHS, "epochs")
        for name in ("warmup_epochs", "warmup_teacher_temp_epochs"):
            if not 0 <= getattr(self, name) <= self.epochs:
                raise UserError(f"{name} must be in [0, epochs], got {getattr(self, name)} with {self.epochs} epochs")


def implied_defaults(
    output_dir: str,
    preset: str = "surgenet",
    resume_from_checkpoint: str | None = None,
    extend_epochs: int | None = None,
) -> tuple[dict, Path | DinoCheckpoint | None]:
    """Return the defaults that a preset and a checkpoint imply, and the checkpoint to resume from.

    The defaults apply to options that a user does not give. They are those of the preset, and in a resumed run those
    of the checkpoint.

    Args:
        output_dir: folder of the run.
        preset: name of a preset.
        resume_from_checkpoint, extend_epochs: see `PretrainingArguments`.

    Returns:
        Options by name; and a checkpoint folder, the content of a full DINO checkpoint, or None.

    Raises:
        UserError: the preset is unknown, or the checkpoint does not exist or is damaged.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: expected one of {', '.join(PRESETS)}")
    defaults = dict(PRESETS[preset])
    resume: Path | DinoCheckpoint | None = (
        resume_point(Path(output_dir), resume_from_checkpoint) if output_dir else None
    )
    if resume is None:
        if extend_epochs is not None and resume_from_checkpoint:
            raise UserError(
                f"--extend_epochs: there is no checkpoint in {output_dir} to resume from; name one with "
                "--resume_from_checkpoint PATH"
            )
    elif resume.is_file():
        resume = read_dino_checkpoint(resume)
        defaults |= dino_settings(resume) | crop_settings(resume)
        if "drop_path_rate" in resume.args:
            defaults["drop_path_rate"] = read_setting(resume, "drop_path_rate", int, float)
    else:
        known = {option.name for kind in (CropConfig, DinoConfig, PretrainingArguments) for option in fields(kind)}
        recorded = read_record(resume).get("options", {})
        defaults |= {name: value for name, value in recorded.items() if name in known}
    own = isinstance(resume, Path) and resume.resolve().parent == Path(output_dir).resolve()
    if extend_epochs is not None and not own:
        # The recipe's warm-up is for a whole run, and could take all epochs of this one.
        defaults |= {"epochs": extend_epochs, "warmup_epochs": extend_epochs // 10, "warmup_teacher_temp_epochs": 0}
    return defaults, resume


def dino_settings(checkpoint: DinoCheckpoint) -> dict:
    """Return the settings of `DinoConfig` in a full DINO checkpoint.

    The settings of the head come from its tensors, all others from `args`.

    Raises:
        UserError: a setting has the wrong type or is outside its limits, or the layers of the head do not match.
    """
    # Check without a warm-up. The default warm-up can be longer than the file's epochs, and the user may replace it.
    settings = _read_settings(checkpoint, DinoConfig) | head_settings(checkpoint)
    return _check_settings(checkpoint, DinoConfig, settings, warmup_epochs=0)


def crop_settings(checkpoint: DinoCheckpoint) -> dict:
    """Return the settings of `CropConfig` in the `args` of a full DINO checkpoint.

    Raises:
        UserError: a setting has the wrong type or is outside its limits.
    """
    return _check_settings(checkpoint, CropConfig, _read_settings(checkpoint, CropConfig))


def _read_settings(checkpoint: DinoCheckpoint, config: type) -> dict:
    types: dict[object, tuple[type, ...]]
    types = {int: (int,), bool: (bool,), float: (int, float), list[float]: (list, tuple)}
    settings = {
        option.name: read_setting(checkpoint, option.name, *types[option.type])
        for option in fields(config)
        if option.name in checkpoint.args and option.name not in HEAD_SETTINGS
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _check_settings(checkpoint: DinoCheckpoint, config: type, settings: dict, **defaults) -> dict:
    try:
        config(**defaults | settings)
    except UserError as error:
        raise UserError(
            f"{checkpoint.path}: in its args, {error}. The file may be damaged; download it again"
        ) from error
    return settings


def options_of(args: PretrainingArguments, crops: CropConfig, dino: DinoConfig) -> dict:
    """Return the options that a checkpoint records and that a resumed run must keep."""
    return {**asdict(crops), **asdict(dino), **{name: getattr(args, name) for name in RECORDED}}
