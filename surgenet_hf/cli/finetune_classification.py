"""Fine-tune a model to classify frames and evaluate it.

The labels can be the critical view of safety (soft targets), tools, your own classes, or the phase of each frame.

  surgenet finetune-classification --model_name_or_path SurgeNetXL --dataset endoscapes-cvs --data_dir endoscapes \\
      --output_dir outputs/cvs --bf16

OUTPUT_DIR contains the model, results.json, run.yaml (the options), and figures. To resume a run that was killed,
repeat the command with --resume_from_checkpoint true.
"""

from .arguments import command
from .finetuning import run_finetuning


@command
def main(argv: list[str] | None = None) -> None:
    run_finetuning("finetune-classification", "image-classification", __doc__, argv)


if __name__ == "__main__":
    main()
