"""Trainer of all tasks, with exactly resumable runs: losses, learning rates, checkpoints, and SIGTERM."""

import json
import logging
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainerState

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
    read_record,
    resume_point,
    write_record,
)
from ..checkpoints.reading import check_finite
from ..distributed import any_process, process_state, wait_for_everyone
from ..errors import UserError
from ..heads import backbone_parameters
from ..leakage import record_finetuning
from .arguments import TASK_METRIC

logger = logging.getLogger(__name__)

NONFINITE_STEPS = 10  # consecutive steps of fp16, whose loss scaling occasionally skips a step
NEW = "start a new run in another --output_dir"


class SurgeNetTrainer(Trainer):
    """Trainer that records the settings of a run, and only resumes a run with the same settings.

    A checkpoint is valid once its record is written (`surgenet_hf.checkpointing`). After SIGTERM, the trainer saves a
    checkpoint and exits.

    Args:
        args: `TrainingArguments`.
        data: dataset that the model is trained on. Its videos are recorded in the model's config
            (`surgenet_hf.leakage`).
        task_metric: metric that selects the checkpoint, unless the arguments name another.
        record: {name: value} of the settings of the run. A resumed run must have the same. None: not compared.
        loss: `loss(output, labels) -> scalar`, a mean over the batch. None: the loss of the model.
        loss_on: name of the model output that `loss` takes.
        layer_decay: factor of the learning rate from each block to the previous one, see `layer_groups`.
        early_stopping_patience: number of evaluations without improvement after which training stops.
        kwargs: arguments of `Trainer`.
    """

    def __init__(
        self,
        *,
        args,
        data,
        task_metric: str,
        record: dict | None = None,
        loss: Callable | None = None,
        loss_on: str = "logits",
        layer_decay: float = 1.0,
        early_stopping_patience: int | None = None,
        **kwargs,
    ):
        if args.metric_for_best_model == TASK_METRIC:
            args.metric_for_best_model = task_metric
        keep, args.save_total_limit = args.save_total_limit, None  # the callback deletes checkpoints after the record
        args.average_tokens_across_devices = False  # the losses are means over pixels or frames
        if loss is not None:
            kwargs["compute_loss_func"] = self._loss_function(loss, loss_on)
        super().__init__(args=args, **kwargs)
        selects = args.load_best_model_at_end or bool(early_stopping_patience)
        record_finetuning(self.model.config, data, selects and args.eval_strategy != "no")
        self.record = record or {}
        self.layer_decay = layer_decay
        self.nonfinite_steps = 0
        if early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience))
        self.duration = EstimateDuration()
        self.add_callback(self.duration)
        if args.disable_tqdm:  # otherwise the progress bar shows the losses
            self.remove_callback(PrinterCallback)
            self.add_callback(LogLosses())
        self.checkpoints = RecordedCheckpoints(self.record, keep)
        self.add_callback(self.checkpoints)

    def _loss_function(self, loss: Callable, name: str) -> Callable:
        """Return the loss as a `compute_loss_func`, which must divide by the accumulation steps itself."""

        def compute_loss(outputs, labels, num_items_in_batch=None):
            value = loss(outputs[name].float(), labels)
            return value / self.current_gradient_accumulation_steps if self.model.training else value

        return compute_loss

    def train(self):
        """Train from the beginning or from the checkpoint that the arguments request.

        Raises:
            UserError: the output folder or the checkpoint does not allow it, see `checkpointing.resume_point`.
            TrainingStopped: the loss or the weights are not finite.
            SystemExit: SIGTERM was received and a checkpoint was saved.
        """
        output_dir = Path(self.args.output_dir)
        checkpoint = resume_point(output_dir, self.args.resume_from_checkpoint)
        if checkpoint is not None:
            compare_records(
                read_record(checkpoint), self.record, checkpoint, f"Give the same options and data, or {NEW}"
            )
            if best_checkpoint(checkpoint) and self.args.load_best_model_at_end:
                # The folder may have been moved. Without the best checkpoint, the run would end with other weights.
                self.checkpoints.best = best_checkpoint(checkpoint)
                check_complete(self.checkpoints.best)
        elif self.record and self.args.process_index == 0:
            write_file(output_dir / RECORD, json.dumps(self.record, indent=2).encode())
        if checkpoint is not None:
            state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
            if state.global_step >= state.max_steps:  # Trainer would train one more step
                self.state = state
                self._load_from_checkpoint(str(self.checkpoints.best or checkpoint))
                return None
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

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Load the weights of a checkpoint, and check that they are all there.

        `Trainer` copies tensors by the names in the file and only warns about those that do not match. For DINOv2,
        DINOv3, Swin, and others, `save_pretrained` writes other names than those of the model, so it would omit the
        weights of all attention layers. `from_pretrained` converts the names.
        """
        model = self.model if model is None else model
        loaded, report = type(model).from_pretrained(
            resume_from_checkpoint, dtype=model.dtype, output_loading_info=True
        )
        wrong = sorted(map(str, [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]))
        if wrong:
            raise UserError(
                f"{resume_from_checkpoint} does not fit the model: {len(wrong)} tensors are missing, unexpected, or "
                f"have another shape ({', '.join(wrong[:3])}). Resume from another checkpoint, or {NEW}"
            )
        model.load_state_dict(loaded.state_dict(), strict=True)

    def _load_best_model(self):
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _check_weights(self):
        try:
            check_finite(self.model.state_dict(), "the model")
        except ValueError as error:
            self._stop(str(error))

    def _stop(self, reason: str):
        last = [None, *list_checkpoints(Path(self.args.output_dir))][-1]
        raise TrainingStopped(
            f"training has diverged: {reason}. Last checkpoint: {last or 'none'}. Lower --learning_rate, or use "
            "--bf16 instead of --fp16"
        )

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.layer_decay < 1:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = layer_groups(model, self.layer_decay, self.args.learning_rate, self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
        return super().create_optimizer(model)


class SetEpoch(TrainerCallback):
    """Callback that sets the epoch of the training frames. Accelerate's data loader does so only with one process."""

    def __init__(self, frames):
        self.frames = frames

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.frames.set_epoch(int(state.epoch))


