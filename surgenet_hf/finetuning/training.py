"""What fine-tuning of every task shares: arguments, the Trainer, and training that resumes exactly."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ..arguments import NO_TOKEN, ArgumentParser
from ..checkpoints.loading import find_source
from ..checkpoints.publishing import check_login, push_model
from ..configuration_surgenet import BACKBONES, SurgeNetConfig
from ..evaluation import evaluate, write_results
from ..privacy import mask_tokens
from ..reporting import summary, write_figures

logger = logging.get_logger(__name__)

TASK_METRIC = "task"  # stands for the metric that `SurgeNetTrainer` is told; None would become the loss
AUGMENTATIONS = ("none", "light", "strong")


@dataclass
class ModelArguments:
    """What is trained, and how it differs from Trainer's defaults."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model to start from: a published checkpoint by its name, a Hub repository, or a folder."},
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "Instead of it, a backbone with random weights.", "choices": [*BACKBONES, "tiny"]},
    )
    image_size: int = field(
        default=256,
        metadata={"help": "Side that frames are resized to, in pixels (256: the authors' protocol)."},
    )
    augmentation: str = field(
        default="light",
        metadata={"help": "Augmentation of the training frames.", "choices": AUGMENTATIONS},
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train the head alone."})
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Factor on the learning rate from each block to the one before it; 1: the same for all."},
    )
    class_weights: str = field(
        default="none",
        metadata={
            "help": "Of the loss; balanced: 1 / frequency.",
            "choices": ["none", "balanced"],
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without improvement."}
    )
    eval_split: str | None = field(
        default=None,
        metadata={"help": "Split of the published figures; left out: test where there is one, else validation."},
    )

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.config_name is None):
            raise ValueError("give either --model_name_or_path or --config_name")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay must be in (0, 1], got {self.layer_decay}")

    def options(self) -> dict:
        """For `finetune` of a task on frames."""
        names = ("augmentation", "layer_decay", "early_stopping_patience")
        return {name: getattr(self, name) for name in names}


@dataclass
class DataArguments:
    dataset: str = field(default="", metadata={"help": "Name of the data set."})
    data_dir: str | None = field(default=None, metadata={"help": "Where it lies."})
    data_split: str | None = field(
        default=None,
        metadata={"help": "Of the data sets with several splits by video, e.g. 40/8/32 of cholec80-phase."},
    )

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("--dataset is missing")


@dataclass
class SurgeNetTrainingArguments(TrainingArguments):
    """TrainingArguments with other defaults: AdamW, cosine, evaluation and checkpoint each epoch, the best kept."""

    output_dir: str = field(default="", metadata={"help": "Folder for checkpoints, the model, results and figures."})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak of AdamW's learning rate (1e-4: the authors' for segmentation)."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule (cosine: the authors')."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay (0.01: AdamW's own default)."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Epochs (the authors do not publish theirs)."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Frames per step and device."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate, to choose the checkpoint."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save; as eval_strategy."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept: the best and the last."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    metric_for_best_model: str | None = field(
        default=TASK_METRIC, metadata={"help": "Metric that chooses the checkpoint; task: the task's main one."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Frames have no columns to remove."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log entries."})
    publish_video_names: bool = field(
        default=False,
        metadata={"help": "With --push_to_hub, publish the real names of your own videos; left out: neutral names."},
    )

    def __post_init__(self):
        if self.hub_token is not None:
            raise ValueError(f"hub_token is set: {NO_TOKEN}")
        if not self.output_dir:
            raise ValueError("--output_dir is missing")
        if self.use_cpu is False and not torch.accelerator.is_available():
            self.use_cpu = True  # else Trainer refuses bf16 there
        super().__post_init__()


