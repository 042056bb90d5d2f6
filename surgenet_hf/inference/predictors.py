"""Predictions of each task for batches of frames, as rows."""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .embeddings import pooled_features
from .loop import read_ahead
from .prediction import class_maps, evaluating, is_single_label, label_scores, prepare, run_model
from .sources import Batch, Frame, Part, Report, read_batches

EMBEDDINGS = "embeddings"


@dataclass
class Predictor:
    """Model of one task, with its image processor.

    Attributes:
        task: "semantic-segmentation", "image-classification", "phase-recognition", or "embeddings".
        model: model in the data type of the computation, on its device.
        processor: image processor of the model.
        name: name of the model, for messages and figures.
        dense: whether embeddings include the feature map.
        states: {file: state after its last frame} of a phase model, for the current video and for videos that a
            restart continues.
    """

    task: str
    model: Any
    processor: Any
    name: str
    dense: bool = False
    states: dict[str, tuple] = field(default_factory=dict)
    _current: str | None = None
    _features: Any = None

    def __post_init__(self):
        if self.dense and self.task != EMBEDDINGS:
            raise UserError(f"--dense needs embeddings, and this model is for {self.task}; add --task embeddings")

    @cached_property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their ids. Empty for embeddings."""
        if self.task == EMBEDDINGS:
            return []
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @property
    def frames_per_second(self) -> float:
        """Default sampling rate of videos: that of a phase model's training, otherwise 1."""
        return float(self.model.config.frames_per_second) if self.task == "phase-recognition" else 1.0

    def predict(self, frames: list[Frame], images: list[Image.Image], inputs) -> list[dict]:
        """Predict a batch.

        Args:
            frames: frames of the batch.
            images: their images.
            inputs: result of `prepare` for the images.

        Returns:
            A row for each frame, see `surgenet_hf.predict`.
        """
        results = getattr(self, f"_{self.task.split('-')[-1]}")(frames, images, inputs)
        return [_row(*each) for each in zip(frames, images, results, strict=True)]

    def repeat(self, frame: Frame, image: Image.Image) -> dict:
        """Predict the phase for the last frame of the last batch again, as the next frame of its video.

        The arguments and the row are those of `predict`. The backbone does not run again.
        """
        assert self._features is not None, "there is no earlier frame"
        with torch.inference_mode():
            return _row(frame, image, self._phase(frame, self._features))

    def _segmentation(self, frames, images, inputs):
        masks = class_maps(run_model(self.model, inputs), self.processor, [image.size[::-1] for image in images])
        for mask in masks:
            pixels = np.bincount(mask.ravel(), minlength=len(self.labels)).tolist()
            yield {"mask": mask, "pixels": dict(zip(self.labels, pixels, strict=True))}

    def _classification(self, frames, images, inputs):
        one_of_many = is_single_label(self.model.config)
        for scores in label_scores(run_model(self.model, inputs), one_of_many):
            best = {"label": self.labels[scores.argmax()]} if one_of_many else {}
            yield best | {"score": dict(zip(self.labels, scores.tolist(), strict=True))}

    def _embeddings(self, frames, images, inputs):
        outputs = run_model(self.model, inputs)
        for i, embedding in enumerate(pooled_features(outputs)):
            dense = {"features": outputs.last_hidden_state[i].float().cpu().numpy()} if self.dense else {}
            yield {"embedding": embedding} | dense

    def _recognition(self, frames, images, inputs):
        features = run_model(self.model.surgenet, inputs).pooler_output
        for i, frame in enumerate(frames):
            file = frame.source.name
            if self._current not in (None, file):  # the frames of a video are contiguous
                self.states.pop(self._current, None)
            self._current = file
            yield self._phase(frame, features[i : i + 1])
        self._features = features[-1:]

    def _phase(self, frame, features):
        file = frame.source.name
        logits, self.states[file] = self.model.stream(features, self.states.get(file))
        scores = logits[0].float().softmax(-1).cpu().numpy()
        return {
            "phase": self.labels[scores.argmax()],
            "score": dict(zip(self.labels, scores.tolist(), strict=True)),
        }


def _row(frame: Frame, image: Image.Image, result: dict) -> dict:
    return {
        "file": frame.source.name,
        "video": frame.source.video,
        "frame": frame.number,
        "seconds": frame.seconds,
        "image": image,
        **result,
    }


@dataclass(frozen=True)
class Predicted:
    """Predictions of a batch: its part, rows, and reports, and whether the part ends with it."""

    part: Part
    rows: list[dict]
    reports: list[Report]
    is_last: bool


def predict_parts(
    predictor: Predictor,
    jobs: Iterable[list[Part]],
    frames_per_second: float | None,
    batch_size: int = 8,
    num_workers: int | None = None,
) -> Generator[Predicted, None, None]:
    """Predict the frames of jobs, while threads decode and preprocess the next batches.

    Args:
        predictor: model.
        jobs: jobs of `sources.divide`.
        frames_per_second: sampling rate of videos. None: every picture.
        batch_size: number of frames per forward pass.
        num_workers: number of threads, see `read_ahead`.
    """

    def load(batch: Batch):
        frames, images, reports = [], [], []
        for item in batch.items:
            if isinstance(item, Report):
                reports.append(item)
                continue
            try:
                images.append(item.read())
            except UserError as error:
                reports.append(Report(item.source.name, str(error), is_error=True))
            else:
                frames.append(item)
        inputs = prepare(predictor.processor, images, predictor.model.dtype) if images else None
        return batch, frames, images, reports, inputs

    batches = read_batches(jobs, frames_per_second, batch_size)
    with evaluating(predictor.model), closing(read_ahead(batches, load, num_workers)) as loaded:
        for batch, frames, images, reports, inputs in loaded:
            rows = predictor.predict(frames, images, inputs) if frames else []
            yield Predicted(batch.part, rows, reports, batch.is_last)
