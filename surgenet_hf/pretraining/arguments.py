"""The command line of a pretraining run, and where its defaults come from."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from ..checkpointing import read_record, resume_point
from ..checkpoints.facebook_dino import DinoCheckpoint, read_dino_checkpoint
from ..cli.arguments import ArgumentParser
from ..configuration_surgenet import BACKBONES
from .dino.method import SMALL, DinoConfig
from .frames.crops import CropConfig
from .frames.sources import FrameArguments
from .original import crop_settings, dino_settings

PRESETS = {"surgenet": {}, "small": SMALL}
# of `PretrainingArguments`, what the losses of a run depend on
RECORDED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "drop_path_rate",
    "normalization",
    "seed",
    "bf16",
    "fp16",
    "crop_on",
)


def _option(default, help: str, **metadata):
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class PretrainingArguments:
    """What is trained, how, and what it leaves; names as in TrainingArguments."""

    output_dir: str = _option("", "Folder for checkpoints, the model, the log and figures.")
    model_name_or_path: str | None = _option(
        None, "Weights to start student and teacher from: a published checkpoint, a Hub repository, or a folder."
    )
    backbone: str | None = _option(
        None, "Start this backbone from random weights; excludes --model_name_or_path.",
        choices=[*BACKBONES, "tiny"], aliases=["--config_name"],
    )  # fmt: skip
    resume_from_checkpoint: str | None = _option(
        None, "true: the last checkpoint in output_dir; or a checkpoint's folder, or a full DINO checkpoint (.pth)."
    )
    extend_epochs: int | None = _option(
        None, "Keep weights and moments of the checkpoint, and restart all schedules over this many more epochs."
    )
    preset: str = _option("surgenet", "Defaults of the method: the authors' recipe, or for small data sets.",
                          choices=list(PRESETS))  # fmt: skip
    normalization: str = _option(
        "auto", "Image statistics; auto: those of the start weights, else SurgeNet's.",
        choices=["auto", "surgenet", "imagenet"],
    )  # fmt: skip
    drop_path_rate: float = _option(0.1, "Stochastic depth of the student; the teacher has none.")
    per_device_train_batch_size: int = _option(64, "Frames of each process in one forward pass.")
    gradient_accumulation_steps: int = _option(1, "Forward passes whose gradients are added up in one step.")
    max_steps: int = _option(-1, "Stop after so many steps; the schedules stay those of all epochs.")
    seed: int = _option(0, "Seed of weights, frame order, crops and drop path.")
    bf16: bool = _option(False, "Autocast to bfloat16.")
    fp16: bool = _option(False, "Autocast to float16, with loss scaling.")
    gradient_checkpointing: bool = _option(False, "Trade time for memory.")
    torch_compile: bool = _option(False, "Compile the backbones.")
    channels_last: bool = _option(False, "Memory format of weights and crops.")
    crop_on: str = _option(
        "auto", "Where crops are made; auto: in the workers on a CPU, on the device otherwise.",
        choices=["auto", "workers", "device"],
    )  # fmt: skip
    dataloader_num_workers: int = _option(0, "Processes that read frames, for each training process.")
    logging_steps: int = _option(10, "Steps between entries of the log.")
    monitor_steps: int = _option(50, "Steps between looks for a collapse.")
    ignore_collapse: bool = _option(False, "Warn of a collapse, and go on.")
    save_steps: int = _option(1000, "Steps between checkpoints; there is one at the end of each epoch, too.")
    save_total_limit: int = _option(2, "Checkpoints kept.")
    export_dino_checkpoint: bool = _option(False, "At the end, write the authors' full format, too.")
    knn_dataset: str | None = _option(None, "Labelled data set, to report k-NN accuracy on.")
    knn_data_dir: str | None = _option(None, "Its folder.")
    knn_epochs: int = _option(1, "Epochs between two looks at it.")
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: tensorboard, wandb, ..., all or none."}
    )
    push_to_hub: bool = _option(False, "Publish the teacher at the end.")
    hub_model_id: str | None = _option(None, "Repository to publish to; default: the name of output_dir.")
    hub_private_repo: bool = _option(False, "Make that repository private.")

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("--output_dir is missing")
        if self.bf16 and self.fp16:
            raise ValueError("--bf16 and --fp16 exclude each other")
        if self.model_name_or_path and self.backbone:
            raise ValueError("--model_name_or_path and --backbone exclude each other: start weights have their own")
        if self.extend_epochs is not None and (self.extend_epochs < 1 or not self.resume_from_checkpoint):
            raise ValueError("--extend_epochs needs at least 1 epoch, and --resume_from_checkpoint")
        for name in ("seed", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"--drop_path_rate must be in [0, 1), got {self.drop_path_rate}")
        if self.max_steps == 0:
            raise ValueError("--max_steps must be at least 1, or -1 for all")
        if Path(self.output_dir).is_file():
            raise ValueError(f"--output_dir {self.output_dir} is a file, a folder was expected")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "monitor_steps",
                     "save_steps", "save_total_limit", "knn_epochs"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")

    @property
    def step_batch_size(self) -> int:
        """Frames of one step and process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def mixed_precision(self) -> str:
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"


def parse_arguments(
    argv: list[str] | None = None,
) -> tuple[PretrainingArguments, FrameArguments, CropConfig, DinoConfig, Path | DinoCheckpoint | None]:
    """The arguments, and what to resume from: a folder, the content of a full DINO checkpoint, or None.

    Options that are not given are those of the preset; in a resumed run those of the checkpoint.
    """
    parser = ArgumentParser((PretrainingArguments, FrameArguments, CropConfig, DinoConfig))
    given, _ = parser.parse_known_args(argv)  # first, what the defaults of the rest come from
    defaults = dict(PRESETS.get(given.preset, {}))
    resume = resume_point(Path(given.output_dir), given.resume_from_checkpoint) if given.output_dir else None
    if resume is not None and resume.is_file():
        resume = read_dino_checkpoint(resume)
        defaults |= dino_settings(resume) | crop_settings(resume)
        if "drop_path_rate" in resume.args:
            defaults["drop_path_rate"] = resume.args["drop_path_rate"]
    elif resume is not None:
        defaults |= read_record(resume)["options"]
    if given.extend_epochs is not None and not _is_in(resume, given.output_dir):
        # the recipe's warm-up is for a whole run, and could be all of this one
        defaults |= {"epochs": given.extend_epochs, "warmup_epochs": given.extend_epochs // 10}
        defaults["warmup_teacher_temp_epochs"] = 0
    known = {option.name for config in (CropConfig, DinoConfig, PretrainingArguments) for option in fields(config)}
    parser.set_defaults(**{name: value for name, value in defaults.items() if name in known})
    args, frames, crops, dino = parser.parse_args_into_dataclasses(argv)
    if args.extend_epochs is not None:
        if resume is None:
            raise ValueError(
                f"--extend_epochs: there is no checkpoint in {args.output_dir} to go on from; name one with "
                "--resume_from_checkpoint PATH"
            )
        dino = replace(dino, epochs=args.extend_epochs)
    return args, frames, crops, dino, resume


def _is_in(resume: Path | DinoCheckpoint | None, output_dir: str) -> bool:
    """Whether a checkpoint is one of the run in `output_dir`, which then goes on as it was."""
    return isinstance(resume, Path) and resume.resolve().parent == Path(output_dir).resolve()


def options_of(args: PretrainingArguments, crops: CropConfig, dino: DinoConfig) -> dict:
    """What a checkpoint records, and a run that goes on from it keeps."""
    return {**asdict(crops), **asdict(dino), **{name: getattr(args, name) for name in RECORDED}}
