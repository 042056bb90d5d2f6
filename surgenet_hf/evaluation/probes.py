"""k-nearest-neighbor evaluation of embeddings on a labeled dataset, without training.

The classifier is weighted k-NN as in DINO (Caron et al. 2021, after Wu et al. 2018). The k most similar frames of the
train split vote for their labels with weights exp(cosine similarity / temperature).
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

NUM_QUERIES = 1024  # queries per chunk, which limits the memory for the similarity matrix


@dataclass
class LabeledEmbeddings:
    """Embeddings of N frames with their targets.

    Attributes:
        embeddings: float32 (N, C).
        targets: float32 (N, num_labels), from 0 to 1.
        videos: video of each frame (N,).
    """

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
    """Classify the frames of the validation split by a vote of their nearest neighbors in the train split.

    Without a validation split, the test split is used. Frames of the query's own video do not vote. The metric is
    accuracy for single-label data. For multi-label data, it is the mean average precision of the votes, where targets
    of 0.5 or more are positive. The labels of a segmentation frame are the classes in its mask. Labels that all frames
    or no frames have are excluded.

    All processes must call this function. Each process embeds a part of the frames, and all return the same result.

    Args:
        model: `SurgeNetModel`. Its mode is restored.
        processor: image processor of the model.
        data: labeled dataset.
        k: number of neighbors that vote. If the train split has fewer frames, all of them vote.
        temperature: temperature of the votes.
        batch_size: number of frames per forward pass.
        max_frames: maximum number of frames of each split, evenly spaced. None uses all frames.

    Returns:
        {"knn_accuracy" or "knn_mean_average_precision": metric from 0 to 1, "knn_chance": its value at chance level}.
        Chance level is the share of the train split's most frequent class, or the mean share of positive frames.

    Raises:
        UserError: a split is missing, all of its frames have the same labels, or an embedding is not finite.
    """
    queried = next((split for split in ("validation", "test") if split in data.splits), None)
    if queried is None or "train" not in data.splits:
        raise UserError(
            f"k-NN needs a train split and a validation or test split; {data.name!r} has {', '.join(data.splits)}"
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
    """Predict targets (N, num_labels), from 0 to 1, as the weighted mean of the targets of the k nearest neighbors.

    Args:
        memory: embeddings that vote.
        queries: N embeddings to classify.
        k: number of neighbors.
        temperature: temperature of the votes.

    Raises:
        UserError: all embeddings in the memory are from the same video as a query.
    """
    keys = F.normalize(memory.embeddings, dim=1).T
    # tensors on the device cannot hold strings, so videos become numbers
    _, numbers = np.unique(np.concatenate([memory.videos, queries.videos]), return_inverse=True)
    ids = torch.from_numpy(numbers).to(keys.device)
    memory_videos, query_videos = ids.split([len(memory.videos), len(queries.videos)])
    votes = []
    for chunk, videos in zip(queries.embeddings.split(NUM_QUERIES), query_videos.split(NUM_QUERIES), strict=True):
        similarities = F.normalize(chunk, dim=1) @ keys
        similarities = similarities.masked_fill(videos[:, None] == memory_videos, -torch.inf)
        nearest, indices = similarities.topk(min(k, len(memory.videos)), dim=1)
        if nearest[:, 0].isneginf().any():
            raise UserError(
                "all train frames are from the same video as a query frame, so none can vote: use a dataset with "
                "several videos"
            )
        weights = F.softmax(nearest / temperature, dim=1)  # normalized exp(similarity / temperature)
        votes.append((weights[..., None] * memory.targets[indices]).sum(1))
    return torch.cat(votes).clamp(max=1)  # the weights sum to 1 only up to rounding


def _embed(model, processor, data, split: str, batch_size: int, max_frames: int | None) -> LabeledEmbeddings:
    """Compute embeddings and targets of a split on the model's device. Each process embeds a part of the frames.

    Raises:
        UserError: an embedding is not finite.
    """
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
    vectors, labels, videos = zip(*found, strict=True)
    embeddings = torch.from_numpy(np.stack(vectors)).to(model.device)
    if not embeddings.isfinite().all():
        raise UserError(f"embeddings of {data.name!r}, {split}, are not finite: use other weights")
    return LabeledEmbeddings(embeddings, torch.from_numpy(np.stack(labels)).to(model.device), np.array(videos))


def frame_targets(data: SurgicalData, row: dict) -> np.ndarray:
    """Return targets float32 (num_labels,) of a frame, from its class, its labels, or the classes in its mask."""
    if data.task == "semantic-segmentation":
        return (np.bincount(row["mask"].ravel(), minlength=256)[: len(data.labels)] > 0).astype(np.float32)
    if data.is_single_label:
        return np.eye(len(data.labels), dtype=np.float32)[row["labels"]]
    return row["labels"]
