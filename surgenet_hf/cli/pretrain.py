"""Pretrain a backbone with DINO on your own frames, from random or published weights.

  surgenet pretrain --model_name_or_path SurgeNetXL --dataset shards --data_dir frames --output_dir outputs/dino \\
      --epochs 20 --warmup_epochs 2 --bf16 --dataloader_num_workers 12
  surgenet pretrain --preset small --dataset folder --data_dir frames --output_dir outputs/small --epochs 100 \\
      --knn_dataset endoscapes-cvs --knn_data_dir endoscapes
  surgenet pretrain --dataset folder --data_dir frames --output_dir outputs/longer \\
      --resume_from_checkpoint SurgeNetXL_checkpoint0050.pth --extend_epochs 10

For several GPUs or nodes: accelerate launch -m surgenet_hf.cli.pretrain OPTIONS. A run that was killed resumes with
the same command and --resume_from_checkpoint true. OUTPUT_DIR/model contains the teacher of the last epoch, which
AutoModel can load during training. `surgenet prepare-frames` extracts the frames of videos into shards.
"""

from pathlib import Path

from ..pretraining.arguments import CropConfig, DinoConfig, FrameArguments, PretrainingArguments, implied_defaults
from .arguments import ArgumentParser, command

# what a run writes besides its checkpoints; best_model only with --knn_dataset
OUTPUTS = ("model", "best_model", "history.jsonl", "pretraining.png", "run.yaml")


def parse_arguments(argv: list[str] | None = None) -> tuple[ArgumentParser, tuple]:
    """Return the parser, and the arguments of `surgenet_hf.pretraining.run.pretrain`."""
    types = (PretrainingArguments, FrameArguments, CropConfig, DinoConfig)
    parser = ArgumentParser(types, prog="surgenet pretrain", description=__doc__)
    given, _ = parser.parse_known_args(argv)  # first, the options that the defaults of the others depend on
    defaults, resume = implied_defaults(
        given.output_dir, given.preset, given.resume_from_checkpoint, given.extend_epochs
    )
    parser.set_defaults(**defaults)
    return parser, (*parser.parse_args_into_dataclasses(argv), resume)


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser, arguments = parse_arguments(argv)
    args = arguments[0]

    from ..distributed import is_main_process
    from ..pretraining.run import pretrain
    from ..publishing.cards import pretrained_card
    from ..publishing.upload import check_login, push_model

    if args.push_to_hub:
        check_login()  # a missing token shows now, not after the training
    found = pretrain(*arguments, write_card=pretrained_card, on_start=lambda: parser.save_resolved(args.output_dir))
    if not is_main_process():
        return
    output_dir = Path(args.output_dir)
    written = ", ".join(name for name in OUTPUTS if (output_dir / name).exists())
    print(f"Written to {output_dir}: {written}")
    if args.push_to_hub:
        name = output_dir.name
        print(f"Published {push_model(found['model'], args.hub_model_id, args.hub_private_repo, name)}")


if __name__ == "__main__":
    main()
