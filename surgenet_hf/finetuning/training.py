"""What fine-tuning of every task shares: arguments, the Trainer, and training that resumes exactly."""

import argparse
import copy
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ..atomic import write_file
from ..checkpointing import (
    RECORD,
    RESUME,
    Termination,
    TrainingStopped,
    check_complete,
    compare_records,
    delete_later_checkpoints,
    delete_old_checkpoints,
    list_checkpoints,
    lock_run,
    read_record,
    resume_point,
    write_record,
)
from ..checkpoints.reading import check_finite
from ..cli.arguments import BACKGROUND_HELP, NO_TOKEN, ArgumentParser
from ..configuration_surgenet import BACKBONES, SurgeNetConfig
from ..data import NAMES
from ..data.identity import data_identity
from ..errors import UserError
from ..evaluation.evaluate import evaluate, write_results
from ..evaluation.reporting import summary, write_figures
from ..leakage import record_finetuning
from ..models import resolve_model
from ..privacy import mask_tokens
from ..publishing.upload import check_login, push_model

logger = logging.get_logger(__name__)

TASK_METRIC = "task"  # stands for the metric that `SurgeNetTrainer` is told; None would become the loss
AUGMENTATIONS = ("none", "light", "strong")
NONFINITE_STEPS = 10  # in a row, of fp16, whose loss scaling skips a step now and then
# of TrainingArguments, what weights and selected checkpoint depend on
RECORDED = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "dataloader_drop_last",
    "ignore_data_skip",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "eval_strategy",
    "eval_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)
# of our own arguments: weights come from the checkpoint, data is compared by its contents, the split is evaluated last
NOT_RECORDED = ("model_name_or_path", "config_name", "dataset", "data_dir", "eval_split")
NEW = "start a new run in another --output_dir"


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
        metadata={"help": "Side that frames are resized to, in pixels (256: the authors' for segmentation)."},
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
    dataset: str = field(default="", metadata={"help": f"Name of the data set. {NAMES}"})
    data_dir: str | None = field(default=None, metadata={"help": "Where it lies."})
    data_split: str | None = field(
        default=None,
        metadata={"help": "Split protocol, for data sets that have several, e.g. 40/8/32 of cholec80-phase."},
    )
    background_class: str | None = field(default=None, metadata={"help": BACKGROUND_HELP})

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("--dataset is missing")

    def options(self) -> dict:
        """Return the arguments for the loader of the data set."""
        options = {"split": self.data_split, "background_class": self.background_class}
        return {name: value for name, value in options.items() if value}


