"""Fine-tune a SurgeNet to classify frames: critical view of safety (soft targets), tools, or phases frame by frame.

python scripts/finetune_classification.py --model_name_or_path SurgeNetXL --dataset endoscapes-cvs \
    --data_dir endoscapes --output_dir outputs/cvs --bf16

A run that was killed goes on with the same command and --resume_from_checkpoint true.
"""

import sys

from huggingface_hub import HfApi
from transformers import HfArgumentParser, set_seed

from surgenet_hf.data import load_classification
from surgenet_hf.finetuning.classification import build_model, classification_loss, finetune
from surgenet_hf.finetuning.training import (
    DataArguments,
    ModelArguments,
    SurgeNetTrainingArguments,
    freeze_backbone,
    publish_results,
    resume_point,
    source_of,
)


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, SurgeNetTrainingArguments))
    try:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses(argv)
        push, training_args.push_to_hub = training_args.push_to_hub, False  # with our card, at the end
        if push:
            HfApi().whoami()  # a missing token shows now, not after the training
        resume_point(training_args)
        data = load_classification(data_args.dataset, data_args.data_dir, **data_args.options())
        set_seed(training_args.seed)
        model, processor = build_model(source_of(model_args), data, model_args.image_size)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend: the message is enough
        sys.exit(f"error: {error}")
    if training_args.process_index == 0:
        print(*data.notes, sep="\n")
    if model_args.freeze_backbone:
        freeze_backbone(model)
    trainer = finetune(
        model,
        processor,
        data,
        training_args,
        augmentation=model_args.augmentation,
        loss=classification_loss(data, model_args.class_weights == "balanced"),
        layer_decay=model_args.layer_decay,
        early_stopping_patience=model_args.early_stopping_patience,
    )
    publish_results(trainer, processor, data, model_args.eval_split, push)


if __name__ == "__main__":
    main()
