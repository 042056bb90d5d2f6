"""Turn videos into shards for pretraining: one frame per second, in few large files, with an index.

python scripts/prepare_frames.py --videos_dir videos --output_dir shards
python scripts/prepare_frames.py --videos_dir youtube --output_dir shards --frame_list frames_list.txt
python scripts/prepare_frames.py --videos_dir videos --output_dir shards --max_side 640 --drop_black --drop_duplicates

Videos lie as <procedure>/<video>.mp4 or deeper. A run that was killed goes on with the same command. To read the
result, and shards/index.parquet likewise: datasets.load_dataset("webdataset", data_files="shards/*.tar").
"""

import sys
from dataclasses import dataclass, field

from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.preparation.shards import INDEX, REPORT, UNMATCHED, FrameOptions, prepare_frames


@dataclass
class Arguments:
    videos_dir: str = field(metadata={"help": "Videos below it; the first folder on the way to one is its procedure."})
    output_dir: str = field(metadata={"help": "Where the shards go: room for the frames and one shard more."})
    frame_list: str | None = field(
        default=None, metadata={"help": "Take only the frames of the authors' list, by their numbers n."}
    )
    num_workers: int = field(default=0, metadata={"help": "Videos to decode at a time; 0: one for each core."})


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser((Arguments, FrameOptions), description=__doc__.splitlines()[0])
    try:
        args, options = parser.parse_args_into_dataclasses(argv)
        report = prepare_frames(args.videos_dir, args.output_dir, options, args.frame_list, args.num_workers)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    totals, broken = report["totals"], [row["error"] for row in report["videos"].values() if row["error"]]
    print("{videos} videos: {kept} of {sampled} frames kept, {black} black, {duplicate} duplicates".format(**totals))
    if args.frame_list:
        print(
            "{unmatched} of {listed} entries or videos unmatched: ".format(**totals) + f"{args.output_dir}/{UNMATCHED}"
        )
    print(f"Written: {totals['shards']} shards, {INDEX} and {REPORT} in {args.output_dir}")
    if broken:
        sys.exit("\n".join([f"error: {len(broken)} of {totals['videos']} videos could not be read", *broken]))


if __name__ == "__main__":
    main()
