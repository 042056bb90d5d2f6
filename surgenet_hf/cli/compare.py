"""Compare models from their results files: tables with intervals and paired tests, and charts of ranks.

  surgenet compare --results outputs/xl-seed0 outputs/xl-seed1 outputs/imagenet
  surgenet compare --results outputs --label_by pretraining --metrics frame_dice video_hd95 --output_dir other_metrics

Folders are searched for results.json. Runs of a model that differ only in their seed become one row. Results on other
datasets or splits become other columns.
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class ComparisonArguments:
    """Which results are compared, and how."""

    results: list[str] = option(MISSING, "Results files, or folders that contain results.json.")
    output_dir: str = option(
        "outputs/comparison", "Folder for comparison.md, run.yaml, and the charts radar and blobs (PNG and PDF)."
    )
    metrics: list[str] | None = option(
        None, "Names of metrics in results.json. Default: the two main metrics of each task."
    )
    label_by: str = option(
        "model",
        "Name of each row. model: the folder of the model without its seed. pretraining: the initial weights.",
        choices=["model", "pretraining"],
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(ComparisonArguments, prog="surgenet compare", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)

    from ..checkpointing import check_output_dir
    from ..evaluation.compare import compare
    from ..evaluation.results import read_results
    from ..evaluation.tables import markdown_table, paired_table

    comparison = compare(read_results(args.results), args.label_by, args.metrics)
    tables = [markdown_table(comparison)]
    if pairs := comparison.pairs():
        tables.append(f"## Pairs\n\n{paired_table(pairs)}")
    output_dir = check_output_dir(args.output_dir)
    parser.save_resolved(output_dir)
    (output_dir / "comparison.md").write_text("# Comparison\n\n" + "\n".join(tables), encoding="utf-8")
    print("\n".join(tables))
    charts, omitted = draw_charts(comparison, output_dir)
    print("Written\n" + "\n".join(f"  {path}" for path in [output_dir / "comparison.md", *charts]))
    if omitted:
        print("Omitted\n" + "\n".join(f"  {reason}" for reason in omitted))


def draw_charts(comparison, output_dir: Path) -> tuple[list[Path], list[str]]:
    """Draw the charts that the results allow.

    Args:
        comparison: `surgenet_hf.evaluation.compare.Comparison`.
        output_dir: folder to write to.

    Returns:
        The files, and the reasons why charts or columns are omitted.
    """
    import numpy as np

    from ..evaluation.statistics import MIN_VIDEOS
    from ..figures import blob_figure, radar_figure, save_both

    written: list[Path] = []
    omitted = []
    several = len(comparison.models) > 1
    if several and len(comparison.columns) >= 3:
        axes = [str(column).replace(": ", "\n") for column in comparison.columns]
        radar = radar_figure(comparison.ranks(), comparison.models, axes, "Ranks over datasets and metrics")
        written += save_both(radar, output_dir / "radar")
    else:
        omitted.append("radar: needs at least two models and three columns")
    ranks = comparison.bootstrap_ranks()
    if several and ranks:
        title = "Ranks over columns and resamples of the videos"
        pooled = {
            model: np.concatenate([found[i] for found in ranks.values()]) for i, model in enumerate(comparison.models)
        }
        written += save_both(blob_figure(pooled, title), output_dir / "blobs")
    if several and len(ranks) < len(comparison.columns):
        missing = "; ".join(str(column) for column in comparison.columns if column not in ranks)
        omitted.append(
            "blobs: columns in which a model has no result, no bootstrap draws, or fewer than "
            f"{MIN_VIDEOS} videos: {missing}"
        )
    return written, omitted


if __name__ == "__main__":
    main()
