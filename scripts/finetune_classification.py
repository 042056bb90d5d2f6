"""Fine-tune a SurgeNet to classify frames: critical view of safety (soft targets), tools, or phases frame by frame.

python scripts/finetune_classification.py --model_name_or_path SurgeNetXL --dataset endoscapes-cvs \
    --data_dir endoscapes --output_dir outputs/cvs --bf16

A run that was killed goes on with the same command and --resume_from_checkpoint true.
"""

from surgenet_hf.data import load_classification
from surgenet_hf.finetuning.classification import build_model, classification_loss, finetune
from surgenet_hf.finetuning.training import mendable_errors, parse_arguments, prepare, publish_results


def main(argv: list[str] | None = None) -> None:
    with mendable_errors():
        model_args, data_args, training_args, push = parse_arguments(argv)
        data, model, processor = prepare(load_classification, build_model, model_args, data_args, training_args)
    trainer = finetune(
        model,
        processor,
        data,
        training_args,
        loss=classification_loss(data, model_args.class_weights == "balanced"),
        **model_args.options(),
    )
    publish_results(
        trainer,
        processor,
        data,
        model_args.eval_split,
        push,
        publish_video_names=training_args.publish_video_names,
    )


if __name__ == "__main__":
    main()
