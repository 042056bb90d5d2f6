"""k-nearest-neighbor evaluation of embeddings on a labeled dataset, without training.

Weighted k-NN as in DINO (Caron et al. 2021, after Wu et al. 2018): the k most similar frames of the train split vote
for their labels with weights exp(cosine similarity / temperature).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..data import SurgicalData
from ..distributed import gather, process_state
from ..errors import UserError
from ..inference.embeddings import predict_embeddings, spread
from ..metrics import MultiLabelMetric

NUM_QUERIES = 1024  # at a time: bounds the matrix of similarities


@dataclass
class LabeledEmbeddings:
    """Embeddings float32 (N, C), targets from 0 to 1 float32 (N, num_labels), and the video of each of N frames."""

    embeddings: torch.Tensor
    targets: torch.Tensor
    videos: np.ndarray


def knn_accuracy(
    model,
    processor,
    data: SurgicalData,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 32,
    max_frames: int | None = None,
) -> dict[str, float]:
    """Classify the frames of the validation split (else test) by a vote of their neighbors in the train split.

    The metric is the accuracy for classes. For several labels in a frame it is the mean average precision of the
    votes, where a target of 0.5 or more is positive. For segmentation, the labels are the classes that a frame shows.
    Labels that all frames or no frames have are omitted. Frames of the query's own video have no vote.

    In a run of several processes, all must call this. Each embeds a part of the frames, and all return the same.

    Args:
        model: a `SurgeNetModel`; its mode is restored.
        processor: its image processor.
        k: number of neighbors that vote. If the train split has fewer frames, all of them vote.
        temperature: temperature of the votes.
        batch_size: frames in a batch.
        max_frames: largest number of frames of each of the two splits, evenly spread. None: all.

    Returns:
        {"knn_accuracy" or "knn_mean_average_precision": from 0 to 1, "knn_chance": the same without looking}. Chance
        is the share of the train split's most common class, or the mean share of positive frames.

    Raises:
        UserError: a split is missing, all of its frames have the same labels, or an embedding is not finite.
    """
    queried = next((split for split in ("validation", "test") if split in data.splits), None)
    if queried is None or "train" not in data.splits:
        raise UserError(
            f"k-NN needs the split train and validation or test; {data.name!r} has {', '.join(data.splits)}"
        )
    memory, queries = (_embed(model, processor, data, split, batch_size, max_frames) for split in ("train", queried))
    votes = vote(memory, queries, k, temperature)
    truths = queries.targets
    if data.is_single_label:
        commonest = memory.targets.sum(0).argmax()
        return {
            "knn_accuracy": (votes.argmax(1) == truths.argmax(1)).float().mean().item(),
            "knn_chance": (truths.argmax(1) == commonest).float().mean().item(),
        }
    positive = truths >= 0.5
    varied = positive.any(0) & ~positive.all(0)
    if not varied.any():
        raise UserError(
            f"all frames of {data.name!r}, {queried}, have the same labels: choose another labeled dataset"
        )
    metric = MultiLabelMetric(int(varied.sum()))
    metric.add(votes[:, varied].cpu().numpy(), truths[:, varied].cpu().numpy(), queries.videos.tolist())
    return {
        "knn_mean_average_precision": metric.compute()["mean_average_precision"],
        "knn_chance": positive[:, varied].float().mean().item(),
    }


def vote(memory: LabeledEmbeddings, queries: LabeledEmbeddings, k: int, temperature: float) -> torch.Tensor:
    """Return targets (N, num_labels) of the queries, from 0 to 1: the weighted mean of those of their k neighbors.

    Raises:
        UserError: all of the memory is of the same video as a query.
    """
    keys = F.normalize(memory.embeddings, dim=1).T
    # strings do not go to the device; numbers do
    _, numbers = np.unique(np.concatenate([memory.videos, queries.videos]), return_inverse=True)
    numbers = torch.from_numpy(numbers).to(keys.device)
    memory_videos, query_videos = numbers.split([len(memory.videos), len(queries.videos)])
    votes = []
    for chunk, videos in zip(queries.embeddings.split(NUM_QUERIES), query_videos.split(NUM_QUERIES), strict=True):
        similarities = F.normalize(chunk, dim=1) @ keys
        similarities = similarities.masked_fill(videos[:, None] == memory_videos, -torch.inf)
        nearest, indices = similarities.topk(min(k, len(memory.videos)), dim=1)
        if nearest[:, 0].isneginf().any():
            raise UserError(
                "all frames that could vote are of the same video as the query: use a dataset of several videos"
            )
        weights = F.softmax(nearest / temperature, dim=1)  # exp(similarity / temperature), normalized
        votes.append((weights[..., None] * memory.targets[indices]).sum(1))
    return torch.cat(votes).clamp(max=1)  # sums of weights are 1 up to rounding


def _embed(model, processor, data, split: str, batch_size: int, max_frames: int | None) -> LabeledEmbeddings:
    """Compute embeddings and targets of a split on the model's device. Each process embeds a part of the frames."""
    rows = data.splits[split]
    indices = spread(len(rows), len(rows) if max_frames is None else min(len(rows), max_frames))
    process = process_state()
    own = indices[process.process_index :: process.num_processes].tolist()
    found = gather(
        [
            (embedding, frame_targets(data, row), row["video"])
            for row, embedding in predict_embeddings(model, processor, rows, batch_size, own)
        ]
    )
    embeddings, labels, videos = zip(*found, strict=True)
    embeddings = torch.from_numpy(np.stack(embeddings)).to(model.device)
    if not embeddings.isfinite().all():
        raise UserError(f"embeddings of {data.name!r}, {split}, are not finite: use other weights")
    return LabeledEmbeddings(embeddings, torch.from_numpy(np.stack(labels)).to(model.device), np.array(videos))


def frame_targets(data: SurgicalData, row: dict) -> np.ndarray:
    """Return targets float32 (num_labels,) of a frame: its class, its labels, or the classes in its mask."""
    if data.task == "semantic-segmentation":
        return (np.bincount(row["mask"].ravel(), minlength=256)[: len(data.labels)] > 0).astype(np.float32)
    if data.is_single_label:
        return np.eye(len(data.labels), dtype=np.float32)[row["labels"]]
    return row["labels"]
