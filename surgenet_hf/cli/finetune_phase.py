"""Fine-tune a model for phase recognition in two stages: a frame classifier, then a causal TCN on its features.

  surgenet finetune-phase --model_name_or_path SurgeNetXL --dataset cholec80-phase --data_dir cholec80 \\
      --output_dir outputs/cholec80 --bf16

Differences from the authors' code (SurgPhaseBench):

- The numbers of epochs differ (see the options below).
- Stage 1 crops frames and changes brightness and contrast. Their code also shifts, scales, and rotates frames.
- Stage 1 selects its checkpoint by the macro F1 of all validation frames together.
- Images are normalized as in pretraining. Their code uses the ImageNet mean and standard deviation.

As in their code, stage 1 does not flip frames, and stage 2 selects its checkpoint by the mean over videos of the macro
F1.

OUTPUT_DIR contains the phase model, results.json, run.yaml (the options), and figures. OUTPUT_DIR/stage1 contains
those of the frame classifier, and OUTPUT_DIR/stage2 contains the checkpoints of stage 2. To resume a run that was
killed, repeat the command with --resume_from_checkpoint true. With --skip_stage1, --model_name_or_path is the frame
classifier of an earlier run.
"""

from .arguments import command
from .finetuning import run_finetuning


@command
def main(argv: list[str] | None = None) -> None:
    run_finetuning("finetune-phase", "phase-recognition", __doc__, argv)


if __name__ == "__main__":
    main()
