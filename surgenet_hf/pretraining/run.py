"""The pretraining loop on Accelerate: one process or many, exact on resume, and it waits for the device only to log.

A run writes to its `output_dir`

    checkpoint-STEP/     to go on from, see `state`
    model/               after each epoch, the teacher: image processor, card; loads with AutoModel at any time
    best_model/          the same of the epoch with the best k-NN figure, where there is one
    history.jsonl        a line each `logging_steps`, and one for each epoch's k-NN
    pretraining.png      the same as curves
    bad_frames.txt       frames that could not be read
    checkpointEPOCH.pth  at the end, if asked for: the format of the original

Everything random is a function of (seed, epoch, position) or of (seed, step, process).
"""

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..checkpointing import Termination, TrainingStopped, lock_run, resume_point
from ..checkpoints.catalog import NORMALIZATIONS
from ..checkpoints.facebook_dino import DinoCheckpoint
from ..errors import UserError
from ..fast_gradients import speed_up
from ..publishing.upload import check_login
from ..rng import rng_for
from .arguments import PretrainingArguments, options_of
from .dino.collapse import Monitor
from .dino.method import SMALL, DinoConfig, DinoModel, StepResult, build_optimizer, build_schedules, training_step
from .export import describe_pretraining
from .frames.crops import CropConfig, normalize
from .frames.device_crops import crop_batch
from .frames.loader import Feed
from .frames.ordering import unpack_images
from .frames.sources import FrameArguments
from .history import History
from .outputs import finish_epoch, finish_run, load_knn_data
from .start import build_backbone, load_start
from .state import register_model, save_checkpoint

logger = logging.getLogger(__name__)

SMALL_SET = 50_000  # frames, below which the recipe for millions rarely works
MASKED_IN_A_ROW = 10  # steps without finite gradients, after which a run stops
BAD_FRAMES_FROM = 1000  # frames read, from which on the share of bad ones is judged
PROCESS_DRAWS = 2**40  # seeds of processes use indices from here on, so that none equals that of a frame


