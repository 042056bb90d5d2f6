"""Compare models from their results files: tables with intervals and paired tests, and charts of ranks.

python scripts/compare_models.py --results outputs/xl-seed0 outputs/xl-seed1 outputs/imagenet
python scripts/compare_models.py --results outputs --label_by pretraining --metrics frame_dice video_hd95 \
    --output_dir outputs/other_metrics

Folders are searched for results.json. Runs of a model that differ only in their seed become one row. Results on other
datasets or splits become other columns.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.evaluation.compare import compare, markdown_table, paired_table
from surgenet_hf.evaluation.results import read_results
from surgenet_hf.evaluation.statistics import MIN_VIDEOS
from surgenet_hf.figures import blob_figure, radar_figure, save_both


@dataclass
class Arguments:
    results: list[str] = field(metadata={"help": "Results files, or folders that contain results.json."})
    output_dir: str = field(
        default="outputs/comparison",
        metadata={"help": "Folder for comparison.md and the charts radar and blobs (PNG and PDF)."},
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={"help": "Names of metrics in results.json. Default: the two main metrics of each task."},
    )
    label_by: str = field(
        default="model",
        metadata={
            "help": "Name of a row: the model's folder without its seed, or the weights that the model started from.",
            "choices": ["model", "pretraining"],
        },
    )


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(Arguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    output_dir = Path(args.output_dir)
    try:
        comparison = compare(read_results(args.results), args.label_by, args.metrics)
        output_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"compare_models.py: error: {error}")

    tables = [markdown_table(comparison)]
    if pairs := comparison.pairs():
        tables.append(f"## Pairs\n\n{paired_table(pairs)}")
    (output_dir / "comparison.md").write_text("# Comparison\n\n" + "\n".join(tables), encoding="utf-8")
    print("\n".join(tables))
    written, left_out = [output_dir / "comparison.md"], []

    several = len(comparison.models) > 1
    if several and len(comparison.columns) >= 3:
        axes = [str(column).replace(": ", "\n") for column in comparison.columns]
        radar = radar_figure(comparison.ranks(), comparison.models, axes, "Ranks over datasets and metrics")
        written += save_both(radar, output_dir / "radar")
    else:
        left_out.append("radar: needs at least two models and three columns")
    ranks = comparison.bootstrap_ranks()
    if several and ranks:
        title = "Ranks over columns and resamples of the videos"
        pooled = {
            model: np.concatenate([found[i] for found in ranks.values()]) for i, model in enumerate(comparison.models)
        }
        written += save_both(blob_figure(pooled, title), output_dir / "blobs")
    if several and len(ranks) < len(comparison.columns):
        missing = "; ".join(str(column) for column in comparison.columns if column not in ranks)
        left_out.append(
            "columns of blobs in which a model has no result, no bootstrap draws, or fewer than "
            f"{MIN_VIDEOS} videos: {missing}"
        )
    print("Written\n" + "\n".join(f"  {path}" for path in written))
    if left_out:
        print("Left out\n" + "\n".join(f"  {reason}" for reason in left_out))


if __name__ == "__main__":
    main()
