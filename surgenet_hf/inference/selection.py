"""Choice of runtime and precision, and agreement of their predictions with those of float32 in PyTorch."""

import itertools
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..distributed import is_main_process
from ..errors import UserError
from .prediction import evaluating, prepare, run_model
from .predictors import EMBEDDINGS, Predictor
from .runtimes import Builder, ExportError
from .settings import AUTO, RuntimeArguments, Setting, candidates, check_arguments
from .sources import Frame, Source, divide, find_sources, read_batches

logger = logging.getLogger(__name__)

CALIBRATION_FRAMES, CALIBRATION_FPS = 128, 1.0
BATCHES = 2  # on which settings are compared
REPETITIONS, SECONDS = 3, 1.0  # each time is the shortest of at least 3, measured for at least 1 second
# tolerances of predictions: smallest share of equal pixels, largest difference of scores, smallest cosine
PIXELS, SCORES, COSINE = 0.995, 0.01, 0.999
HOPELESS = 1.5  # a setting that takes this multiple of the shortest time is not measured again


@dataclass(frozen=True)
class Agreement:
    """Agreement of predictions with those of float32 in PyTorch.

    Attributes:
        value: share of equal pixels of all frames, largest difference of scores, or smallest cosine of embeddings and
            of dense features.
        text: it in words.
        max_error: largest difference of the network's outputs, relative to the largest output.
        is_accepted: whether the value is within the tolerance.
    """

    value: float
    text: str
    max_error: float
    is_accepted: bool

    def __str__(self) -> str:
        return f"{self.text}, largest error {self.max_error:.1e} of the largest output"


