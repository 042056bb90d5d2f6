"""Export a model to ONNX, OpenVINO, or a program of torch.export, for other runtimes.

  surgenet export --model_name_or_path outputs/endoscapes --output_dir exported
  surgenet export --model_name_or_path outputs/endoscapes --source_size 480 854 --input_layout nhwc --postprocess \\
      --frames endoscapes/val --output_dir exported
  surgenet export --model_name_or_path outputs/endoscapes --format openvino --precision int8 \\
      --frames endoscapes/val --output_dir exported

The written file is run and compared with the model on frames. A file that differs is not kept. int8 also needs frames
for its calibration. The exported model is for research only, and not a medical device.
"""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass

from ..errors import UserError
from ..options import option
from .arguments import ArgumentParser, command

FRAMES = 8  # number of frames to compare on
CALIBRATION_FRAMES = 128
FRAMES_PER_SECOND = 1.0  # of videos


@dataclass
class ExportArguments:
    """Arguments of `surgenet export`."""

    model_name_or_path: str = option(
        MISSING, "Model: a folder, the output folder of a training, a Hub repository, or a published checkpoint."
    )
    output_dir: str = option(MISSING, "Folder for the model and its metadata.json.")
    format: str = option("onnx", "Format of the file.", choices=["onnx", "openvino", "torch"])
    task: str | None = option(
        None, "embeddings: export the backbone without its head. Default: the task of the model.",
        choices=["embeddings"],
    )  # fmt: skip
    image_size: int | None = option(
        None, "Height and width in pixels of the model's input. Default: that of its image processor."
    )
    source_size: list[int] | None = option(
        None,
        "Height and width in pixels of frames that the graph resizes and normalizes itself. Default: the input is the "
        "output of the image processor.",
    )
    input_layout: str = option("nchw", "Layout of these frames.", choices=["nchw", "nhwc"])
    input_dtype: str = option(
        "uint8", "Data type of these frames, with values from 0 to 255.", choices=["uint8", "float32"]
    )
    postprocess: bool = option(False, "Whether the graph ends with class ids or probabilities instead of logits.")
    dynamic: bool = option(False, "Whether batch size, height, and width of the input can change.")
    precision: str = option(
        "float32",
        "Precision of weights and computation. fp16 and int8 are for onnx and openvino, and int8 needs --frames.",
        choices=["float32", "fp16", "int8"],
    )
    frames: list[str] | None = option(
        None,
        f"Images, videos, folders, or glob patterns with frames. {FRAMES} frames are compared, "
        f"and up to {CALIBRATION_FRAMES} others calibrate int8. Default: synthetic frames.",
    )

    def __post_init__(self):
        if self.source_size is not None and (len(self.source_size) != 2 or min(self.source_size) < 1):
            raise UserError(f"--source_size takes a height and a width in pixels, got {self.source_size}")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image_size must be positive, got {self.image_size}")
        if self.source_size is None and self.input_layout != "nchw":
            raise UserError("--input_layout nhwc needs --source_size: the image processor gives NCHW")
        if self.precision == "int8" and not self.frames:
            raise UserError(
                "--precision int8 needs --frames with frames like those of the application, from which it computes "
                "the range of each value"
            )


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    (args,) = ArgumentParser(ExportArguments, prog="surgenet export", description=__doc__).parse_args_into_dataclasses(
        argv
    )
    from PIL import Image

    from ..checkpointing import check_output_dir
    from ..data.sets import synthetic
    from ..image_processing import load_image_processor
    from ..inference.deployed import ExportSettings
    from ..inference.embeddings import load_backbone
    from ..inference.export import check_packages, describe_comparison, export_model
    from ..models import load_config, load_model, resolve_model
    from ..tasks import find_task

    check_packages(args.format, args.precision)
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
    calibration: Iterable[Image.Image] | None = None
    if args.frames:
        count = CALIBRATION_FRAMES if args.precision == "int8" else 0
        frames, calibration = read_frames(args.frames, count, consecutive=task == "phases")
    else:
        frames = [Image.fromarray(synthetic.draw(0, i, 0, (480, 854))[0]) for i in range(FRAMES)]
    size = (processor.size["height"], processor.size["width"])
    settings = ExportSettings(
        size,
        tuple(args.source_size) if args.source_size else None,
        args.input_layout,
        args.input_dtype,
        args.postprocess,
        args.dynamic,
        args.precision,
    )
    report = export_model(
        model, processor, task, args.output_dir, args.format, settings, frames, calibration or frames
    )
    note = ""
    if args.precision == "int8":
        others = f"{report['calibration_frames']} other" if calibration else "the same"
        note = f" Calibrated on {others} frames."
    print(f"Written to {report['file']} and metadata.json. Compared with the model on {len(frames)} frames.{note}")
    for runtime, comparison in report["comparison"].items():
        print(f"  {runtime}: {describe_comparison(comparison)}")


def read_frames(source: list[str], count: int, consecutive: bool = False) -> tuple[list, Iterable | None]:
    """Read frames for the comparison, and others for the calibration.

    Args:
        source: images, videos, folders, or glob patterns.
        count: maximum number of frames for the calibration.
        consecutive: whether frames follow one another. Otherwise, they are spread over the source.

    Returns:
        Up to `FRAMES` RGB images to compare on, and an iterator of up to `count` others, which reads one at a time. It
        is None if there are fewer than twice `FRAMES` frames.

    Raises:
        UserError: no frame can be read.
    """
    from ..inference.selection import iterate_images, spread_places
    from ..inference.sources import find_sources

    sources = find_sources(source, FRAMES_PER_SECOND)
    total = sum(each.frames for each in sources)
    if count and total < 2 * FRAMES:
        places, others = range(total), None
    elif consecutive:
        places, others = range(FRAMES), range(FRAMES, FRAMES + count)
    else:
        places, others = spread_places(sources, FRAMES), spread_places(sources, FRAMES + count)
    images = list(iterate_images(sources, FRAMES_PER_SECOND, places))
    if not images:
        raise UserError(f"--frames {' '.join(source)} contains no frames that can be read; choose others")
    if not count or others is None:
        return images, None
    return images, iterate_images(sources, FRAMES_PER_SECOND, (place for place in others if place not in places))


if __name__ == "__main__":
    main()