@contextmanager
def mendable_errors() -> Iterator[None]:
    """What the user can mend ends the script, and the message is enough."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        sys.exit(mask_tokens(f"error: {error}"))


def parse_arguments(argv: list[str] | None, *own: type, training: type = SurgeNetTrainingArguments) -> tuple:
    """ModelArguments, DataArguments, the script's `own`, those of training, and whether to push; the seed is set.

    Trainer itself never pushes: `publish_results` does so at the end, with our card.

    Raises:
        ValueError: of the arguments.
        OSError: --push_to_hub, and the Hub does not know the user: that shows now, not after the training.
    """
    parser = ArgumentParser((ModelArguments, DataArguments, *own, training))
    *others, training_args = parser.parse_args_into_dataclasses(argv)
    push, training_args.push_to_hub = training_args.push_to_hub, False
    if push:
        check_login()
    set_seed(training_args.seed)
    return *others, training_args, push


def load_data(load: Callable, data_args: DataArguments, training_args: TrainingArguments):
    """The data set as `load`, of `surgenet_hf.data`, gives it; the first process prints the notes on it."""
    options = {"split": data_args.data_split} if data_args.data_split else {}
    data = load(data_args.dataset, data_args.data_dir, **options)
    if training_args.process_index == 0:
        print(*data.notes, sep="\n")
    return data


def prepare(
    load: Callable,
    build_model: Callable,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> tuple:
    """What a task in one stage trains: (data, model, processor).

    Args:
        load: as in `load_data`.
        build_model: of the task's module.

    Raises:
        ImportError, OSError, ValueError: of data and model, or an earlier run is in the way (`resume_point`).
    """
    resume_point(training_args)
    data = load_data(load, data_args, training_args)
    model, processor = build_model(source_of(model_args), data, model_args.image_size)
    if model_args.freeze_backbone:
        freeze_backbone(model)
    return data, model, processor


def source_of(args: ModelArguments) -> str | SurgeNetConfig:
    """What to start from, see `find_source`; random weights of full size train with drop path."""
    source = find_source(args.model_name_or_path, args.config_name)
    if isinstance(source, SurgeNetConfig) and args.config_name != "tiny":
        source.drop_path_rate = 0.1
    return source


class SetEpoch(TrainerCallback):
    """Tell the training frames the epoch: accelerate's data loader does so only in a run of one process."""

    def __init__(self, frames):
        self.frames = frames

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.frames.set_epoch(int(state.epoch))


