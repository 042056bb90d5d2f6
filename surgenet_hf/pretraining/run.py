"""Pretraining loop on Accelerate, in one process or several. On a CPU, a resumed run gives exactly the same results.

A run writes to its `output_dir`

    checkpoint-STEP/       to resume from, see `state`
    model/                 after each epoch: the teacher with its image processor and card; loads with AutoModel
    best_model/            the same for the epoch with the best k-NN metric, if there is one
    history.jsonl          an entry each `logging_steps`, and one for the k-NN metrics of each epoch
    pretraining.png        the same as curves
    unreadable_frames.txt  frames that could not be read
    checkpointEPOCH.pth    at the end, if requested: a full DINO checkpoint of the original format

All random draws are functions of (seed, epoch, position) or of (seed, step, process). The loop waits for the device
only to log and to check for a collapse.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from tqdm.auto import tqdm

from ..checkpointing import Termination, TrainingStopped, lock_run, resume_point
from ..checkpoints.catalog import NORMALIZATIONS
from ..checkpoints.facebook_dino import DinoCheckpoint, save_dino_checkpoint
from ..data import load_data
from ..distributed import any_process, gather
from ..errors import UserError
from ..rng import rng_for
from .arguments import SMALL, CropConfig, DinoConfig, FrameArguments, PretrainingArguments, options_of
from .dino.collapse import Monitor
from .dino.method import StepResult, build_optimizer, build_schedules, training_step
from .frames.loader import PretrainingLoader, split_batch
from .outputs import Outputs
from .plan import Plan, count
from .start import as_dino_training, build_model, load_start
from .state import register_model, save_checkpoint

logger = logging.getLogger(__name__)

SMALL_SET = 50_000  # frames; the recipe for millions of frames rarely works with fewer
MONITOR_STEPS = 50  # steps between checks for a collapse
SKIPPED_IN_A_ROW = 10  # consecutive steps without finite gradients, after which a run ends
UNREADABLE_FROM = 1000  # the unreadable share is of at least this many frames, so a few early ones do not end a run
PROCESS_DRAWS = 2**40  # seeds of processes use indices from here on, so that none equals the index of a frame


def pretrain(
    args: PretrainingArguments,
    frame_args: FrameArguments,
    crop_config: CropConfig,
    dino: DinoConfig,
    resume: Path | DinoCheckpoint | None = None,
    *,
    write_card: Callable[[Path], str] | None = None,
    on_start: Callable[[], None] | None = None,
) -> dict:
    """Pretrain a backbone with DINO.

    Args:
        args, frame_args, crop_config, dino: arguments of the run, its frames, its crops, and the method.
        resume: checkpoint to resume from, as returned by `arguments.implied_defaults`.
        write_card: function that returns the card of a model folder, for example `publishing.cards.pretrained_card`.
        on_start: function that the main process calls once the run owns its output folder.

    Returns:
        {"model": folder, "best_model": folder or None, "history": entries of history.jsonl}.

    Raises:
        UserError: the run cannot use the arguments, the data, or a checkpoint.
        TrainingStopped: a collapse, steps without finite gradients, or too many unreadable frames.
        SystemExit: SIGTERM was received and a checkpoint was saved. The exit code is 143.
    """
    return Pretraining(args, frame_args, crop_config, dino, resume, write_card).train(on_start)


def find_trackers(report_to: list[str]) -> list[str] | None:
    """Return the trackers for Accelerate, which would silently ignore those that are not installed.

    Raises:
        UserError: a tracker is not installed.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    if missing := set(report_to) - {"none", "all", *available}:
        raise UserError(
            f"--report_to {' '.join(sorted(missing))}: not installed, or unknown to Accelerate. Available: "
            f"{', '.join(available) or 'none'}"
        )
    return [tracker for tracker in report_to if tracker != "none"] or None