@dataclass
class SurgeNetTrainingArguments(TrainingArguments):
    """TrainingArguments with other defaults: AdamW, cosine, evaluation and checkpoint each epoch, the best kept."""

    output_dir: str = field(default="", metadata={"help": "Folder for checkpoints, the model, results and figures."})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak of AdamW's learning rate (1e-4: the authors' for segmentation alone)."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule (cosine: the authors' for segmentation)."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay (0.01: AdamW's own default)."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Epochs (the authors do not publish theirs)."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Frames per step and device."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate, to choose the checkpoint."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save; as eval_strategy."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept; always the last two, and the best when each was saved."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    metric_for_best_model: str | None = field(
        default=TASK_METRIC, metadata={"help": "Metric that chooses the checkpoint; task: the task's main one."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Frames have no columns to remove."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume the patience of early stopping, too."}
    )
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
def mendable_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Exit with the message on user errors: exceptions of `kinds`, by default ImportError, OSError, and ValueError."""
    kinds = kinds or (ImportError, OSError, ValueError)
    try:
        yield
    except kinds as error:
        sys.exit(mask_tokens(f"error: {error}"))


@contextmanager
def running(args: TrainingArguments) -> Iterator[None]:
    """Lock the output folder of a run. Exit with the message if another run holds it, or if training stops."""
    with mendable_errors(UserError), lock_run(args.output_dir, args.process_index == 0):
        yield


def parse_arguments(argv: list[str] | None, *own: type, training: type = SurgeNetTrainingArguments) -> tuple:
    """ModelArguments, DataArguments, the script's `own`, those of training, and whether to push; the seed is set.

    Trainer itself never pushes: `publish_results` does so at the end, with our card.

    Raises:
        ValueError: of the arguments.
        OSError: --push_to_hub, and the Hub does not know the user: that shows now, not after the training.
    """
    parser = ArgumentParser(
        (ModelArguments, DataArguments, *own, training),
        description=sys.modules["__main__"].__doc__,  # of the script
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    *others, training_args = parser.parse_args_into_dataclasses(argv)
    push, training_args.push_to_hub = training_args.push_to_hub, False
    if push:
        check_login()
    set_seed(training_args.seed)
    return *others, training_args, push


def load_data(load: Callable, data_args: DataArguments, training_args: TrainingArguments):
    """Load a data set; the first process prints the notes on it.

    Args:
        load: of `surgenet_hf.data`.

    Raises:
        UserError: the data has no validation videos, but the arguments need them to select the checkpoint.
    """
    data = load(data_args.dataset, data_args.data_dir, **data_args.options())
    if training_args.process_index == 0:
        print(*data.notes, sep="\n")
    if "validation" not in data.splits and training_args.eval_strategy != "no":
        raise UserError(
            f"{data.name} has no validation videos in the split protocol {data.split_protocol}, so nothing can select "
            "the checkpoint. Choose a --data_split with validation videos (of Cholec80: 32/8/40 or 40/8/32), or keep "
            "the last checkpoint with --eval_strategy no --load_best_model_at_end false"
        )
    return data


def prepare(
    load: Callable,
    build_model: Callable,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> tuple:
    """Load what a task in one stage trains: (data, model, processor).

    Args:
        load: as in `load_data`.
        build_model: of the task's module.

    Raises:
        ImportError, OSError, ValueError: of data and model, or an earlier run is in the way (`resume_point`).
    """
    resume_point(Path(training_args.output_dir), training_args.resume_from_checkpoint)
    data = load_data(load, data_args, training_args)
    model, processor = build_model(source_of(model_args), data, model_args.image_size)
    if model_args.freeze_backbone:
        freeze_backbone(model)
    return data, model, processor


def source_of(args: ModelArguments) -> str | SurgeNetConfig:
    """What to start from, see `resolve_model`; random weights of full size train with drop path."""
    source = resolve_model(args.model_name_or_path, args.config_name)
    if isinstance(source, SurgeNetConfig) and args.config_name != "tiny":
        source.drop_path_rate = 0.1
    return source


class SetEpoch(TrainerCallback):
    """Tell the training frames the epoch: accelerate's data loader does so only in a run of one process."""

    def __init__(self, frames):
        self.frames = frames

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.frames.set_epoch(int(state.epoch))


class EstimateDuration(TrainerCallback):
    """Print how long training will take, after its first steps."""

    WARMUP, MEASURED = 2, 5  # steps; the first ones are slower

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun_at_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - self.begun_at_step
        if done == self.WARMUP:
            self.started = time.monotonic()
        if done == self.WARMUP + self.MEASURED and state.is_world_process_zero:
            seconds = (time.monotonic() - self.started) / self.MEASURED
            left = state.max_steps - state.global_step
            tqdm.write(
                f"Training will take about {format_duration(seconds * left)}, plus evaluations: {left:,} of "
                f"{state.max_steps:,} steps left, {seconds:.2g} s each"
            )


