"""Fine-tune a SurgeNet for phase recognition in two stages: a frame classifier, then a causal TCN on its features.

python scripts/finetune_phase.py --model_name_or_path SurgeNetXL --dataset cholec80-phase --data_dir cholec80 \
    --output_dir outputs/cholec80 --bf16

What differs from the authors' code (SurgPhaseBench): the numbers of epochs, see --help. Stage 1 crops and changes
brightness and contrast, while theirs also shifts, scales, and rotates. Stage 1 selects its checkpoint by the macro F1
of all validation frames together. Images are normalized as in pretraining, theirs with ImageNet statistics. As in
theirs, stage 1 does not flip frames, and stage 2 selects its checkpoint by the mean over videos of the macro F1.

The phase model, results.json and figures are written to OUTPUT_DIR, and those of the frame classifier to
OUTPUT_DIR/stage1. OUTPUT_DIR/stage2 holds the checkpoints of the second stage. To resume a run that was killed, repeat
the command with --resume_from_checkpoint true. --skip_stage1 takes the frame classifier of an earlier run as
--model_name_or_path.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import IntervalStrategy, set_seed

from surgenet_hf import SurgeNetForPhaseRecognition, SurgeNetModel
from surgenet_hf.finetuning import phase
from surgenet_hf.finetuning.classification import build_model, classification_loss, finetune
from surgenet_hf.finetuning.training import (
    SurgeNetTrainingArguments,
    finished,
    freeze_backbone,
    load_data,
    mendable_errors,
    parse_arguments,
    publish_results,
    run_record,
    running,
    same_run,
    source_of,
    stage_arguments,
)
from surgenet_hf.image_processing import load_image_processor
from surgenet_hf.models import load_model


@dataclass
class PhaseArguments:
    """Stage 2. Stage 1 takes the other arguments.

    Learning rate, its constant schedule, weight decay, and loss are those of the authors' code (SurgPhaseBench).
    """

    skip_stage1: bool = field(default=False, metadata={"help": "--model_name_or_path is a frame classifier already."})
    tcn_learning_rate: float = field(default=7e-4, metadata={"help": "Constant, of stage 2 (7e-4: the authors')."})
    tcn_epochs: int = field(default=200, metadata={"help": "Of stage 2 (200: the authors' paper; their code: 150)."})
    tcn_early_stopping_patience: int | None = field(
        default=20, metadata={"help": "Of stage 2, in epochs; without effect where nothing is evaluated."}
    )


@dataclass
class PhaseTrainingArguments(SurgeNetTrainingArguments):
    learning_rate: float = field(default=1e-5, metadata={"help": "Of stage 1 (1e-5: the authors')."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of stage 1."})
    weight_decay: float = field(default=1e-5, metadata={"help": "Of stage 1 (1e-5: the authors')."})
    num_train_epochs: float = field(
        default=30.0, metadata={"help": "Of stage 1 (the authors': up to 100, with a patience of 10)."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Of stage 1 (64: the authors')."})


def main(argv: list[str] | None = None) -> None:
    with mendable_errors():
        model_args, data_args, phase_args, training_args, push = parse_arguments(
            argv, PhaseArguments, training=PhaseTrainingArguments
        )
        data = load_data(("image-classification", "phase-recognition"), data_args, training_args)
        if data.problem_type != "single_label_classification":
            raise ValueError(f"{data.name} has several labels a frame, not phases: use finetune_classification.py")
        output_dir = training_args.output_dir
        stage1 = str(Path(output_dir, "stage1"))
        stage1_args = stage_arguments(training_args, stage1)
        stage2_args = stage_arguments(
            training_args,
            str(Path(output_dir, "stage2")),
            results_dir=output_dir,
            logging_strategy=IntervalStrategy.EPOCH,
            learning_rate=phase_args.tcn_learning_rate,
            lr_scheduler_type="constant",
            weight_decay=1e-4,  # as in the authors' code
            num_train_epochs=phase_args.tcn_epochs,
            max_steps=-1,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
        )
        if phase_args.skip_stage1:
            frame_model = source_of(model_args)
            processor = load_image_processor(frame_model)
        else:
            frame_model = str(Path(stage1, "model"))
            model, processor = build_model(source_of(model_args), data, model_args.image_size)
            if model_args.freeze_backbone:
                freeze_backbone(model)
            record = run_record(model, data, stage1_args, model_args, data_args)
            if finished(stage1):
                same_run(stage1, record)

    balanced = model_args.class_weights == "balanced"
    with running(training_args):
        if not phase_args.skip_stage1 and not finished(stage1):
            trainer = finetune(
                model,
                processor,
                data,
                stage1_args,
                loss=classification_loss(data, balanced),
                record=record,
                **model_args.options(),
            )
            publish_results(trainer, processor, data, model_args.eval_split)

        set_seed(training_args.seed)
        model = SurgeNetForPhaseRecognition.from_backbone(
            load_model(SurgeNetModel, frame_model),
            id2label=dict(enumerate(data.labels)),
            label2id={label: i for i, label in enumerate(data.labels)},
            frames_per_second=data.frames_per_second or 1.0,
        )
        fingerprint = phase.fingerprint(model.surgenet, processor)
        trainer = phase.finetune(
            model,
            processor,
            data,
            stage2_args,
            cache_dir=Path(output_dir, "features"),
            balanced=balanced,
            record=run_record(model, data, stage2_args, model_args, data_args, phase_args, frame_model=fingerprint),
            early_stopping_patience=(
                None if stage2_args.eval_strategy == "no" else phase_args.tcn_early_stopping_patience
            ),
        )
        publish_results(trainer, processor, data, model_args.eval_split, push, output_dir)


if __name__ == "__main__":
    main()