def find_trackers(report_to: list[str]) -> list[str] | None:
    """What Accelerate logs with; it would pass over one that is not installed without a word.

    Raises:
        ValueError: a tracker that is not installed.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    if missing := set(report_to) - {"none", "all", *available}:
        raise ValueError(
            f"--report_to {' '.join(sorted(missing))}: not installed, or unknown to Accelerate; "
            f"there is {', '.join(available) or 'none'}"
        )
    return [tracker for tracker in report_to if tracker != "none"] or None


class Pretraining:
    """A run; `train` does it.

    Args:
        resume: folder or file to go on from, as `arguments.parse_arguments` finds it.

    Raises:
        ValueError: too few frames for one step, or a checkpoint of a run with other options.
    """

    def __init__(
        self,
        args: PretrainingArguments,
        frame_args: FrameArguments,
        crop_config: CropConfig,
        dino: DinoConfig,
        resume: Path | DinoCheckpoint | None = None,
    ):
        self.args, self.frame_args, self.crop_config, self.dino = args, frame_args, crop_config, dino
        self.output_dir, self.resume = Path(args.output_dir), resume
        if args.push_to_hub:
            check_login()  # a missing token shows now, not after the training
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else Accelerate overlooks torchrun's processes there
            mixed_precision=args.mixed_precision,
            log_with=find_trackers(args.report_to),
            project_dir=args.output_dir,
        )
        self.device = self.accelerator.device
        on_device = self.device.type != "cpu"
        self.crop_on_device = on_device if args.crop_on == "auto" else args.crop_on == "device"
        processes = self.accelerator.num_processes
        self.feed = Feed(
            frame_args,
            crop_config,
            args.seed,
            args.step_batch_size,
            self.accelerator.process_index,
            processes,
            self.crop_on_device,
        )
        if frame_args.streaming:  # which frames a stream gives depends on it
            self.feed.description["dataloader_num_workers"] = args.dataloader_num_workers
        self.total_batch_size, self.steps_per_epoch = args.step_batch_size * processes, self.feed.steps_per_epoch
        self.schedules = build_schedules(dino, self.steps_per_epoch, self.total_batch_size)
        num_steps = len(self.schedules.lr)
        self.last_step = min(args.max_steps, num_steps) if args.max_steps > 0 else num_steps
        self.knn_data = load_knn_data(args.knn_dataset, args.knn_data_dir)
        self.options = options_of(args, crop_config, dino)
        self._build(resume)
        self.statistics = [torch.tensor(v, device=self.device) for v in NORMALIZATIONS[self.start.statistics]]
        self.monitor = Monitor(dino.out_dim)
        counts = self.start.counts
        self.frames_read, self.bad_frames = counts.get("frames_read", 0), counts.get("bad_frames", 0)
        self.masked = torch.tensor(counts.get("masked_steps", 0), device=self.device)
        self.masked_in_a_row = torch.zeros_like(self.masked)
        self.new_bad_frames: list[str] = []
        self.termination = Termination()

    def _build(self, resume: Path | DinoCheckpoint | None) -> None:
        """Model and optimiser, as Accelerate wants them, at their start."""
        args = self.args
        torch.manual_seed(args.seed)  # all processes start with the same weights
        self.model = DinoModel(build_backbone(args, resume), self.dino).to(self.device)
        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if args.gradient_checkpointing:
            self.model.student.backbone.gradient_checkpointing_enable()
        if args.torch_compile:
            self.model.student.backbone.compile(dynamic=False)  # once for each size of crops
            self.model.teacher.backbone.compile(dynamic=False)
        if self.device.type == "cpu":
            speed_up(self.model, half=args.bf16)
        torch.backends.cudnn.benchmark = True  # shapes stay the same
        self.student, self.optimizer = self.accelerator.prepare(
            self.model.student, build_optimizer(self.model.student)
        )
        register_model(self.accelerator, self.model)
        self.start = load_start(self, resume)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def train(self) -> None:
        """Train to the last step.

        Raises:
            UserError: another run is writing to the output folder, or has written to it since this one began.
            TrainingStopped: a collapse, unless `ignore_collapse`; no finite gradients for several steps; too many
                frames that cannot be read.
            OSError: a checkpoint could not be written.
            SystemExit: after SIGTERM, with a checkpoint saved.
        """
        with lock_run(self.output_dir, self.is_main):
            is_checkpoint = not isinstance(self.resume, DinoCheckpoint)
            if is_checkpoint and resume_point(self.output_dir, self.args.resume_from_checkpoint) != self.resume:
                raise UserError(f"another run has just ended in {self.output_dir}: start this one again")
            self._run()

    def _run(self) -> None:
        self.history = History(self.output_dir, self.start.step, write=self.is_main)
        if self.is_main:
            print(*self.start.notes, *self._plan(), sep="\n")
        if self.accelerator.log_with:
            self.accelerator.init_trackers("surgenet_hf-pretraining", {k: str(v) for k, v in self.options.items()})
        try:
            with (
                self.termination,
                tqdm(
                    total=self.last_step, initial=self.start.step, unit="step", disable=not self.is_main
                ) as self.progress,
            ):
                if self.start.step == 0 or self.start.step >= self.last_step:
                    finish_epoch(self, self.start.step)  # k-NN of the start; or what a finished run leaves, once more
                self._train()
            finish_run(self)
        finally:
            self.accelerator.end_training()

    def _train(self) -> None:
        losses: list[torch.Tensor] = []
        self.since = time.perf_counter()
        workers, on_gpu = self.args.dataloader_num_workers, self.device.type == "cuda"
        for step, batch in self.feed.steps(self.start.step, self.last_step, workers, pin_memory=on_gpu):
            self.new_bad_frames += batch["bad"]
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
            self.masked += ~result.finite
            self.masked_in_a_row = (self.masked_in_a_row + 1) * ~result.finite
            self.progress.update()
            self._after_step(step + 1, result, losses)

    def _after_step(self, done: int, result: StepResult, losses: list[torch.Tensor]) -> None:
        """What has its turn after some of the steps: log, epoch's end, checkpoint."""
        args, last = self.args, done == self.last_step
        ends_epoch = done % self.steps_per_epoch == 0
        logs = done % args.logging_steps == 0 or ends_epoch or last
        measured = self._measure(result, done) if done % args.monitor_steps == 0 or ends_epoch else {}
        if logs or measured:
            self._log(done, losses, measured)
            losses.clear()
        if ends_epoch or last:
            finish_epoch(self, done)
            self.since = time.perf_counter()
        terminated = self._is_terminated(logs)
        if done % args.save_steps == 0 or ends_epoch or last or terminated:
            save_checkpoint(self.accelerator, self.output_dir, done, self.record(done), args.save_total_limit)
        if terminated:
            if self.is_main:
                print(f"Stopped by SIGTERM after step {done}: go on with --resume_from_checkpoint true")
            sys.exit(128 + signal.SIGTERM)

    def _forward_passes(self, batch: dict, step: int) -> Iterator[list[torch.Tensor]]:
        """The crops of each forward pass, normalised, on the device; before each, drop path gets its seed."""
        args = self.args
        images = []
        if self.crop_on_device:
            images = unpack_images(batch["pixels"].to(self.device, non_blocking=True), batch["sizes"])
        for number in range(args.gradient_accumulation_steps):
            part = slice(number * args.per_device_train_batch_size, (number + 1) * args.per_device_train_batch_size)
            if self.crop_on_device:
                crops = crop_batch(images[part], batch["crops"][part], self.crop_config)
            else:
                crops = [crop[part].to(self.device, non_blocking=True) for crop in batch["crops"]]
            crops = normalize(crops, *self.statistics)
            if args.channels_last:
                crops = [crop.contiguous(memory_format=torch.channels_last) for crop in crops]
            index = PROCESS_DRAWS + self.accelerator.process_index * args.gradient_accumulation_steps + number
            torch.manual_seed(int(rng_for(args.seed, step, index).integers(2**63)))
            self.first_crop = crops[0]
            yield crops

    @torch.no_grad()
    def _measure(self, result: StepResult, done: int) -> dict[str, float]:
        """The monitor's figures after a step, which a collapse shows in."""
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
        """Read what the device has gathered since the last time; write it down, and stop if it is bad."""
        losses = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        finite = [loss for loss in losses if math.isfinite(loss)]
        frames, now = len(losses) * self.total_batch_size, time.perf_counter()
        bad_frames = gather_object(self.new_bad_frames)
        self.new_bad_frames = []
        self.frames_read += frames
        self.bad_frames += len(bad_frames)
        entry = {
            "step": done,
            "epoch": done / self.steps_per_epoch,
            "loss": sum(finite) / len(finite) if finite else None,
            **self.schedules.at(done - 1)._asdict(),
            **measured,
            "frames_per_second": frames / (now - self.since),
            "masked_steps": int(self.masked),
            "bad_frames": self.bad_frames,
        }
        self.since = now
        self.history.add(entry)
        self.accelerator.log({name: value for name, value in entry.items() if value is not None}, step=done)
        self.progress.set_postfix(loss=entry["loss"], frames_per_s=round(entry["frames_per_second"], 1))
        self._judge(done, measured, bad_frames)

    def _judge(self, done: int, measured: dict[str, float], bad_frames: list[str]) -> None:
        if bad_frames and self.is_main:
            with (self.output_dir / "bad_frames.txt").open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{name}\n" for name in bad_frames)
        limit = self.frame_args.max_bad_fraction
        if self.bad_frames > limit * max(self.frames_read, BAD_FRAMES_FROM):
            raise TrainingStopped(
                f"{self.bad_frames} of {self.frames_read} frames could not be read, more than --max_bad_fraction "
                f"{limit}: see {self.output_dir / 'bad_frames.txt'}; mend or remove them, or raise the limit"
            )
        if int(self.masked_in_a_row) >= MASKED_IN_A_ROW:
            raise TrainingStopped(
                f"the last {int(self.masked_in_a_row)} steps up to {done} had gradients that are not finite, and were "
                f"skipped. The checkpoints in {self.output_dir} hold the weights of before, which would lead here "
                "again. Start a new run with a lower --lr, a longer --warmup_epochs, or --bf16 instead of --fp16"
            )
        problem = self.monitor.diagnose(measured) if measured else None
        if problem and done > self.dino.warmup_epochs * self.steps_per_epoch:
            if not self.args.ignore_collapse:
                raise TrainingStopped(f"after step {done}: {problem} (--ignore_collapse goes on all the same)")
            logger.warning(f"after step {done}: {problem}")

    def record(self, done: int) -> dict:
        """What a checkpoint after `done` steps says of the run."""
        return {
            "step": done,
            "steps_per_epoch": self.steps_per_epoch,
            "num_processes": self.accelerator.num_processes,
            "options": self.options,
            "frames": self.feed.description,
            "backbone": self.model.teacher.backbone.config.to_diff_dict(),
            "start": {"pretraining": self.start.pretraining, "statistics": self.start.statistics},
            "pretraining": self.provenance(done),
            "counts": {
                "frames_read": self.frames_read,
                "bad_frames": self.bad_frames,
                "masked_steps": int(self.masked),
            },
        }

    def epochs(self, done: int) -> int | float:
        """`done` steps in epochs, to two digits."""
        return round(done / self.steps_per_epoch, 2) if done % self.steps_per_epoch else done // self.steps_per_epoch

    def provenance(self, done: int) -> dict:
        """`config.pretraining` of the teacher after `done` steps."""
        feed, start = self.feed, self.start
        frames = feed.num_frames or feed.frames_per_epoch
        return describe_pretraining(start.pretraining, feed.names, self.epochs(done), frames, start.statistics)

    def recipe(self) -> dict:
        """What the card of the teacher says of its making."""
        return {"total_batch_size": self.total_batch_size, **self.options}

    def _plan(self) -> list[str]:
        """What is about to happen, in words."""
        hint = []
        frames = self.feed.num_frames or self.feed.frames_per_epoch
        if frames < SMALL_SET and self.dino.out_dim > 2 * SMALL["out_dim"]:
            hint = [f"With fewer than {SMALL_SET:,} frames, --preset small often learns more than the recipe."]
        return [
            f"{frames:,} frames of {', '.join(self.feed.names)}: "
            f"{self.steps_per_epoch:,} steps of {self.total_batch_size} frames an epoch, {self.dino.epochs} epochs"
            + (f", up to step {self.last_step:,}" if self.last_step < len(self.schedules.lr) else "")
            + f"; {self.accelerator.num_processes} x {self.device.type}, {self.args.mixed_precision} mixed precision, "
            f"crops made {'on the device' if self.crop_on_device else 'by the workers'}.",
            *hint,
        ]

    def _is_terminated(self, logs: bool) -> bool:
        """Whether any process was asked to end; several processes compare notes when they log."""
        if self.accelerator.num_processes == 1:
            return self.termination.received
        if not logs:
            return False
        return bool(self.accelerator.reduce(torch.tensor(float(self.termination.received), device=self.device)) > 0)