class SurgeNetTrainer(Trainer):
    """Trainer with a loss of ours and learning rates that fall with depth.

    Args:
        loss: `loss(outputs, labels) -> scalar`; None: the model's own.
        loss_on: which of the model's outputs the loss takes.
        task_metric: what chooses the checkpoint, unless the arguments name another.
        layer_decay, early_stopping_patience: see `ModelArguments`.
    """

    def __init__(
        self,
        *,
        args,
        task_metric,
        loss=None,
        loss_on="logits",
        layer_decay=1.0,
        early_stopping_patience=None,
        **kwargs,
    ):
        if args.metric_for_best_model == TASK_METRIC:
            args.metric_for_best_model = task_metric
        super().__init__(args=args, **kwargs)
        self.loss = loss
        self.loss_on = loss_on
        self.layer_decay = layer_decay
        if early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = self.loss(outputs[self.loss_on].float(), labels)
        return (loss, {"loss": loss, **outputs}) if return_outputs else loss

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.layer_decay < 1:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = layer_groups(model, self.layer_decay, self.args.learning_rate, self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
        return super().create_optimizer(model)


def resume_point(args: TrainingArguments) -> str | None:
    """The checkpoint to go on from: the one asked for, or the last in `output_dir` with --resume_from_checkpoint true.

    A run that was killed before its first checkpoint begins anew.

    Raises:
        ValueError: there is a checkpoint, and nobody asked to go on from it.
    """
    last = last_checkpoint(args.output_dir)
    asked = args.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        if last is not None:
            raise ValueError(
                f"{last} is from an earlier run: go on from it with --resume_from_checkpoint true, or name another "
                "--output_dir"
            )
        return None
    if str(asked).lower() != "true":
        return str(asked)
    if last is None:
        logger.warning(f"{args.output_dir} holds no checkpoint yet: beginning anew")
    return last


def last_checkpoint(output_dir: str) -> str | None:
    """The last checkpoint that is whole: Trainer writes its state last, and a killed run may leave less."""
    folders = Path(output_dir).glob("checkpoint-*")
    whole = [folder for folder in folders if (folder / "trainer_state.json").is_file()]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def layer_groups(model: nn.Module, layer_decay: float, learning_rate: float, weight_decay: float) -> list[dict]:
    """Parameter groups whose learning rate falls by `layer_decay` with each block from the head down to the stem.

    Biases and scales (one dimension) are not decayed.
    """
    blocks = [
        f"stages.{i}.blocks.{j}." for i, depth in enumerate(model.base_model.config.depths) for j in range(depth)
    ]
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = re.search(r"encoder\.(stages\.(\d)\.(blocks\.\d+\.)?)?", name)
        if found is None:
            layer = len(blocks) + 1  # a head
        elif found.group(1) is None:
            layer = 0  # the stem
        else:
            # what stands in a stage outside its blocks goes with the stage's first
            block = found.group(1) if found.group(3) else f"stages.{found.group(2)}.blocks.0."
            layer = blocks.index(block) + 1
        decayed = parameter.dim() > 1
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (len(blocks) + 1 - layer),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def freeze_backbone(model: nn.Module) -> None:
    """Leave only the head to be trained: the pooled embedding's norm is part of the backbone."""
    model.base_model.requires_grad_(False)


def balanced_weights(counts: torch.Tensor) -> torch.Tensor:
    """Weights (k,) proportional to 1 / counts (k,), with mean 1 over the classes that occur; 0 for the others."""
    counts = counts.double()
    weights = torch.where(counts > 0, counts.sum() / counts.clamp(min=1), 0.0)
    return (weights / weights[counts > 0].mean()).float()


def stage_arguments(args: TrainingArguments, output_dir: str, **changes) -> TrainingArguments:
    """The arguments of one stage of several, which is resumed only if it has begun.

    Raises:
        ValueError: an earlier run has begun this stage, and nobody asked to go on from it.
    """
    args.output_dir = output_dir
    for name, value in changes.items():
        setattr(args, name, value)
    if last_checkpoint(output_dir) is None:
        if finished(output_dir) and args.resume_from_checkpoint is None:
            raise ValueError(f"{output_dir} is from an earlier run: name another --output_dir")
        args.resume_from_checkpoint = None
    resume_point(args)
    return args


def finished(output_dir: str) -> bool:
    """Whether a run has written its results there: the last thing that it does."""
    return Path(output_dir, "results.json").is_file()


def trained_model(trainer: Trainer) -> nn.Module:
    """The model as it will be saved: without the autocast that accelerate wraps around it for --bf16 and --fp16."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def publish_results(
    trainer: Trainer,
    processor,
    data,
    split: str | None,
    push: bool = False,
    name: str | None = None,
    publish_video_names: bool = False,
) -> None:
    """Save the model, evaluate it and write model/, results.json and figures; with `push`, to the Hub with our card.

    Args:
        split: of the figures; None: test where the data has one, else validation.
        push: upload it as --hub_model_id, or else as `name`.
        name: default: that of the output folder.
        publish_video_names: upload the real names of the user's own videos.
    """
    args, model = trainer.args, trained_model(trainer)
    output_dir = Path(args.output_dir)
    split = split or ("test" if "test" in data.splits else "validation")
    evaluation = evaluate(model, processor, data, split, args.per_device_eval_batch_size, seed=args.seed)
    if args.process_index == 0:
        model.save_pretrained(output_dir / "model")
        processor.save_pretrained(output_dir / "model")
        evaluation.results["model"]["name"] = str(output_dir / "model")
        write_figures(evaluation, model, processor, data, split, output_dir)
        write_results(evaluation.results, output_dir / "results.json")
        print(summary(evaluation.results), f"Written to {output_dir}: model, results.json, figures", sep="\n")
        if push:
            with mendable_errors():
                repo_id = push_model(
                    output_dir / "model",
                    args.hub_model_id,
                    args.hub_private_repo,
                    name or output_dir.name,
                    publish_video_names,
                )
            print(f"Published {repo_id}")
    trainer.accelerator.wait_for_everyone()