class Pretraining:
    """Pretraining run. See `pretrain` for the arguments and errors."""

    def __init__(
        self,
        args: PretrainingArguments,
        frame_args: FrameArguments,
        crop_config: CropConfig,
        dino: DinoConfig,
        resume: Path | DinoCheckpoint | None = None,
        write_card: Callable[[Path], str] | None = None,
    ):
        if args.extend_epochs is not None:
            dino = replace(dino, epochs=args.extend_epochs)
        self.args, self.crop_config, self.dino, self.resume = args, crop_config, dino, resume
        self.max_unreadable_fraction = frame_args.max_unreadable_fraction
        self.output_dir, self.write_card = Path(args.output_dir), write_card
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # otherwise Accelerate ignores torchrun's processes on CPUs
            mixed_precision=args.mixed_precision,
            log_with=find_trackers(args.report_to),
            project_dir=args.output_dir,
        )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        on_device = self.device.type != "cpu"
        self.crop_on_device = on_device if args.crop_on == "auto" else args.crop_on == "device"
        self.loader = PretrainingLoader(
            frame_args,
            crop_config,
            args.seed,
            args.step_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.crop_on_device,
            args.dataloader_num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self.plan = self._plan()
        self.schedules = build_schedules(dino, self.loader.steps_per_epoch, self.plan.total_batch_size)
        self.knn_data = load_data(args.knn_dataset, args.knn_data_dir) if args.knn_dataset else None
        self._build()
        self.normalization = [torch.tensor(v, device=self.device) for v in NORMALIZATIONS[self.start.normalization]]
        self.monitor = Monitor(dino.out_dim)
        counts = self.start.counts
        self.frames_read, self.unreadable_frames = counts.get("frames_read", 0), counts.get("unreadable_frames", 0)
        self.skipped_steps = torch.tensor(counts.get("skipped_steps", 0), device=self.device)
        self.skipped_in_a_row = torch.zeros_like(self.skipped_steps)
        self.new_unreadable: list[str] = []
        self.termination = Termination()

    def _plan(self) -> Plan:
        args, loader, processes = self.args, self.loader, self.accelerator.num_processes
        num_steps = self.dino.epochs * loader.steps_per_epoch
        return Plan(
            options=options_of(args, self.crop_config, self.dino),
            frames=loader.description,
            data_names=loader.names,
            num_frames=loader.num_frames,
            num_processes=processes,
            total_batch_size=args.step_batch_size * processes,
            steps_per_epoch=loader.steps_per_epoch,
            num_steps=num_steps,
            last_step=min(args.max_steps, num_steps) if args.max_steps > 0 else num_steps,
        )

    def _build(self) -> None:
        """Build model and optimizer, prepare them with Accelerate, and load their start."""
        args = self.args
        self.model = build_model(args, self.dino, self.crop_config, self.device, self.resume)
        torch.backends.cudnn.benchmark = True  # input shapes do not change
        self.student, self.optimizer = self.accelerator.prepare(
            self.model.student, build_optimizer(self.model.student)
        )
        register_model(self.accelerator, self.model)
        self.start = load_start(args, self.plan, self.model, self.optimizer, self.accelerator, self.resume)

    def train(self, on_start: Callable[[], None] | None = None) -> dict:
        """Train to the last step. See `pretrain`."""
        with lock_run(self.output_dir, self.is_main):
            is_checkpoint = not isinstance(self.resume, DinoCheckpoint)
            if is_checkpoint and resume_point(self.output_dir, self.args.resume_from_checkpoint) != self.resume:
                raise UserError(f"another run has just ended in {self.output_dir}: start this one again")
            if on_start is not None and self.is_main:
                on_start()
            self._run()
        best = self.output_dir / "best_model"
        return {
            "model": self.output_dir / "model",
            "best_model": best if best.is_dir() else None,
            "history": self.outputs.history.entries,
        }

    def _run(self) -> None:
        args = self.args
        self.outputs = Outputs(
            self.output_dir,
            self.plan,
            self.start,
            self.crop_config.global_crops_size,
            args.knn_dataset,
            self.knn_data,
            self.is_main,
            self.write_card,
        )
        for note in [*self.start.notes, *self._describe()] if self.is_main else []:
            logger.info(note)
        if self.accelerator.log_with:
            options = {name: str(value) for name, value in self.plan.options.items()}
            self.accelerator.init_trackers("surgenet_hf-pretraining", options)
        start, last = self.start.step, self.plan.last_step
        bar = tqdm(total=last, initial=start, unit="step", disable=not self.is_main)
        try:
            with self.termination, bar as self.progress:
                if start == 0 or start >= last:
                    self._finish_epoch(start)  # k-NN metrics of the start weights, or the outputs of a finished run
                self._train()
            self._finish()
        finally:
            self.accelerator.end_training()

    def _train(self) -> None:
        losses: list[torch.Tensor] = []
        self.since = time.perf_counter()
        for step, batch in self.loader.steps(self.start.step, self.plan.last_step):
            self.new_unreadable += batch["unreadable"]
            result = training_step(
                self.model,
                self.optimizer,
                self.schedules,
                self._forward_passes(batch, step),
                step,
                self.args.gradient_accumulation_steps,
                self.student,
                self.accelerator.backward,
                self.accelerator.autocast,
            )
            losses.append(result.loss)
            self.skipped_steps += ~result.finite
            self.skipped_in_a_row = (self.skipped_in_a_row + 1) * ~result.finite
            self.progress.update()
            self._after_step(step + 1, result, losses)

    def _after_step(self, done: int, result: StepResult, losses: list[torch.Tensor]) -> None:
        """Log, finish the epoch, and save a checkpoint where they are due."""
        args, last = self.args, done == self.plan.last_step
        ends_epoch = done % self.plan.steps_per_epoch == 0
        logs = done % args.logging_steps == 0 or ends_epoch or last
        measured = self._measure(result, done) if done % MONITOR_STEPS == 0 or ends_epoch else {}
        if logs or measured:
            self._log(done, losses, measured)
            losses.clear()
        if ends_epoch or last:
            self._finish_epoch(done)
            self.since = time.perf_counter()
        terminated = self._is_terminated(logs)
        if done % args.save_steps == 0 or ends_epoch or last or terminated:
            save_checkpoint(self.accelerator, self.output_dir, done, self._record(done), args.save_total_limit)
        if terminated:
            if self.is_main:
                logger.info(f"Stopped by SIGTERM after step {done}: resume with --resume_from_checkpoint true")
            raise SystemExit(128 + signal.SIGTERM)

    def _forward_passes(self, batch: dict, step: int) -> Iterator[list[torch.Tensor]]:
        """Yield the normalized crops of each forward pass on the device, and set the seed of drop path before each."""
        args = self.args
        size = args.per_device_train_batch_size
        parts = split_batch(batch, size, self.crop_config, self.device, *self.normalization)
        for number, crops in enumerate(parts):
            if args.channels_last:
                crops = [crop.contiguous(memory_format=torch.channels_last) for crop in crops]
            index = PROCESS_DRAWS + self.accelerator.process_index * args.gradient_accumulation_steps + number
            torch.manual_seed(int(rng_for(args.seed, step, index).integers(2**63)))
            self.first_crop = crops[0]
            yield crops

    @torch.no_grad()
    def _measure(self, result: StepResult, done: int) -> dict[str, float]:
        """Measure the collapse metrics after a step."""
        with self.accelerator.autocast():
            embeddings = self.model.teacher.backbone(self.first_crop).pooler_output
        values = self.monitor.measure(
            result.outputs.student_logits,
            result.outputs.teacher_logits,
            embeddings,
            result.outputs.center,
            student_temp=self.dino.student_temp,
            teacher_temp=self.schedules.at(done - 1).teacher_temp,
        )
        return {name: value.item() for name, value in values.items()}

    def _log(self, done: int, losses: list[torch.Tensor], measured: dict[str, float]) -> None:
        """Log the values that the device has accumulated since the last entry, and end the run if they are bad."""
        losses = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        finite = [loss for loss in losses if math.isfinite(loss)]
        frames, now = len(losses) * self.plan.total_batch_size, time.perf_counter()
        unreadable, self.new_unreadable = gather(self.new_unreadable), []
        self.frames_read += frames
        self.unreadable_frames += len(unreadable)
        entry = {
            "step": done,
            "epoch": done / self.plan.steps_per_epoch,
            "loss": sum(finite) / len(finite) if finite else None,
            **self.schedules.at(done - 1)._asdict(),
            **measured,
            "frames_per_second": frames / (now - self.since),
            "skipped_steps": int(self.skipped_steps),
            "unreadable_frames": self.unreadable_frames,
        }
        self.since = now
        self.outputs.history.add(entry)
        self.accelerator.log({name: value for name, value in entry.items() if value is not None}, step=done)
        self.progress.set_postfix(loss=entry["loss"], frames_per_s=round(entry["frames_per_second"], 1))
        self._check_frames(unreadable)
        self._check_training(done, measured)

    def _check_frames(self, unreadable: list[str]) -> None:
        path, limit = self.output_dir / "unreadable_frames.txt", self.max_unreadable_fraction
        if unreadable and self.is_main:
            with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{name}\n" for name in unreadable)
        if self.unreadable_frames > limit * max(self.frames_read, UNREADABLE_FROM):
            raise TrainingStopped(
                f"{self.unreadable_frames} of {self.frames_read} frames could not be read, more than "
                f"--max_unreadable_fraction {limit} allows. They are listed in {path}: repair or "
                "remove them, or raise the limit"
            )

    def _check_training(self, done: int, measured: dict[str, float]) -> None:
        if int(self.skipped_in_a_row) >= SKIPPED_IN_A_ROW:
            raise TrainingStopped(
                f"the last {int(self.skipped_in_a_row)} steps up to {done} had non-finite gradients and were "
                f"skipped. Resuming from the checkpoints in {self.output_dir} would fail here again. Start a new run "
                "with a lower --lr, a longer --warmup_epochs, or --bf16 instead of --fp16"
            )
        problem = self.monitor.diagnose(measured) if measured else None
        if problem and done > self.dino.warmup_epochs * self.plan.steps_per_epoch:
            if not self.args.ignore_collapse:
                raise TrainingStopped(f"after step {done}: {problem} To continue anyway, pass --ignore_collapse")
            logger.warning(f"after step {done}: {problem}")

    def _record(self, done: int) -> dict:
        """Return the record of a checkpoint after a number of steps."""
        return {
            "step": done,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "num_processes": self.plan.num_processes,
            "options": self.plan.options,
            "frames": self.plan.frames,
            "backbone": self.model.teacher.backbone.config.to_diff_dict(),
            "start": {"pretraining": self.start.pretraining, "normalization": self.start.normalization},
            "pretraining": self.outputs.pretraining(done),
            "counts": {
                "frames_read": self.frames_read,
                "unreadable_frames": self.unreadable_frames,
                "skipped_steps": int(self.skipped_steps),
            },
        }

    def _finish_epoch(self, done: int) -> None:
        with self.accelerator.autocast():
            metrics = self.outputs.finish_epoch(self.model.teacher.backbone, done)
        if metrics:
            self.accelerator.log(metrics, step=done)
            if self.is_main:
                values = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                logger.info(f"Epoch {self.plan.epochs_after(done)}: {values}")

    def _finish(self) -> None:
        if not self.is_main:
            return
        if self.args.export_dino_checkpoint:
            done = max(self.plan.last_step, self.start.step)  # --max_steps may be lower than the start
            epoch = done // self.plan.steps_per_epoch
            path = self.output_dir / f"checkpoint{epoch:04}.pth"
            training = as_dino_training(self.model, getattr(self.optimizer, "optimizer", self.optimizer))
            normalization = self.start.normalization
            save_dino_checkpoint(
                path, training, epoch, self.plan.options, self.outputs.pretraining(done), normalization
            )
            logger.info(f"Full DINO checkpoint in the original format: {path}")

    def _describe(self) -> list[str]:
        """Describe the run that is about to start."""
        plan, hint = self.plan, []
        if plan.num_frames < SMALL_SET and self.dino.out_dim > 2 * SMALL["out_dim"]:
            hint = [f"With fewer than {SMALL_SET:,} frames, --preset small often works better than --preset surgenet."]
        return [
            f"{count(plan.num_frames, 'frame')} of {', '.join(plan.data_names)}: "
            f"{count(plan.steps_per_epoch, 'step')} of {count(plan.total_batch_size, 'frame')} per epoch, "
            + count(plan.epochs, "epoch")
            + (f", up to step {plan.last_step:,}" if plan.last_step < plan.num_steps else "")
            + f"; {plan.num_processes} x {self.device.type}, {self.args.mixed_precision} mixed precision, "
            f"crops made {'on the device' if self.crop_on_device else 'by the workers'}.",
            *hint,
        ]

    def _is_terminated(self, logs: bool) -> bool:
        """Return whether any process received SIGTERM. Several processes compare only when they log."""
        if self.plan.num_processes == 1:
            return self.termination.received
        return logs and any_process(self.termination.received)
