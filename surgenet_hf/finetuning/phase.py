"""Phase recognition in two stages, like the SurgeNet authors': a frame classifier, then a causal TCN on its features.

`surgenet_hf.cli.finetune_phase` lists the differences from their code. Stage 1 is
`surgenet_hf.finetuning.classification` on the phases. Stage 2 computes the features of every video once and trains the
temporal model on whole videos.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import EvalPrediction, IntervalStrategy, TrainingArguments, set_seed

from ..atomic import atomic_write
from ..data import SurgicalData
from ..data.identity import digest, frames_key
from ..distributed import process_state, wait_for_everyone
from ..errors import UserError
from ..heads import load_base
from ..image_processing import load_image_processor
from ..inference.prediction import fingerprint, predict, video_ranges
from ..metrics import PhaseMetric
from ..modeling_surgenet import SurgeNetModel
from ..modeling_surgenet_phase import SurgeNetForPhaseRecognition, phase_loss
from ..models import is_surgenet, load_config, load_model, resolve_model
from . import classification
from .arguments import ModelArguments, PhaseArguments, PhaseTrainingArguments, TrainDataArguments
from .run import (
    check_same_run,
    evaluate_and_save,
    finished,
    finished_results,
    load_training_data,
    output_folder,
    prepare,
    run_record,
    stage_arguments,
)
from .trainer import SurgeNetTrainer, balanced_weights


def run(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    phase_args: PhaseArguments,
    training_args: PhaseTrainingArguments,
    data: SurgicalData | None = None,
    command: str | None = None,
    on_start: Callable[[], None] | None = None,
) -> dict | None:
    """Fine-tune and evaluate both stages, and write model/, results.json, figures, stage1/, and stage2/.

    Args:
        model_args, data_args, training_args: options of stage 1, see `surgenet_hf.finetuning.arguments`.
        phase_args: options of stage 2.
        data: dataset instead of the one that `data_args` names.
        command: command line, recorded in results.json.
        on_start: function that the main process calls once the run owns its output folder.

    Returns:
        The results of the phase model, as in results.json. None if the data has no split to evaluate on.

    Raises:
        UserError: options, data, or output folder do not allow the run.
        TrainingStopped: training has diverged.
    """
    set_seed(training_args.seed)
    data = load_training_data(
        model_args, data_args, training_args, ("image-classification", "phase-recognition"), data
    )
    if not data.is_single_label:
        raise UserError(
            f"{data.name} has several labels per frame; expected one phase per frame. Use surgenet "
            "finetune-classification"
        )
    output_dir = training_args.output_dir
    stage1_dir = str(Path(output_dir, "stage1"))
    stage1_args = stage_arguments(training_args, stage1_dir)
    stage2_args = _stage2_arguments(training_args, phase_args)
    if phase_args.skip_stage1:
        if model_args.model_name_or_path is None:
            raise UserError(
                "--skip_stage1 needs a trained frame classifier: give --model_name_or_path instead of --backbone"
            )
        frame_model = resolve_model(model_args.model_name_or_path)
        processor = load_image_processor(frame_model)
    else:
        frame_model = str(Path(stage1_dir, "model"))
        model, processor = prepare(classification.build_model, model_args, data)
        record = run_record(model, data, stage1_args, model_args, data_args)
        if finished(stage1_dir):
            check_same_run(stage1_dir, record)

    balanced, is_frozen = model_args.class_weights == "balanced", model_args.freeze_backbone
    with output_folder(training_args, on_start):
        if not phase_args.skip_stage1 and not finished(stage1_dir):
            trainer = classification.finetune(
                model,
                processor,
                data,
                stage1_args,
                loss=classification.classification_loss(data, balanced),
                record=record,
                **model_args.options(),
            )
            evaluate_and_save(trainer, processor, data, model_args.eval_split, None, command, is_frozen)

        set_seed(training_args.seed)
        model = SurgeNetForPhaseRecognition.from_backbone(
            load_frame_model(frame_model),
            id2label=dict(enumerate(data.labels)),
            label2id={label: i for i, label in enumerate(data.labels)},
            frames_per_second=data.frames_per_second or 1.0,
        )
        frame_model = fingerprint(model.surgenet, processor)
        record = run_record(model, data, stage2_args, model_args, data_args, phase_args, frame_model=frame_model)
        if (results := finished_results(training_args, record, stage2_args.output_dir)) is not None:
            return results
        trainer = finetune(
            model,
            processor,
            data,
            stage2_args,
            cache_dir=Path(output_dir, "features"),
            balanced=balanced,
            record=record,
            early_stopping_patience=(
                None if stage2_args.eval_strategy == "no" else phase_args.tcn_early_stopping_patience
            ),
        )
        return evaluate_and_save(trainer, processor, data, model_args.eval_split, output_dir, command, is_frozen)


def _stage2_arguments(training_args: PhaseTrainingArguments, phase_args: PhaseArguments) -> TrainingArguments:
    return stage_arguments(
        training_args,
        str(Path(training_args.output_dir, "stage2")),
        results_dir=training_args.output_dir,
        logging_strategy=IntervalStrategy.EPOCH,
        learning_rate=phase_args.tcn_learning_rate,
        lr_scheduler_type="constant",
        weight_decay=1e-4,  # as in the authors' code
        num_train_epochs=phase_args.tcn_epochs,
        max_steps=-1,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
    )


class VideoFeatures(torch.utils.data.Dataset):
    """Embeddings and phases of each video of a split, one item {"features": (T, C), "labels": (T,)} per video.

    Embeddings are computed once and cached in `cache_dir`, in a subfolder for these weights and this processor. Each
    video has one file. Its name contains hashes of the video's name and of its frames (name, size, and modification
    time). A killed run resumes with the next video.
    """

    def __init__(self, model: SurgeNetForPhaseRecognition, processor, split, cache_dir: str | os.PathLike):
        self.cache_dir = Path(cache_dir, fingerprint(model.surgenet, processor))
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        ranges = video_ranges(split)
        self.videos = list(ranges)
        labels = split.select_columns(["labels"])[:]["labels"]
        # Hash the name of a video, because it may not be a valid file name.
        self.keys = {video: f"{digest(video)}-{frames_key(split, rows)}" for video, rows in ranges.items()}
        self.labels = {video: torch.tensor([labels[i] for i in rows]) for video, rows in ranges.items()}
        state = process_state()
        for video in tqdm(self.videos[state.process_index :: state.num_processes], desc="Features", unit="video"):
            if not self._path(video).exists():
                self._save(video, compute_features(model, processor, split, ranges[video]))
        wait_for_everyone()

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        video = self.videos[index]
        return {"features": torch.from_numpy(np.load(self._path(video))), "labels": self.labels[video]}

    def _path(self, video: str) -> Path:
        return self.cache_dir / f"{self.keys[video]}.npy"

    def _save(self, video: str, features: np.ndarray) -> None:
        with atomic_write(self._path(video)) as temporary, open(temporary, "wb") as file:
            np.save(file, features)


def load_frame_model(source: str):
    """Load the backbone of a frame classifier of any family, with the record of its training in its config."""
    config = load_config(source)
    if is_surgenet(config):
        return load_model(SurgeNetModel, source)
    backbone = load_base(source, config)
    backbone.config.pretraining = getattr(config, "pretraining", None)
    backbone.config.finetuning = getattr(config, "finetuning", None)
    return backbone


def compute_features(model, processor, split, rows: range, batch_size: int = 32) -> np.ndarray:
    """Compute float32 embeddings (T, C) of the given rows of a split."""
    batches = predict(model.surgenet, processor, split, rows, batch_size)
    return np.concatenate([outputs.pooler_output.float().cpu().numpy() for _, outputs in batches])


def collate_videos(videos: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Combine videos of different lengths to one batch, padded at the end. Padding has the label -100."""
    return {
        "features": pad_sequence([video["features"] for video in videos], batch_first=True),
        "labels": pad_sequence([video["labels"] for video in videos], batch_first=True, padding_value=-100),
    }


