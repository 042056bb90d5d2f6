"""Phase recognition in two stages, as the SurgeNet authors do: a frame classifier, then a causal TCN on its features.

Stage 1 is `surgenet_hf.finetuning.classification` on the phases; stage 2, here, computes the features of every video
once and trains the temporal model on whole videos.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import EvalPrediction, TrainingArguments

from ..data import ClassificationData
from ..evaluation import predict, video_ranges
from ..metrics import PhaseMetric
from ..modeling_surgenet_phase import SurgeNetForPhaseRecognition, phase_loss
from .training import SurgeNetTrainer, balanced_weights, resume_point


class VideoFeatures(torch.utils.data.Dataset):
    """The embeddings of each video of a split: {"features": (T, C), "labels": (T,)}, one item a video.

    They are computed at first and kept in a folder of `cache_dir` that belongs to these weights and this processor: a
    file a video, written whole or not at all, so that a run that was killed goes on with the next video.
    """

    def __init__(self, model: SurgeNetForPhaseRecognition, processor, split, cache_dir: str | os.PathLike):
        self.cache_dir = Path(cache_dir, fingerprint(model.surgenet, processor))
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        self.ranges = video_ranges(split)
        self.videos = list(self.ranges)
        for video in tqdm(self.videos, desc="Features", unit="video"):
            if not self._path(video).exists():
                self._save(video, *compute_features(model, processor, split, self.ranges[video]))

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        with np.load(self._path(self.videos[index])) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in ("features", "labels")}

    def _path(self, video: str) -> Path:
        return self.cache_dir / f"{video}.npz"

    def _save(self, video: str, features: np.ndarray, labels: np.ndarray) -> None:
        temporary = self._path(video).with_suffix(".partial")
        with open(temporary, "wb") as file:
            np.savez(file, features=features, labels=labels)
        temporary.replace(self._path(video))


def fingerprint(model: torch.nn.Module, processor) -> str:
    """Of weights and preprocessing: 16 hexadecimal digits."""
    digest = hashlib.sha256(processor.to_json_string().encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def compute_features(model, processor, split, rows: range, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (T, C), float32, and phases (T,) of the given rows of a split."""
    features, labels = [], []
    for batch, outputs in predict(model.surgenet, processor, split, rows, batch_size):
        features.append(outputs.pooler_output.float().cpu().numpy())
        labels += [row["labels"] for row in batch]
    return np.concatenate(features), np.array(labels, dtype=np.int64)


def collate_videos(videos: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Videos of different lengths to one batch, padded at the end; padding has the label -100."""
    return {
        "features": pad_sequence([video["features"] for video in videos], batch_first=True),
        "labels": pad_sequence([video["labels"] for video in videos], batch_first=True, padding_value=-100),
    }


def finetune(
    model: SurgeNetForPhaseRecognition,
    processor,
    data: ClassificationData,
    training_args: TrainingArguments,
    cache_dir: str | os.PathLike,
    balanced: bool = False,
    **options,
) -> SurgeNetTrainer:
    """Train the temporal model on the features of the frozen backbone; checkpoints are chosen by "eval_macro_f1".

    Args:
        model: as `SurgeNetForPhaseRecognition.from_backbone` makes it of stage 1.
        processor: the image processor of stage 1.
        data: phases, rows in order of video and time.
        training_args: a step takes `per_device_train_batch_size` whole videos.
        cache_dir: for the features.
        balanced: weigh the phases in the cross-entropy by 1 / frequency.
        options: of `SurgeNetTrainer`.
    """
    model.surgenet.requires_grad_(False)
    model.to(training_args.device)
    train = VideoFeatures(model, processor, data.splits["train"], Path(cache_dir, "train"))
    validation = VideoFeatures(model, processor, data.splits["validation"], Path(cache_dir, "validation"))
    if balanced:
        labels = torch.cat([train[i]["labels"] for i in range(len(train))])
        weights = balanced_weights(torch.bincount(labels, minlength=len(data.labels)))
        config = model.config
        smoothing = (config.smoothing_weight, config.smoothing_threshold, config.ignore_index)
        options["loss"] = lambda stage_logits, labels: phase_loss(stage_logits, labels, *smoothing, weights)
        options["loss_on"] = "stage_logits"
    trainer = SurgeNetTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate_videos,
        processing_class=processor,
        compute_metrics=phase_metrics,
        task_metric="macro_f1",
        **options,
    )
    trainer.train(resume_from_checkpoint=resume_point(training_args))
    return trainer


def phase_metrics(predictions: EvalPrediction) -> dict[str, float]:
    """Of logits (videos, T, k) and phases (videos, T), padded with -100."""
    metric = PhaseMetric(predictions.predictions.shape[-1])
    for i, (logits, labels) in enumerate(zip(predictions.predictions, predictions.label_ids, strict=True)):
        known = labels != -100
        metric.add(logits[known].argmax(-1), labels[known], str(i))
    computed = metric.compute()
    return {name: computed[name] for name in ("accuracy", "macro_f1")}
