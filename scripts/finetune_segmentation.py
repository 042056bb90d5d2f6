"""Fine-tune a SurgeNet for semantic segmentation, evaluate it, and leave a model, results.json and pictures.

python scripts/finetune_segmentation.py --model_name_or_path SurgeNetXL --dataset endoscapes --data_dir endoscapes \
    --output_dir outputs/endoscapes --bf16
torchrun --nproc_per_node 2 scripts/finetune_segmentation.py --model_name_or_path SurgeNetXL --dataset cholecseg8k \
    --data_dir cholecseg8k --output_dir outputs/cholecseg8k --loss cross_entropy+dice --class_weights balanced

A run that was killed goes on with the same command and --resume_from_checkpoint true.
"""

from dataclasses import dataclass, field

from surgenet_hf.finetuning.segmentation import LOSSES, build_model, finetune, pixel_weights, segmentation_loss
from surgenet_hf.finetuning.training import (
    mendable_errors,
    parse_arguments,
    prepare,
    publish_results,
    run_record,
    running,
)


@dataclass
class SegmentationArguments:
    loss: str = field(
        default="cross_entropy", metadata={"help": "Loss (cross_entropy: the authors').", "choices": LOSSES}
    )


def main(argv: list[str] | None = None) -> None:
    with mendable_errors():
        model_args, data_args, loss_args, training_args, push = parse_arguments(argv, SegmentationArguments)
        data, model, processor = prepare(("semantic-segmentation",), build_model, model_args, data_args, training_args)
    weights = pixel_weights(data) if model_args.class_weights == "balanced" else None
    with running(training_args):
        trainer = finetune(
            model,
            processor,
            data,
            training_args,
            loss=segmentation_loss(loss_args.loss, data.ignore_index, weights),
            record=run_record(model, data, training_args, model_args, data_args, loss_args),
            **model_args.options(),
        )
        publish_results(trainer, processor, data, model_args.eval_split, push)


if __name__ == "__main__":
    main()
