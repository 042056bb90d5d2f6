"""Extract frames of videos and pack them into shards for pretraining: one frame per second, with an index.

  surgenet prepare-frames --videos_dir videos --output_dir shards
  surgenet prepare-frames --videos_dir youtube --output_dir shards --frame_list frames_list.txt
  surgenet prepare-frames --videos_dir videos --output_dir shards --max_side 640 --drop_black --drop_duplicates

Expected layout: <procedure>/<video>.mp4, at any depth. To resume a run that was killed, repeat the command. To read
the result: datasets.load_dataset("webdataset", data_files="shards/*.tar"), and shards/index.parquet.
"""

import sys
from dataclasses import MISSING, dataclass

from ..options import option
from ..preparation.extraction import FrameOptions
from .arguments import ArgumentParser, command


@dataclass
class PreparationArguments:
    """Which videos are read, and where the shards go."""

    videos_dir: str = option(
        MISSING, "Folder of the videos. The first folder on the path to a video is its procedure."
    )
    output_dir: str = option(
        MISSING, "Folder for the shards. It needs disk space for all frames and one additional shard."
    )
    frame_list: str | None = option(
        None, "File with the authors' list of frames. Only these are extracted, by frame number. Default: all frames."
    )
    num_workers: int = option(0, "Number of videos to decode in parallel. Default: 0, one per processor core.")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser((PreparationArguments, FrameOptions), prog="surgenet prepare-frames", description=__doc__)
    args, options = parser.parse_args_into_dataclasses(argv)

    from ..preparation.shards import INDEX, REPORT, UNMATCHED, prepare_frames

    report = prepare_frames(args.videos_dir, args.output_dir, options, args.frame_list, args.num_workers)
    parser.save_resolved(args.output_dir)
    totals, broken = report["totals"], [row["error"] for row in report["videos"].values() if row["error"]]
    print("{videos} videos: {kept} of {sampled} frames kept, {black} black, {duplicate} duplicates".format(**totals))
    if args.frame_list:
        print(
            "{unmatched} of {listed} entries or videos unmatched:".format(**totals), f"{args.output_dir}/{UNMATCHED}"
        )
    print(f"Written: {totals['shards']} shards, {INDEX} and {REPORT} in {args.output_dir}")
    if broken:
        summary = f"error: {len(broken)} of {totals['videos']} videos skipped, because they cannot be read:"
        sys.exit("\n".join([summary, *broken]))


if __name__ == "__main__":
    main()
