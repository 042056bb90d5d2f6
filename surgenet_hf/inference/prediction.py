"""Prediction loops for rows of a dataset and frames of a video."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data.base import SINGLE
from ..distributed import process_state
from ..errors import UserError
from .loop import read_ahead

MAX_CLASSES = 256  # of masks with 8 bits


def predict(
    model, processor, dataset, indices: Iterable[int], batch_size: int = 8, num_workers: int | None = None
) -> Generator[tuple[list[dict], Any], None, None]:
    """Run a model on rows of a dataset, batch by batch, while threads read and preprocess the next batches.

    The model's mode (train or eval) is restored afterwards.

    Args:
        model: model.
        processor: image processor of the model.
        dataset: rows with "image".
        indices: indices of the rows.
        batch_size: number of frames per forward pass.
        num_workers: number of threads, see `read_ahead`. Default: none for a single batch.

    Yields:
        The rows of a batch, and the model's outputs.
    """
    indices = list(indices)
    batches = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    if len(indices) <= batch_size and num_workers is None:
        num_workers = 0
    read, load = _reader(dataset, processor, model.dtype)
    quiet = not process_state().is_local_main_process
    with (
        evaluating(model),
        closing(read_ahead(map(read, batches), load, num_workers)) as loaded,
        tqdm(total=len(indices), desc="Predicting", unit="frame", leave=False, disable=quiet) as progress,
    ):
        for rows, inputs in loaded:
            yield rows, run_model(model, inputs)
            progress.update(len(rows))


def _reader(dataset, processor, dtype: torch.dtype) -> tuple[Callable, Callable]:
    """Return the functions that one thread calls for the indices of a batch, and several threads for its result."""

    def rows_of(batch: list[int]) -> list[dict]:
        return [dataset[i] for i in batch]

    def preprocess(rows: list[dict]):
        return rows, prepare(processor, [row["image"] for row in rows], dtype)

    if isinstance(dataset, Dataset):  # can be read in several threads; the user's own datasets need not allow it
        return list, lambda batch: preprocess(rows_of(batch))
    return rows_of, preprocess


def prepare(processor, images: list, dtype: torch.dtype):
    """Preprocess a batch of images to the inputs of a model, on the CPU."""
    return processor(images, return_tensors="pt").to(dtype)


def run_model(model, inputs):
    """Run a model on the result of `prepare`, and return its outputs."""
    with torch.inference_mode():
        return model(**inputs.to(model.device))


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Set a model to evaluation mode in the block, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def predict_segmentation(
    model, processor, dataset, batch_size: int = 8, indices: Iterable[int] | None = None
) -> Iterator[tuple[dict, np.ndarray]]:
    """Predict the class maps of the rows of a split, in order.

    Args:
        model: model for semantic or universal segmentation of transformers.
        processor: image processor of the model.
        dataset: rows {"image", "mask", ...} of `surgenet_hf.data`, or rows with only "image".
        batch_size: number of frames per forward pass.
        indices: indices of the rows. None uses all rows.

    Yields:
        The row, and its class map uint8 (H, W) at the size of the mask, or of the image if the row has no mask.
    """
    indices = range(len(dataset)) if indices is None else indices
    with closing(predict(model, processor, dataset, indices, batch_size)) as batches:
        for rows, outputs in batches:
            sizes = [row["mask"].shape if "mask" in row else row["image"].size[::-1] for row in rows]
            yield from zip(rows, class_maps(outputs, processor, sizes), strict=True)


def class_maps(outputs, processor, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return the class map uint8 (H, W) of each frame of a batch.

    Args:
        outputs: outputs of a segmentation model.
        processor: image processor of the model.
        sizes: (H, W) of each class map.
    """
    with torch.inference_mode():
        logits = semantic_logits(outputs, (processor.size["height"], processor.size["width"]))
        found = [resize_logits(logits[i : i + 1], size).argmax(1)[0] for i, size in enumerate(sizes)]
    return [class_map.to("cpu", torch.uint8).numpy() for class_map in found]


def semantic_logits(outputs, input_size) -> torch.Tensor:
    """Return the scores (B, k, h, w) of the classes from the outputs of any segmentation model of transformers.

    Args:
        outputs: outputs of the model.
        input_size: height and width of its input. Masks of queries are first resized to it.
    """
    if "class_queries_logits" in outputs:
        return query_logits(outputs.class_queries_logits, resize_logits(outputs.masks_queries_logits, input_size))
    return outputs.logits