@dataclass(frozen=True)
class Measured:
    """Time and agreement of a setting, or why it has none."""

    setting: Setting
    time_ratio: float | None = None
    agreement: Agreement | None = None
    message: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the entry of predict.json."""
        found = self.agreement
        return {
            **vars(self.setting),
            "time_ratio": self.time_ratio and round(self.time_ratio, 3),
            "agreement": found and found.text,
            "max_error": found and float(f"{found.max_error:.3g}"),
            "accepted": self.message is None and (found is None or found.is_accepted),
        } | ({"message": self.message} if self.message else {})


def iterate_images(
    sources: Sequence[Source], frames_per_second: float | None, places: Iterable[int]
) -> Generator[Image.Image, None, None]:
    """Yield frames of sources, read one at a time. Those that cannot be read are skipped.

    Args:
        sources: sources of `find_sources`.
        frames_per_second: sampling rate of videos. None: every picture.
        places: numbers of the frames in the order of the sources, ascending.
    """
    with closing(read_batches(divide(sources), frames_per_second, 1)) as batches:
        frames = enumerate(item for batch in batches for item in batch.items if isinstance(item, Frame))
        for place in places:
            frame = next((frame for number, frame in frames if number == place), None)
            if frame is None:  # the sources have fewer frames
                return
            try:
                image = frame.read()
            except UserError:  # the prediction reports it
                continue
            yield image


def read_images(sources: Sequence[Source], frames_per_second: float | None, count: int) -> list[Image.Image]:
    """Read the first frames of sources, see `iterate_images`.

    Args:
        sources: sources of `find_sources`.
        frames_per_second: sampling rate of videos. None: every picture.
        count: maximum number of frames.
    """
    with closing(iterate_images(sources, frames_per_second, itertools.count())) as images:
        return list(itertools.islice(images, count))


def spread_places(sources: Sequence[Source], count: int) -> range:
    """Return the numbers of at most `count` evenly spaced frames of sources."""
    total = sum(each.frames for each in sources)
    return range(0, total, max(1, -(-total // count)))


class Runtimes:
    """Runtime and precision of a predictor.

    Args:
        predictor: predictor in float32, whose model `apply` replaces.
        arguments: options.
        batch_size: number of frames per forward pass.

    Raises:
        UserError: the options do not fit each other or this machine, or contain no calibration frames.
    """

    def __init__(self, predictor: Predictor, arguments: RuntimeArguments, batch_size: int):
        check_arguments(arguments)
        self.predictor, self.arguments, self.batch_size = predictor, arguments, batch_size
        self.calibration = find_sources(arguments.calibration, CALIBRATION_FPS) if arguments.calibration else []
        self.calibration_frames = 0
        self.measured: list[Measured] = []
        if arguments.runtime not in (None, "torch"):
            predictor.model.to("cpu")
        size = predictor.processor.size
        shape = (size["height"], size["width"])
        self.builder = Builder(predictor.model, shape, batch_size, self._calibration, predictor.dense)
        self.chosen: tuple[Setting, Any] | None = None

    @property
    def needs_frames(self) -> bool:
        """Whether settings are compared on frames of the input."""
        return self.arguments.precision in (AUTO, "int8") and is_main_process()

    def apply(self, setting: Setting, images: list[Image.Image]) -> None:
        """Replace the model of the predictor with one that runs with a setting.

        Args:
            setting: setting.
            images: frames on which the agreement of int8 with float32 is measured. It is written to the log.

        Raises:
            UserError: this machine does not support it, or the model cannot be exported.
        """
        if setting == Setting():
            return
        if self.chosen is not None and self.chosen[0] == setting:
            self.predictor.model = self.chosen[1]
            return
        if setting.runtime != "torch":
            self.predictor.model.to("cpu")
        with self.builder:
            model = self.builder.build(setting)
        if setting.precision == "int8" and images:
            expected, found = (self._predict(each, images) for each in (self.predictor.model, model))
            agreement = compare(self.predictor.task, found, expected)
            logger.info(f"Agreement of {setting} with torch float32 on {len(images)} frames: {agreement}")
        self.predictor.model = model

    def choose(self, images: list[Image.Image]) -> Setting:
        """Measure the settings that this machine supports, and return the fastest one within the tolerance.

        Args:
            images: first frames of the input. Without frames, the result is float32.

        Raises:
            UserError: no precision of the given runtime is within the tolerance.
        """
        if not images:
            return Setting(self.arguments.runtime or "torch")
        on_cpu = self.predictor.model.device.type == "cpu"
        reference, *others = candidates(self.arguments, on_cpu)
        expected = self._predict(self.predictor.model, images)
        standard = self._time(self.predictor.model, images, float("inf"))
        only = self.arguments.runtime not in (None, "torch")
        best = (float("inf"), reference, None) if only else (standard, reference, self.predictor.model)
        self.measured = [Measured(reference, 1.0)]
        not_exported = set()  # runtimes
        with self.builder:
            for setting in others:
                if setting.runtime in not_exported:
                    continue
                try:
                    model = self.builder.build(setting)
                except ExportError as error:  # also in the other precisions
                    not_exported.add(setting.runtime)
                    self.measured.append(Measured(setting, message=str(error)))
                    continue
                except UserError as error:
                    self.measured.append(Measured(setting, message=str(error)))
                    continue
                agreement = compare(self.predictor.task, self._predict(model, images), expected)
                seconds = self._time(model, images, HOPELESS * best[0])
                self.measured.append(Measured(setting, seconds / standard, agreement))
                if agreement.is_accepted and seconds < best[0]:
                    best = (seconds, setting, model)
        _, setting, model = best
        logger.info(self._table(setting if model is not None else None, len(images)))
        if model is None:
            raise UserError(
                f"no precision of {self.arguments.runtime} is within the tolerance; omit --runtime, or choose a "
                "--precision yourself"
            )
        self.chosen = setting, model
        return setting

    def _calibration(self) -> Iterator[np.ndarray]:
        """Yield the preprocessed calibration frames, one at a time, because frames can be large."""
        self.calibration_frames = 0
        places = spread_places(self.calibration, CALIBRATION_FRAMES)
        for image in iterate_images(self.calibration, CALIBRATION_FPS, places):
            self.calibration_frames += 1
            yield prepare(self.predictor.processor, [image], torch.float32).pixel_values.numpy()
        if not self.calibration_frames:
            raise UserError("no calibration frame can be read; check --calibration")

    def _predict(self, model, images: list[Image.Image]) -> tuple[list[dict], list[torch.Tensor]]:
        """Return the rows of images, and the outputs of the network for each batch."""
        predictor = replace(self.predictor, model=model, states={}, _current=None)
        outputs: list = []
        network = self._network(model)
        hook = network.register_forward_hook(lambda module, inputs, found: outputs.append(found))
        source = Source("", Path())
        rows = []
        try:
            with evaluating(model):
                for start in range(0, len(images), self.batch_size):
                    batch = images[start : start + self.batch_size]
                    frames = [Frame(source, start + i) for i in range(len(batch))]
                    rows += predictor.predict(frames, batch, prepare(predictor.processor, batch, model.dtype))
        finally:
            hook.remove()
        groups = self.builder.groups
        names = next(names for names in groups if all(getattr(outputs[0], name, None) is not None for name in names))
        return rows, [getattr(found, name).float().cpu() for found in outputs for name in names]

    def _network(self, model):
        return model.surgenet if self.builder.is_phase_model else model

    def _time(self, model, images: list[Image.Image], limit: float) -> float:
        """Return the shortest time in seconds of the network for images, after a first pass.

        Args:
            model: model.
            images: frames.
            limit: time after which it is not measured again.
        """
        network = self._network(model)
        batches = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        inputs = [prepare(self.predictor.processor, batch, network.dtype) for batch in batches]
        shortest = float("inf")
        with evaluating(network):
            begin = time.perf_counter()
            for count in range(1, 100):
                start = time.perf_counter()
                for batch in inputs:
                    run_model(network, batch)
                if network.device.type != "cpu":
                    torch.accelerator.synchronize()
                shortest = min(shortest, time.perf_counter() - start)
                if shortest > limit or (count >= REPETITIONS and time.perf_counter() - begin > SECONDS):
                    break
        return shortest

    def _table(self, chosen: Setting | None, frames: int) -> str:
        """Format the measured settings."""
        width = max(len(str(each.setting)) for each in self.measured)
        lines = [
            f"Runtimes and precisions on the first {frames} frames, in batches of {self.batch_size}",
            f"  {'':<{width}}  time  agreement with torch float32",
        ]
        for each in self.measured:
            ratio = "   -" if each.time_ratio is None else f"{each.time_ratio:4.2f}"
            text = each.message or ("reference" if each.agreement is None else str(each.agreement))
            if each.agreement is not None and not each.agreement.is_accepted:
                text += " (not within the tolerance)"
            lines.append(f"  {each.setting!s:<{width}}  {ratio}  {text}" + " <- chosen" * (each.setting == chosen))
        return "\n".join(lines)


def compare(task: str, found: tuple, expected: tuple) -> Agreement:
    """Compare predictions with those of float32.

    Args:
        task: task of the predictor.
        found: rows, and tensors of outputs.
        expected: the same, of float32 in PyTorch.
    """
    pairs = list(zip(found[0], expected[0], strict=True))
    tensors = zip(found[1], expected[1], strict=True)
    errors = [((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item() for ours, theirs in tensors]
    error = float(np.max(errors))  # unlike `max`, it keeps NaN
    if task == "semantic-segmentation":
        equal = sum(int((ours["mask"] == theirs["mask"]).sum()) for ours, theirs in pairs)
        value = equal / sum(theirs["mask"].size for _, theirs in pairs)
        return Agreement(value, f"{value:.2%} of pixels equal", error, value >= PIXELS)
    if task == EMBEDDINGS:
        value = _smallest_cosine(pairs, "embedding")
        text = f"cosine at least {value:.6f}"
        if "features" in pairs[0][0]:
            dense = _smallest_cosine(pairs, "features")
            text += f", of dense features {dense:.6f}"
            value = float(np.min([value, dense]))
        return Agreement(value, text, error, value >= COSINE)
    scores = np.array([[list(row["score"].values()) for row in pair] for pair in pairs])
    value = float(np.max(np.abs(scores[:, 0] - scores[:, 1])))
    text = f"scores differ by at most {value:.4f}"
    if label := next((name for name in ("label", "phase") if name in pairs[0][0]), None):
        text += f", {np.mean([ours[label] == theirs[label] for ours, theirs in pairs]):.2%} of labels equal"
    return Agreement(value, text, error, value <= SCORES)


def _smallest_cosine(pairs: Sequence[tuple[dict, dict]], column: str) -> float:
    """Return the smallest cosine of embeddings (C,), or of the positions of feature maps (C, h, w), of pairs of rows.

    NaN stays NaN.
    """
    cosines = []
    for ours, theirs in pairs:
        a, b = (row[column].astype(np.float64) for row in (ours, theirs))
        norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
        cosines.append(np.min((a * b).sum(0) / np.maximum(norms, 1e-12)))
    return float(np.min(cosines))


def resume(arguments: RuntimeArguments, recorded: dict | None) -> Setting | None:
    """Return the setting, or None if it must be measured.

    Args:
        arguments: options.
        recorded: content of predict.json of the run that is resumed. With `auto`, its setting is used.
    """
    if arguments.precision != AUTO:
        return arguments.setting
    if recorded is None:
        return None
    runtime = arguments.runtime or recorded["runtime"]
    return Setting(runtime, recorded["precision"], recorded["compile"])


def check_live_precision(arguments: RuntimeArguments) -> None:
    """Check that live input has a fixed precision.

    Raises:
        UserError: it is auto.
    """
    if arguments.precision == AUTO:
        raise UserError(
            "--precision auto compares settings on the first frames of files; for live input, choose a precision. "
            "`surgenet predict --precision auto` on a recorded video shows the fastest one"
        )


def apply_live(predictor: Predictor, arguments: RuntimeArguments) -> list[Source]:
    """Replace the model of a predictor of live input, which has a batch of one.

    Args:
        predictor: model.
        arguments: options that `check_live_precision` accepts.

    Returns:
        The calibration frames of int8.

    Raises:
        UserError: as in `Runtimes`.
    """
    runtimes = Runtimes(predictor, arguments, 1)
    images = read_images(runtimes.calibration, CALIBRATION_FPS, BATCHES) if runtimes.needs_frames else []
    runtimes.apply(arguments.setting, images)
    return runtimes.calibration
