"""Convert a weight file of the authors, of their code or of timm into a folder that `from_pretrained` reads.

python scripts/convert_checkpoint.py --checkpoint SurgeNetXL_checkpoint_epoch0050_teacher.pth --output_dir surgenetxl
python scripts/convert_checkpoint.py --checkpoint SurgeNetXL_checkpoint0050.pth --network student --output_dir student
python scripts/convert_checkpoint.py --checkpoint my_MetaFormerFPN.pth --labels classes.txt --output_dir my_model
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from surgenet_hf import convert_checkpoint
from surgenet_hf.cli.arguments import ArgumentParser


@dataclass
class ConversionArguments:
    checkpoint: str = field(metadata={"help": "The .pth (or .safetensors) file."})
    output_dir: str = field(metadata={"help": "New folder for config, weights and image processor."})
    task: str = field(
        default="auto",
        metadata={
            "help": "What to make of it; auto: by the head in the file.",
            "choices": ["auto", "backbone", "image-classification", "semantic-segmentation"],
        },
    )
    network: str = field(
        default="teacher", metadata={"help": "Of a full DINO checkpoint.", "choices": ["teacher", "student"]}
    )
    normalization: str = field(
        default="auto",
        metadata={
            "help": "Image statistics that the weights expect; auto: by the file's args, checksum or activation.",
            "choices": ["auto", "surgenet", "imagenet"],
        },
    )
    labels: str | None = field(default=None, metadata={"help": "Text file with one class name a line, in id order."})
    image_size: int = field(default=224, metadata={"help": "Side that the image processor resizes frames to."})


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(ConversionArguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for library in ("httpx", "timm"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        labels = Path(args.labels).read_text(encoding="utf-8").split("\n") if args.labels else None
        labels = [label.strip() for label in labels if label.strip()] if labels else None
        model = convert_checkpoint(
            args.checkpoint,
            task=args.task,
            network=args.network,
            normalization=args.normalization,
            labels=labels,
            output_dir=args.output_dir,
            image_size=args.image_size,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    pretraining = model.config.pretraining
    print(f"{args.checkpoint}: {model.config.backbone}, activation {model.config.activation}, {pretraining['name']}")
    print(f"image statistics: {pretraining['statistics']} ({pretraining['statistics_reason']})")
    print(f"wrote {type(model).__name__}, {model.num_parameters():,} parameters, to {args.output_dir}")
    print(f'load it with: import surgenet_hf; {type(model).__name__}.from_pretrained("{args.output_dir}")')


if __name__ == "__main__":
    main()
