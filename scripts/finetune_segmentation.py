"""Fine-tune a SurgeNet for semantic segmentation, evaluate it, and leave a model, results.json and pictures.

python scripts/finetune_segmentation.py --model_name_or_path SurgeNetXL --dataset endoscapes --data_dir endoscapes \
    --output_dir outputs/endoscapes --bf16
torchrun --nproc_per_node 2 scripts/finetune_segmentation.py --model_name_or_path SurgeNetXL --dataset cholecseg8k \
    --data_dir cholecseg8k --output_dir outputs/cholecseg8k --loss cross_entropy+dice --class_weights balanced

A run that was killed goes on with the same command and --resume_from_checkpoint true.
"""

import sys
from dataclasses import dataclass, field

from huggingface_hub import HfApi
from transformers import HfArgumentParser, set_seed

from surgenet_hf.data import load_segmentation
from surgenet_hf.finetuning.segmentation import LOSSES, build_model, finetune, pixel_weights, segmentation_loss
from surgenet_hf.finetuning.training import (
    DataArguments,
    ModelArguments,
    SurgeNetTrainingArguments,
    freeze_backbone,
    publish_results,
    resume_point,
    source_of,
)


@dataclass
class SegmentationArguments:
    loss: str = field(
        default="cross_entropy", metadata={"help": "Loss (cross_entropy: the authors').", "choices": LOSSES}
    )


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, SegmentationArguments, SurgeNetTrainingArguments))
    try:
        model_args, data_args, loss_args, training_args = parser.parse_args_into_dataclasses(argv)
        push, training_args.push_to_hub = training_args.push_to_hub, False  # with our card, at the end
        if push:
            HfApi().whoami()  # a missing token shows now, not after the training
        resume_point(training_args)
        data = load_segmentation(data_args.dataset, data_args.data_dir, **data_args.options())
        set_seed(training_args.seed)
        model, processor = build_model(source_of(model_args), data, model_args.image_size)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend: the message is enough
        sys.exit(f"error: {error}")
    if training_args.process_index == 0:
        print(*data.notes, sep="\n")
    if model_args.freeze_backbone:
        freeze_backbone(model)
    weights = pixel_weights(data) if model_args.class_weights == "balanced" else None
    trainer = finetune(
        model,
        processor,
        data,
        training_args,
        augmentation=model_args.augmentation,
        loss=segmentation_loss(loss_args.loss, data.ignore_index, weights),
        layer_decay=model_args.layer_decay,
        early_stopping_patience=model_args.early_stopping_patience,
    )
    publish_results(trainer, processor, data, model_args.eval_split, push)


if __name__ == "__main__":
    main()
