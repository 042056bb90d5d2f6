"""Fine-tune a SurgeNet to classify frames: critical view of safety (soft targets), tools, or phases frame by frame.

python scripts/finetune_classification.py --model_name_or_path SurgeNetXL --dataset endoscapes-cvs \
    --data_dir endoscapes --output_dir outputs/cvs --bf16

A run that was killed goes on with the same command and --resume_from_checkpoint true.
"""

from surgenet_hf.finetuning.classification import build_model, classification_loss, finetune
from surgenet_hf.finetuning.training import (
    mendable_errors,
    parse_arguments,
    prepare,
    publish_results,
    run_record,
    running,
)


def main(argv: list[str] | None = None) -> None:
    with mendable_errors():
        model_args, data_args, training_args, push = parse_arguments(argv)
        tasks = ("image-classification", "phase-recognition")
        data, model, processor = prepare(tasks, build_model, model_args, data_args, training_args)
    with running(training_args):
        trainer = finetune(
            model,
            processor,
            data,
            training_args,
            loss=classification_loss(data, model_args.class_weights == "balanced"),
            record=run_record(model, data, training_args, model_args, data_args),
            **model_args.options(),
        )
        publish_results(trainer, processor, data, model_args.eval_split, push)


if __name__ == "__main__":
    main()