def finetune(
    model: SurgeNetForPhaseRecognition,
    processor,
    data: SurgicalData,
    training_args: TrainingArguments,
    cache_dir: str | os.PathLike,
    balanced: bool = False,
    **options,
) -> SurgeNetTrainer:
    """Train the temporal model on the features of the frozen backbone. The metric "eval_macro_f1" selects checkpoints.

    Args:
        model: model from `SurgeNetForPhaseRecognition.from_backbone`, with the backbone of stage 1.
        processor: the image processor of stage 1.
        data: phases, with rows ordered by video and time.
        training_args: a step takes `per_device_train_batch_size` whole videos.
        cache_dir: folder for the features.
        balanced: whether to weight the phases in the cross-entropy by 1 / frequency.
        options: arguments of `SurgeNetTrainer`.

    Returns:
        The Trainer after training.
    """
    model.surgenet.requires_grad_(False)
    model.to(training_args.device)
    train = VideoFeatures(model, processor, data.splits["train"], Path(cache_dir, "train"))
    validation = None
    if "validation" in data.splits:
        validation = VideoFeatures(model, processor, data.splits["validation"], Path(cache_dir, "validation"))
    if balanced:
        labels = torch.cat([train[i]["labels"] for i in range(len(train))])
        weights = balanced_weights(torch.bincount(labels, minlength=len(data.labels)))
        config = model.config
        smoothing = (config.smoothing_weight, config.smoothing_threshold, config.ignore_index)
        options["loss"] = lambda stage_logits, labels: phase_loss(
            stage_logits, labels, *smoothing, weights, config.stage_reduction
        )
        options["loss_on"] = "stage_logits"
    trainer = SurgeNetTrainer(
        model=model,
        args=training_args,
        data=data,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate_videos,
        processing_class=processor,
        compute_metrics=phase_metrics,
        task_metric="macro_f1",
        **options,
    )
    trainer.train()
    return trainer


def phase_metrics(predictions: EvalPrediction) -> dict[str, float]:
    """Compute metrics of logits (videos, T, k) and phases (videos, T), which are padded with -100."""
    metric = PhaseMetric(predictions.predictions.shape[-1])
    for i, (logits, labels) in enumerate(zip(predictions.predictions, predictions.label_ids, strict=True)):
        known = labels != -100
        metric.add(logits[known].argmax(-1), labels[known], str(i))
    computed = metric.compute()
    return {name: computed[name] for name in ("accuracy", "macro_f1")}
