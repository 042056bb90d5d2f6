"""Compare models from their results files: Markdown tables, paired bootstrap, radar of ranks, blob chart of ranks.

python scripts/compare_models.py --results outputs/xl-seed0 outputs/xl-seed1 outputs/imagenet
python scripts/compare_models.py --results outputs --label_by pretraining --metrics mean_video_dice mean_assd \
    --output_dir outputs/dice_and_assd

Folders are searched for results.json. Runs of one model that differ in their seeds become one row; results on other
videos are other columns, or refused where data set and split have the same name.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from surgenet_hf.arguments import ArgumentParser
from surgenet_hf.comparison import compare, markdown_table, paired_table
from surgenet_hf.figures import blob_figure, radar_figure, save_both
from surgenet_hf.results import read_results


@dataclass
class Arguments:
    results: list[str] = field(metadata={"help": "Results files, or folders with results.json in them."})
    output_dir: str = field(
        default="outputs/comparison", metadata={"help": "Folder for comparison.md, radar and blobs (PNG and PDF)."}
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={"help": "Metrics to compare, by their names in results.json; left out: the headlines of each task."},
    )
    label_by: str = field(
        default="model",
        metadata={
            "help": "What a row is called: the model's folder without its seed, or the weights it started from.",
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
    except (OSError, ValueError) as error:  # what the user can mend: the message is enough
        sys.exit(f"compare_models.py: error: {error}")

    tables = [markdown_table(comparison)]
    if comparison.pairs():
        tables.append(f"## Pairs\n\n{paired_table(comparison)}")
    (output_dir / "comparison.md").write_text("# Comparison\n\n" + "\n".join(tables), encoding="utf-8")
    print(tables[0])
    written, left_out = [output_dir / "comparison.md"], []

    several = len(comparison.models) > 1
    if several and len(comparison.columns) >= 3:
        axes = [str(column).replace(": ", "\n") for column in comparison.columns]
        radar = radar_figure(comparison.ranks(), comparison.models, axes, "Ranks over data sets and metrics")
        written += save_both(radar, output_dir / "radar")
    else:
        left_out.append("radar: it needs two models and three columns")
    ranks = comparison.bootstrap_ranks()
    if several and ranks:
        title = f"Bootstrap ranks over {len(ranks)} data sets and metrics"
        pooled = {model: [found[i] for found in ranks.values()] for i, model in enumerate(comparison.models)}
        written += save_both(blob_figure(pooled, title), output_dir / "blobs")
    if several and len(ranks) < len(comparison.columns):
        missing = "; ".join(str(column) for column in comparison.columns if column not in ranks)
        left_out.append(f"blobs without the columns in which a model has no bootstrap draws: {missing}")
    print("Written\n" + "\n".join(f"  {path}" for path in written))
    if left_out:
        print("Left out\n" + "\n".join(f"  {reason}" for reason in left_out))


if __name__ == "__main__":
    main()
