"""The prediction loop: rows of a dataset or frames of a video in, predictions out."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import torch
from tqdm.auto import tqdm

from ..distributed import process_state


def predict(
    model, processor, dataset, indices: Iterable[int], batch_size: int = 8
) -> Iterator[tuple[list[dict], object]]:
    """The prediction loop: rows of a dataset, batch by batch, and the model's outputs for them.

    The model's mode (train or eval) is restored afterwards.
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
                with torch.inference_mode():  # not around the yield: it would reach into the caller
                    outputs = model(**inputs)
                yield rows, outputs
                progress.update(len(rows))
    finally:
        model.train(training)


def predict_segmentation(
    model, processor, dataset, batch_size: int = 8, indices: Iterable[int] | None = None
) -> Iterator[tuple[dict, np.ndarray]]:
    """Predict rows of a split, in their order.

    Args:
        model: a semantic segmentation model of transformers.
        processor: its image processor.
        dataset: rows {"image", "mask", ...} as `surgenet_hf.data` gives them; or images alone, {"image"}.
        indices: of the rows; None: all.

    Yields:
        the row, and its class map: uint8 (H, W) at the size of the row's mask, or of its image where it has none.
    """
    indices = range(len(dataset)) if indices is None else indices
    for rows, outputs in predict(model, processor, dataset, indices, batch_size):
        sizes = [row["mask"].shape if "mask" in row else row["image"].size[::-1] for row in rows]
        with torch.inference_mode():
            class_maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        for row, class_map in zip(rows, class_maps, strict=True):
            yield row, class_map.to("cpu", torch.uint8).numpy()


def predict_scores(
    model, processor, dataset, batch_size: int = 8, indices: Iterable[int] | None = None
) -> Iterator[tuple[dict, np.ndarray]]:
    """The rows, and the scores of the labels, float32 (num_labels,).

    Of several labels at once, the sigmoid of each logit; of one of many (by `problem_type`), the softmax.
    """
    one_of_many = model.config.problem_type == "single_label_classification"
    indices = range(len(dataset)) if indices is None else indices
    for rows, outputs in predict(model, processor, dataset, indices, batch_size):
        logits = outputs.logits.float()
        scores = logits.softmax(-1) if one_of_many else logits.sigmoid()
        yield from zip(rows, scores.cpu().numpy(), strict=True)


def predict_phases(model, processor, dataset, indices: Iterable[int], batch_size: int = 32) -> tuple[np.ndarray, ...]:
    """Phases (T,) of the frames of one video, annotated and predicted, by a frame classifier or a temporal model."""
    temporal = model.config.model_type == "surgenet_phase"
    truths, found = [], []
    for rows, outputs in predict(model.surgenet if temporal else model, processor, dataset, indices, batch_size):
        truths += [row["labels"] for row in rows]
        found.append(outputs.pooler_output if temporal else outputs.logits)
    found = torch.cat(found)
    if temporal:
        training = model.training
        model.eval()
        with torch.inference_mode():
            found = model(features=found[None]).logits[0]
        model.train(training)
    return np.array(truths, dtype=np.int64), found.argmax(-1).cpu().numpy()


def stream_phases(model, processor, images: Iterable) -> Iterator[np.ndarray]:
    """The scores of the phases, float32 (num_labels,), of each image of a video that goes on, as it comes.

    Args:
        model: temporal (it remembers the frames before), or a frame classifier of one label of many.
        images: RGB, PIL, at the rate that the model was trained on.
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
    """The rows of each video of a split, whose rows are in order of video and time.

    Raises:
        ValueError: the rows of a video are not in one piece.
    """
    videos = split.select_columns(["video"])[:]["video"]
    ranges = {}
    for video, rows in groupby(range(len(videos)), key=videos.__getitem__):
        rows = list(rows)
        if video in ranges:
            raise ValueError(f"the rows of video {video} are not in one piece")
        ranges[video] = range(rows[0], rows[-1] + 1)
    return ranges
