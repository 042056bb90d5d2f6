"""Export a model to ONNX or to a program of torch.export, for other runtimes.

  surgenet export --model_name_or_path outputs/endoscapes --output_dir exported
  surgenet export --model_name_or_path outputs/endoscapes --source_size 480 854 --input_layout nhwc --postprocess \\
      --frames endoscapes/val --output_dir exported

The written file is run and compared with the model on frames. A file that differs is not kept. The exported model is
for research only, and not a medical device.
"""

from dataclasses import MISSING, dataclass
from itertools import islice
from pathlib import Path

from ..errors import UserError
from ..options import option
from .arguments import ArgumentParser, command

FRAMES = 8  # number of frames to compare on


@dataclass
class ExportArguments:
    """Arguments of `surgenet export`."""

    model_name_or_path: str = option(
        MISSING, "Model: a folder, the output folder of a training, a Hub repository, or a published checkpoint."
    )
    output_dir: str = option(MISSING, "Folder for model.onnx or model.pt2, and metadata.json.")
    format: str = option("onnx", "Format of the file.", choices=["onnx", "torch"])
    task: str | None = option(
        None, "embeddings: export the backbone without its head. Default: the task of the model.",
        choices=["embeddings"],
    )  # fmt: skip
    image_size: int | None = option(
        None, "Height and width in pixels of the model's input. Default: that of its image processor."
    )
    source_size: list[int] | None = option(
        None,
        "Height and width in pixels of uint8 frames that the graph resizes and normalizes itself. Default: the input "
        "is the output of the image processor.",
    )
    input_layout: str = option("nchw", "Layout of these frames.", choices=["nchw", "nhwc"])
    postprocess: bool = option(False, "Whether the graph ends with class ids or probabilities instead of logits.")
    dynamic: bool = option(False, "Whether batch size, height, and width of the input can change.")
    fp16: bool = option(False, "Whether weights and computation have 16 bits. Only for onnx.")
    frames: str | None = option(
        None, f"Folder of frames; the first {FRAMES} are used to compare. Default: synthetic frames."
    )

    def __post_init__(self):
        if self.source_size is not None and (len(self.source_size) != 2 or min(self.source_size) < 1):
            raise UserError(f"--source_size takes a height and a width in pixels, got {self.source_size}")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image_size must be positive, got {self.image_size}")
        if self.source_size is None and self.input_layout != "nchw":
            raise UserError("--input_layout nhwc needs --source_size: the image processor gives NCHW")


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    (args,) = ArgumentParser(ExportArguments, prog="surgenet export", description=__doc__).parse_args_into_dataclasses(
        argv
    )
    from PIL import Image

    from ..checkpointing import check_output_dir
    from ..data.frame_folders import FRAME_SUFFIXES
    from ..data.images import read_frame
    from ..data.sets import synthetic
    from ..image_processing import load_image_processor
    from ..inference.embeddings import load_backbone
    from ..inference.export import ExportSettings, describe_comparison, export_model
    from ..models import load_config, load_model, resolve_model
    from ..tasks import find_task

    check_output_dir(args.output_dir)
    source = resolve_model(args.model_name_or_path)
    config = load_config(source)
    found = find_task(config)
    if args.task == "embeddings":
        model, task = load_backbone(source)[0], "embeddings"
    elif found is None:
        raise UserError(
            f"{source} is a {config.model_type} without a head for a task; give --task embeddings to export it"
        )
    else:
        task = {"semantic-segmentation": "segmentation", "image-classification": "classification"}.get(
            found[0], "phases"
        )
        model = load_model(found[1], source, lambda model: dict(model.named_parameters())).float()
    processor = load_image_processor(source, args.image_size)
    if args.frames:
        paths = (path for path in sorted(Path(args.frames).rglob("*")) if path.suffix.lower() in FRAME_SUFFIXES)
        frames = [read_frame(path) for path in islice(paths, FRAMES)]
        if not frames:
            raise UserError(
                f"--frames {args.frames} is not a folder with images ({', '.join(sorted(FRAME_SUFFIXES))}); choose "
                "another"
            )
    else:
        frames = [Image.fromarray(synthetic.draw(0, i, 0, (480, 854))[0]) for i in range(FRAMES)]
    size = (processor.size["height"], processor.size["width"])
    settings = ExportSettings(
        size,
        tuple(args.source_size) if args.source_size else None,
        args.input_layout,
        args.postprocess,
        args.dynamic,
        args.fp16,
    )
    report = export_model(model, processor, task, args.output_dir, args.format, settings, frames)
    print(
        f"Written to {report['file']} and metadata.json. Compared with the model on {len(frames)} frames: "
        f"{describe_comparison(report)}."
    )


if __name__ == "__main__":
    main()