class LogLosses(TrainerCallback):
    """Callback that logs losses, learning rates, and metrics of the validation split."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = {name: f"{value:.4g}" for name, value in (logs or {}).items() if isinstance(value, int | float)}
        logger.info(values)


class EstimateDuration(TrainerCallback):
    """Callback that times the first steps, and logs an estimate of the training time.

    Attributes:
        seconds: seconds per step after `WARMUP` + `MEASURED` steps, before that None.
    """

    WARMUP, MEASURED = 2, 5  # steps; the first ones are slower
    seconds: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - self.first_step
        if done == self.WARMUP:
            self.started = time.monotonic()
        if done == self.WARMUP + self.MEASURED:
            self.seconds = (time.monotonic() - self.started) / self.MEASURED
            left = state.max_steps - state.global_step
            if left:
                logger.info(
                    f"Training will take about {format_duration(self.seconds * left)}, not counting evaluations: "
                    f"{left:,} of {state.max_steps:,} steps are left, at {self.seconds:.2g} s per step"
                )


class RecordedCheckpoints(TrainerCallback):
    """Callback that adds records to the checkpoints of a Trainer, deletes old ones, and saves on SIGTERM.

    Args:
        record: record of the run.
        keep: number of checkpoints to keep. None: all. The last two checkpoints are always kept, and for each of them
            the checkpoint that was the best when it was saved.
    """

    def __init__(self, record: dict, keep: int | None):
        self.record, self.keep = record, keep
        self.best: Path | None = None  # best checkpoint of the run that is resumed
        self.termination = Termination()
        self.terminated = False

    def on_train_begin(self, args, state, control, **kwargs):
        if self.best is not None:
            state.best_model_checkpoint = str(self.best)
        if args.should_save:
            delete_later_checkpoints(Path(args.output_dir), state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        # At the end of an epoch, save after its evaluation, because a resumed run would start with the next epoch.
        if not float(state.epoch).is_integer():
            self._ask_to_save(control, control.should_log or control.should_save)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._ask_to_save(control, True)

    def _ask_to_save(self, control, agree: bool):
        """Request a checkpoint after SIGTERM.

        Several processes agree on it only at steps where they communicate anyway.
        """
        if agree or process_state().num_processes == 1:
            self.terminated = any_process(self.termination.received)
        if self.terminated:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        wait_for_everyone()  # each process writes the state of its random number generators
        output_dir = Path(args.output_dir)
        if args.should_save:
            previous, last = [None, *list_checkpoints(output_dir)][-2:]
            write_record(last, self.record)
            # A run falls back to the previous checkpoint if the last is damaged, so also keep the best one at that
            # time.
            kept = {path for path in (previous, last) if path is not None}
            delete_old_checkpoints(output_dir, self.keep, kept | set(filter(None, map(best_checkpoint, kept))))
        wait_for_everyone()
        if self.terminated:
            logger.warning(f"Stopped by SIGTERM after step {state.global_step}: {RESUME}")
            sys.exit(128 + signal.SIGTERM)


def best_checkpoint(checkpoint: Path) -> Path | None:
    """Return the checkpoint that was the best when this one was saved, or None if none was evaluated."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return checkpoint.with_name(f"checkpoint-{state.best_global_step}") if state.best_global_step else None


def trained_model(trainer: Trainer) -> nn.Module:
    """Return the model at the end of a training, without the autocast wrapper of accelerate for --bf16 and --fp16.

    The wrapper is removed from the trainer's model too, so further steps would compute in float32.
    """
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def layer_groups(model: nn.Module, layer_decay: float, learning_rate: float, weight_decay: float) -> list[dict]:
    """Return parameter groups whose learning rate decreases by `layer_decay` with each block, from head to stem.

    Biases and scales, which have one dimension, get no weight decay.
    """
    blocks = [
        f"stages.{i}.blocks.{j}." for i, depth in enumerate(model.base_model.config.depths) for j in range(depth)
    ]
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = re.search(r"encoder\.(stages\.(\d)\.(blocks\.\d+\.)?)?", name)
        if found is None:
            layer = len(blocks) + 1  # head
        elif found.group(1) is None:
            layer = 0  # stem
        else:
            # Layers of a stage outside of its blocks belong to its first block.
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


def freeze_backbone(model) -> None:
    """Freeze the backbone (`heads.backbone_parameters`), so that only the head is trained.

    Raises:
        UserError: the model has no separate head.
    """
    if model.config.model_type.startswith("eomt"):
        raise UserError("EoMT has no separate head: omit --freeze_backbone, or choose another --head")
    for parameter in backbone_parameters(model).values():
        parameter.requires_grad_(False)


def balanced_weights(counts: torch.Tensor) -> torch.Tensor:
    """Return weights (k,) proportional to 1 / counts (k,), with mean 1 over the classes that occur.

    Classes that do not occur have weight 0.
    """
    counts = counts.double()
    weights = torch.where(counts > 0, counts.sum() / counts.clamp(min=1), 0.0)
    return (weights / weights[counts > 0].mean()).float()


def format_duration(seconds: float) -> str:
    """Format a duration for messages, e.g. "45 s", "12 min", or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
