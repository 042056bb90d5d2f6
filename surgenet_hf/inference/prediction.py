"""Prediction loops for rows of a dataset and frames of a video."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..distributed import process_state


def predict(
    model, processor, dataset, indices: Iterable[int], batch_size: int = 8
) -> Generator[tuple[list[dict], Any], None, None]:
    """Run a model on rows of a dataset, batch by batch.

    The model's mode (train or eval) is restored afterwards.

    Args:
        model: model.
        processor: image processor of the model.
        dataset: rows with "image".
        indices: indices of the rows.
        batch_size: number of frames per forward pass.

    Yields:
        The rows of a batch, and the model's outputs.
    """
    indices = list(indices)
    training = model.training
    model.eval()
    try:
        quiet = not process_state().is_local_main_process
        with tqdm(total=len(indices), desc="Predicting", unit="frame", leave=False, disable=quiet) as progress:
            for start in range(0, len(indices), batch_size):
                rows = [dataset[i] for i in indices[start : start + batch_size]]
                inputs = processor([row["image"] for row in rows], return_tensors="pt").to(model.device, model.dtype)
                with torch.inference_mode():  # must not include the yield, as it would then apply to the caller
                    outputs = model(**inputs)
                yield rows, outputs
                progress.update(len(rows))
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
            with torch.inference_mode():
                logits = semantic_logits(outputs, (processor.size["height"], processor.size["width"]))
                class_maps = [resize_logits(logits[i : i + 1], size).argmax(1)[0] for i, size in enumerate(sizes)]
            for row, class_map in zip(rows, class_maps, strict=True):
                yield row, class_map.to("cpu", torch.uint8).numpy()


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
    one_of_many = model.config.problem_type == "single_label_classification"
    indices = range(len(dataset)) if indices is None else indices
    with closing(predict(model, processor, dataset, indices, batch_size)) as batches:
        for rows, outputs in batches:
            logits = outputs.logits.float()
            scores = logits.softmax(-1) if one_of_many else logits.sigmoid()
            yield from zip(rows, scores.cpu().numpy(), strict=True)


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