def query_logits(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Combine queries to scores (B, k, h, w) of the classes, as MaskFormer does (Cheng et al., NeurIPS 2021).

    Args:
        class_logits: logits (B, queries, k + 1). The last class is "no object".
        mask_logits: logits (B, queries, h, w).
    """
    return torch.einsum("bqc,bqhw->bchw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())


def resize_logits(logits: torch.Tensor, size) -> torch.Tensor:
    """Resize logits (B, k, h, w) bilinearly to a size (H, W), if they do not have it."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def predict_scores(
    model, processor, dataset, batch_size: int = 8, indices: Iterable[int] | None = None
) -> Iterator[tuple[dict, np.ndarray]]:
    """Predict the scores of the labels of each row.

    The scores are the softmax of the logits for `problem_type` single_label_classification. Otherwise, they are the
    sigmoid of each logit.

    Args:
        model: frame classifier.
        processor: image processor of the model.
        dataset: rows with "image".
        batch_size: number of frames per forward pass.
        indices: indices of the rows. None uses all rows.

    Yields:
        The row, and its scores float32 (num_labels,).
    """
    indices = range(len(dataset)) if indices is None else indices
    with closing(predict(model, processor, dataset, indices, batch_size)) as batches:
        for rows, outputs in batches:
            yield from zip(rows, label_scores(outputs, model.config.problem_type == SINGLE), strict=True)


def check_classes(config) -> None:
    """Check that class maps of 8 bits can hold the ids of all classes.

    Raises:
        UserError: there are more than 256 classes.
    """
    if config.num_labels > MAX_CLASSES:
        raise UserError(f"masks have at most {MAX_CLASSES} classes, the model has {config.num_labels}; use another")


def is_single_label(config) -> bool:
    """Return whether a frame classifier predicts one class per frame. For several classes, this is the default."""
    return config.problem_type == SINGLE or (config.problem_type is None and config.num_labels > 1)


def label_scores(outputs, one_of_many: bool) -> np.ndarray:
    """Return the scores float32 (B, num_labels) of a frame classifier: the softmax of its logits, or their sigmoid."""
    logits = outputs.logits.float()
    return (logits.softmax(-1) if one_of_many else logits.sigmoid()).cpu().numpy()


def predict_phases(model, processor, dataset, indices: Iterable[int], batch_size: int = 32) -> tuple[np.ndarray, ...]:
    """Predict the phases of the frames of one video.

    Args:
        model: frame classifier or temporal model.
        processor: image processor of the model.
        dataset: rows with "image" and "labels".
        indices: indices of the video's rows, in temporal order.
        batch_size: number of frames per forward pass.

    Returns:
        The labels (T,), and the predicted phase ids (T,).
    """
    temporal = model.config.model_type == "surgenet_phase"
    truths, parts = [], []
    for rows, outputs in predict(model.surgenet if temporal else model, processor, dataset, indices, batch_size):
        truths += [row["labels"] for row in rows]
        parts.append(outputs.pooler_output if temporal else outputs.logits)
    found = torch.cat(parts)
    if temporal:
        training = model.training
        model.eval()
        with torch.inference_mode():
            found = model(features=found[None]).logits[0]
        model.train(training)
    return np.array(truths, dtype=np.int64), found.argmax(-1).cpu().numpy()


def stream_phases(model, processor, images: Iterable) -> Iterator[np.ndarray]:
    """Predict the scores of the phases for each image of a video stream, as it arrives.

    Args:
        model: temporal model, which keeps a state of earlier frames, or single-label frame classifier.
        processor: image processor of the model.
        images: RGB PIL images at the frame rate of the model's training.

    Yields:
        Scores float32 (num_labels,) of each image.
    """
    state = None
    for image in images:
        if model.config.model_type == "surgenet_phase":
            ((_, outputs),) = predict(model.surgenet, processor, [{"image": image}], [0])
            logits, state = model.stream(outputs.pooler_output, state)
            yield logits[0].float().softmax(-1).cpu().numpy()
        else:
            ((_, scores),) = predict_scores(model, processor, [{"image": image}])
            yield scores


def fingerprint(model: torch.nn.Module, processor) -> str:
    """Return a fingerprint of weights and preprocessing with 16 hexadecimal digits."""
    digest = hashlib.sha256(processor.to_json_string().encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def video_ranges(split) -> dict[str, range]:
    """Return {video: range of its rows} for a split that is sorted by video and time.

    Raises:
        ValueError: the rows of a video are not contiguous.
    """
    videos = split.select_columns(["video"])[:]["video"]
    ranges = {}
    for video, group in groupby(range(len(videos)), key=videos.__getitem__):
        rows = list(group)
        if video in ranges:
            raise ValueError(f"the rows of video {video} are not contiguous")
        ranges[video] = range(rows[0], rows[-1] + 1)
    return ranges
