"""Fine-tune a model for semantic segmentation and evaluate it.

  surgenet finetune-segmentation --model_name_or_path SurgeNetXL --dataset endoscapes --data_dir endoscapes \\
      --output_dir outputs/endoscapes --bf16
  torchrun --nproc_per_node 2 -m surgenet_hf.cli.finetune_segmentation --model_name_or_path SurgeNetXL \\
      --dataset cholecseg8k --data_dir cholecseg8k --output_dir outputs/cholecseg8k --loss cross_entropy+dice

OUTPUT_DIR contains the model, results.json, run.yaml (the options), and figures. To resume a run that was killed,
repeat the command with --resume_from_checkpoint true.
"""

from .arguments import command
from .finetuning import run_finetuning


@command
def main(argv: list[str] | None = None) -> None:
    run_finetuning("finetune-segmentation", "semantic-segmentation", __doc__, argv)


if __name__ == "__main__":
    main()
