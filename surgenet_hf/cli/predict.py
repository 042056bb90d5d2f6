"""Predict on images and videos: masks, scores of frames, phases, or embeddings, as files.

  surgenet predict --model_name_or_path outputs/endoscapes --input frames --output_dir outputs/masks --overlays video
  surgenet predict --model_name_or_path outputs/phases --input videos --output_dir outputs/phases_of_videos
  surgenet predict --model_name_or_path SurgeNetXL --input "videos/**/*.mp4" --output_dir outputs/embeddings
  surgenet predict --model_name_or_path outputs/phases --input rtsp://camera:554/stream --output_dir outputs/live
  torchrun --nproc_per_node 2 -m surgenet_hf.cli.predict ...

The model determines the task. Models without a trained head give embeddings, as all models do with --task embeddings.
Files that cannot be read are skipped and listed at the end, and the exit status is then 1. To resume a run that was
killed, repeat the command. With several processes, each predicts a part of the files, and the rows are the same.
"""

import sys
from dataclasses import MISSING, dataclass

from ..inference.settings import RuntimeArguments, check_arguments
from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class PredictionArguments:
    """Which model is applied to which files, and where the results go."""

    model_name_or_path: str = option(
        MISSING, "Model: its folder, the output folder of its training, a Hub repository, or a published checkpoint."
    )
    input: list[str] = option(
        MISSING,
        "Images, videos, folders, or glob patterns. Folders are searched at any depth. Or one dataset on the Hub "
        "(hf://datasets/OWNER/NAME), or one live input (tcp://HOST:PORT, rtsp://..., /dev/video0).",
    )
    output_dir: str = option(MISSING, "Folder for the results.")
    task: str | None = option(None, "Task. Default: that of the model.", choices=["embeddings"])
    fps: float | None = option(
        None,
        "Number of frames per second of video, by timestamp; 0 for every frame. Of live input, the most frames per "
        "second. Default: the rate at which a phase model was trained, otherwise 1.",
    )
    overlays: str | None = option(
        None,
        "Frames with painted classes, for segmentation: JPEG files, or one MP4 file per video.",
        choices=["frames", "video"],
    )
    dense: bool = option(False, "Whether to write the feature map of each frame, for embeddings.")
    per_device_eval_batch_size: int = option(8, "Number of frames per forward pass.")
    live_timeout: float = option(30.0, "Number of seconds without a picture after which live input ends.")
    dataloader_num_workers: int | None = option(
        None, "Number of threads that read and preprocess frames. Default: 2 to 8, a quarter of the processor cores."
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser((PredictionArguments, RuntimeArguments), prog="surgenet predict", description=__doc__)
    args, runtime = parser.parse_args_into_dataclasses(argv)

    from ..inference.job import predict_to_folder
    from ..inference.live import find_live, without_credentials
    from ..inference.live_job import predict_live_to_folder
    from ..inference.selection import check_live_precision
    from ..tasks import load_predictor

    check_arguments(runtime)
    if address := find_live(args.input):
        check_live_precision(runtime)
    predictor = load_predictor(args.model_name_or_path, args.task, args.dense)
    report: dict | None
    if address:
        report = predict_live_to_folder(
            predictor, address, args.output_dir, args.fps, args.overlays, args.live_timeout, runtime
        )
        parser.resolved["input"] = [without_credentials(address)]
    else:
        report = predict_to_folder(
            predictor,
            args.input,
            args.output_dir,
            args.fps,
            args.per_device_eval_batch_size,
            args.dataloader_num_workers,
            args.overlays,
            runtime,
        )
    if report is None:  # not the first process
        return
    parser.save_resolved(args.output_dir)
    print("{task}: {frames} frames of {files} files".format(**report))
    print(f"Written to {args.output_dir}: predictions/*.parquet, report.json, run.yaml")
    if live := report.get("live"):
        print("{received} pictures received, {dropped} dropped, {reconnections} reconnections".format(**live))
        print("".join(f"{note['file']}: {note['message']}\n" for note in report["notes"]), end="")
    if errors := report["errors"]:
        lines = [f"{each['file']}: {each['message']}" for each in errors]
        sys.exit("\n".join([f"error: {len(errors)} files were not read, or not completely:", *lines]))


if __name__ == "__main__":
    main()
