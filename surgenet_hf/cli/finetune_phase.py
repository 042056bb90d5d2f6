"""Fine-tune a model for phase recognition in two stages: a frame classifier, then a causal TCN on its features.

  surgenet finetune-phase --model_name_or_path SurgeNetXL --dataset cholec80-phase --data_dir cholec80 \\
      --output_dir outputs/cholec80 --bf16

Differences from the authors' code (SurgPhaseBench): the numbers of epochs, see the options below. Stage 1 crops and
changes brightness and contrast, while theirs also shifts, scales, and rotates. Stage 1 selects its checkpoint by the
macro F1 of all validation frames together. Images are normalized as in pretraining, theirs with ImageNet statistics.
As in theirs, stage 1 does not flip frames, and stage 2 selects its checkpoint by the mean over videos of the macro F1.

OUTPUT_DIR holds the phase model, results.json, run.yaml (the options), and figures; OUTPUT_DIR/stage1 holds those of
the frame classifier, and OUTPUT_DIR/stage2 the checkpoints of the second stage. To resume a run that was killed,
repeat the command with --resume_from_checkpoint true. --skip_stage1 takes the frame classifier of an earlier run as
--model_name_or_path.
"""

from .arguments import command
from .finetuning import run_finetuning


@command
def main(argv: list[str] | None = None) -> None:
    run_finetuning("finetune-phase", "phase-recognition", __doc__, argv)


if __name__ == "__main__":
    main()
