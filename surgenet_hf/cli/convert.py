"""Convert a weight file to a model folder. The file can be from the authors, their code, or timm.

surgenet convert --checkpoint SurgeNetXL_checkpoint_epoch0050_teacher.pth --output_dir surgenetxl
surgenet convert --checkpoint SurgeNetXL_checkpoint0050.pth --network student --output_dir student
surgenet convert --checkpoint DINOv3_ViTs16_size336_SurgeNetXL.pth --output_dir surgenetxl-dinov3
surgenet convert --checkpoint endovit.pth --normalization endovit --output_dir endovit
surgenet convert --checkpoint my_MetaFormerFPN.pth --labels classes.txt --output_dir my_model
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ..errors import UnavailableError
from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class ConvertArguments:
    """Arguments of `surgenet convert`."""

    checkpoint: str = option(MISSING, "Weight file, .pth or .safetensors.")
    output_dir: str = option(MISSING, "New folder for config, weights, and image processor.")
    task: str = option(
        "auto",
        "Task of the model to write. auto: the task of the head in the file.",
        choices=["auto", "backbone", "image-classification", "semantic-segmentation"],
    )
    network: str = option(
        "teacher",
        "Network of a full DINO checkpoint to convert. Default: teacher, which the authors publish.",
        choices=["teacher", "student"],
    )
    normalization: str = option(
        "auto",
        "Normalization (mean and standard deviation of each channel) that the weights expect. auto: inferred from the "
        "recorded arguments, the checksum, or the network in the file, otherwise that of SurgeNet.",
        choices=["auto", "surgenet", "imagenet", "endovit"],
    )
    labels: str | None = option(
        None, "Text file with one class name per line, in the order of the ids. Default: LABEL_0, LABEL_1, ..."
    )
    image_size: int | None = option(
        None,
        "Height and width of input frames in pixels. Default: the size in pretraining, 224 or that of a vision "
        "transformer.",
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Convert a weight file, and print what was written."""
    parser = ArgumentParser(ConvertArguments, prog="surgenet convert", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    from ..checkpointing import check_output_dir
    from ..checkpoints.conversion import convert_checkpoint
    from ..checkpoints.vit import architecture
    from ..models import is_surgenet

    check_output_dir(Path(args.output_dir).parent)  # the folder itself must be new
    labels = None
    if args.labels:
        try:
            lines = Path(args.labels).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UnavailableError(f"--labels {args.labels} cannot be read: {error}. Give a text file") from error
        labels = [line.strip() for line in lines if line.strip()]
    model = convert_checkpoint(
        args.checkpoint,
        task=args.task,
        network=args.network,
        normalization=args.normalization,
        labels=labels,
        output_dir=args.output_dir,
        image_size=args.image_size,
    )
    pretraining = model.config.pretraining
    if is_surgenet(model.config):
        print(f"{args.checkpoint}: {model.config.backbone}, activation {model.config.activation}")
    else:
        print(
            f"{args.checkpoint}: {architecture(model.config, pretraining['family'])}, "
            f"{model.config.num_register_tokens} register tokens"
        )
    print(f"pretraining: {pretraining['name']}")
    print(f"normalization: {pretraining['normalization']} ({pretraining['normalization_reason']})")
    print(f"wrote {type(model).__name__}, {model.num_parameters():,} parameters, to {args.output_dir}")
    name = type(model).__name__
    package = "surgenet_hf" if is_surgenet(model.config) else "transformers"
    print(f'load it with: from {package} import {name}; {name}.from_pretrained("{args.output_dir}")')


if __name__ == "__main__":
    main()