def format_duration(seconds: float) -> str:
    """Write a duration for people, e.g. "45 s", "12 min", or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class SurgeNetTrainer(Trainer):
    """Trainer with our losses, learning rates that fall with depth, and runs that resume exactly or not at all.

    A checkpoint counts once its record is written (`surgenet_hf.checkpointing`). SIGTERM saves one and exits.

    Args:
        data: what it trains on. Its videos are recorded in the model's config (`surgenet_hf.leakage`).
        record: what the run is made of, see `run_record`; a resumed run must have the same. None: not compared.
        loss: `loss(outputs, labels) -> scalar`; None: the model's own.
        loss_on: which of the model's outputs the loss takes.
        task_metric: what chooses the checkpoint, unless the arguments name another.
        layer_decay, early_stopping_patience: see `ModelArguments`.
    """

    def __init__(
        self,
        *,
        args,
        data,
        task_metric,
        record=None,
        loss=None,
        loss_on="logits",
        layer_decay=1.0,
        early_stopping_patience=None,
        **kwargs,
    ):
        if args.metric_for_best_model == TASK_METRIC:
            args.metric_for_best_model = task_metric
        keep, args.save_total_limit = args.save_total_limit, None  # old checkpoints go once the new one has its record
        super().__init__(args=args, **kwargs)
        selects = args.load_best_model_at_end or bool(early_stopping_patience)
        record_finetuning(self.model.config, data, selects and args.eval_strategy != "no")
        self.record = record or {}
        self.loss = loss
        self.loss_on = loss_on
        self.layer_decay = layer_decay
        self.nonfinite_steps = 0
        if early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience))
        self.add_callback(EstimateDuration())
        self.checkpoints = RecordedCheckpoints(self.record, keep)
        self.add_callback(self.checkpoints)

    def train(self):
        """Train from the beginning or from the checkpoint that the arguments request.

        Raises:
            UserError: the output folder or the checkpoint does not allow it, see `checkpointing.resume_point`.
            TrainingStopped: the loss or the weights are not finite.
            SystemExit: after SIGTERM, with a checkpoint saved.
        """
        output_dir = Path(self.args.output_dir)
        checkpoint = resume_point(output_dir, self.args.resume_from_checkpoint)
        if checkpoint is not None:
            compare_records(
                read_record(checkpoint), self.record, checkpoint, f"Give the same options and data, or {NEW}"
            )
            if best_checkpoint(checkpoint) and self.args.load_best_model_at_end:
                # the folder may have been moved, and without this one the run would end with other weights
                self.checkpoints.best = best_checkpoint(checkpoint)
                check_complete(self.checkpoints.best)
        elif self.record and self.args.process_index == 0:
            write_file(output_dir / RECORD, json.dumps(self.record, indent=2).encode())
        with self.checkpoints.termination:
            return super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.nonfinite_steps = 0 if torch.isfinite(loss) else self.nonfinite_steps + 1
        if self.nonfinite_steps >= (NONFINITE_STEPS if self.args.fp16 else 1):
            self._stop(f"the loss of step {self.state.global_step + 1} is {loss.item()}")
        return loss

    def evaluate(self, *args, **kwargs):
        self._check_weights()
        return super().evaluate(*args, **kwargs)

    def save_model(self, *args, **kwargs):
        self._check_weights()
        super().save_model(*args, **kwargs)

    def _check_weights(self):
        try:
            check_finite(trained_model(self).state_dict(), "the model")
        except ValueError as error:
            self._stop(str(error))

    def _stop(self, reason: str):
        last = [None, *list_checkpoints(Path(self.args.output_dir))][-1]
        raise TrainingStopped(
            f"training has diverged: {reason}. The last checkpoint is {last or 'none'}. Lower --learning_rate, or use "
            "--bf16 instead of --fp16"
        )

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


class RecordedCheckpoints(TrainerCallback):
    """Complete the checkpoints of a Trainer with their record, delete old ones, and save on SIGTERM.

    Args:
        record: of the run.
        keep: number of checkpoints; the last two, and the best at the time of each, are always kept. None: all.
    """

    def __init__(self, record: dict, keep: int | None):
        self.record, self.keep = record, keep
        self.best: Path | None = None  # of the run that is resumed
        self.termination = Termination()
        self.terminated = False

    def on_train_begin(self, args, state, control, **kwargs):
        if self.best is not None:
            state.best_model_checkpoint = str(self.best)
        if args.should_save:
            delete_later_checkpoints(Path(args.output_dir), state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        # After the last step of an epoch, its evaluation comes first: a resumed run would begin with the next epoch.
        if not float(state.epoch).is_integer():
            self._ask_to_save(control, control.should_log or control.should_save)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._ask_to_save(control, True)

    def _ask_to_save(self, control, agree: bool):
        """Save and stop after SIGTERM. Several processes agree on the step, when they exchange numbers anyway."""
        state = PartialState()
        if state.num_processes == 1:
            self.terminated = self.termination.received
        elif agree:
            self.terminated = any(gather_object([self.termination.received]))
        if self.terminated:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # each process writes the state of its random number generators
        output_dir = Path(args.output_dir)
        if args.should_save:
            previous, last = [None, *list_checkpoints(output_dir)][-2:]
            write_record(last, self.record)
            # also the best at the time of the previous one, to which a run falls back if the last is damaged
            kept = {path for path in (previous, last) if path is not None}
            delete_old_checkpoints(output_dir, self.keep, kept | set(filter(None, map(best_checkpoint, kept))))
        PartialState().wait_for_everyone()
        if self.terminated:
            logger.warning(f"Stopped by SIGTERM after step {state.global_step}: {RESUME}")
            sys.exit(128 + signal.SIGTERM)


def best_checkpoint(checkpoint: Path) -> Path | None:
    """The checkpoint that was the best so far when this one was saved; None if none was evaluated."""
    state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
    return checkpoint.with_name(f"checkpoint-{state.best_global_step}") if state.best_global_step else None


def run_record(model, data, training_args: TrainingArguments, *others, **facts) -> dict:
    """What a run is made of: {name: value} of model, data, and options. A resumed run must have the same.

    Args:
        others: argument dataclasses of the task.
        facts: further values.
    """
    config = {
        k: v for k, v in model.config.to_diff_dict().items() if k not in ("transformers_version", "_name_or_path")
    }
    options = {k: v for arguments in others for k, v in asdict(arguments).items() if k not in NOT_RECORDED}
    return {
        **options,
        **{name: getattr(training_args, name) for name in RECORDED},
        **{f"data.{split}": identity for split, identity in data_identity(data).items()},
        **{f"model.{name}": value for name, value in config.items()},
        **facts,
    }


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


def stage_arguments(
    args: TrainingArguments, output_dir: str, results_dir: str | None = None, **changes
) -> TrainingArguments:
    """Return the arguments of one stage of several, which is resumed only if it has begun.

    Args:
        args: of the run.
        output_dir: folder for the checkpoints of the stage.
        results_dir: folder for its model, results and figures; default: `output_dir`.
        changes: other arguments of the stage.

    Raises:
        UserError: an earlier run has begun this stage, and no resuming was requested.
    """
    args = copy.deepcopy(args)
    args.output_dir = output_dir
    for name, value in changes.items():
        setattr(args, name, value)
    results_dir = results_dir or output_dir
    if finished(results_dir) and args.resume_from_checkpoint is None:
        raise UserError(f"{results_dir} is from an earlier run: {RESUME}")
    if not list_checkpoints(Path(output_dir)):
        args.resume_from_checkpoint = None
    resume_point(Path(output_dir), args.resume_from_checkpoint)
    return args


def finished(output_dir: str) -> bool:
    """Whether a run has written its results there, which is the last thing that it does."""
    return Path(output_dir, "results.json").is_file()


def same_run(output_dir: str, record: dict) -> None:
    """Check that a finished stage had the options and data that are now given.

    Raises:
        UserError: it had others, or it does not say which.
    """
    path = Path(output_dir, RECORD)
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    compare_records(recorded, record, Path(output_dir), f"Give the same options and data, or {NEW}")


def trained_model(trainer: Trainer) -> nn.Module:
    """The model as it will be saved: without the autocast that accelerate wraps around it for --bf16 and --fp16."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def publish_results(
    trainer: Trainer, processor, data, split: str | None, push: bool = False, output_dir: str | None = None
) -> None:
    """Save the model, evaluate it and write model/, results.json and figures; with `push`, to the Hub with our card.

    Args:
        split: to evaluate on; None: test where the data has one, else validation.
        push: upload the model as --hub_model_id, or else under the name of the output folder.
        output_dir: default: the folder of the checkpoints.
    """
    args, model = trainer.args, trained_model(trainer)
    output_dir = Path(output_dir or args.output_dir)
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
                    output_dir.name,
                    getattr(args, "publish_video_names", False),
                )
            print(f"Published {repo_id}")
    trainer.accelerator.wait_for_everyone()
