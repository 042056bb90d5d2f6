"""Recompute the segmentation metrics of a results file under every published convention, from the file alone.

    python benchmarks/recompute_metrics.py outputs/endoscapes/results.json

Only the counts and means per video and class in `per_video` are read. The output compares each recomputed value with
the one in `metrics`.
"""

import argparse
import json
import math
from pathlib import Path


def mean(values) -> float:
    """Compute the mean of the defined values."""
    kept = [value for value in values if value is not None and not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def dice(reference: float, predicted: float, intersection: float) -> float:
    return 2 * intersection / (reference + predicted) if reference + predicted else math.nan


def recompute(results: dict) -> dict[str, float]:
    """Compute the metrics of all conventions over the foreground classes.

    If there is a background class, some metrics are also computed over all classes. Their names end with
    "_with_background".

    Returns:
        {name of the metric: value}.
    """
    videos = [video["per_class"] for video in results["per_video"].values()]
    labels = results["data"]["labels"]
    suffixes = {"": labels}
    if background := results["data"]["background"]:
        suffixes = {"": [label for label in labels if label != background], "_with_background": labels}

    def pixels(counts: dict) -> tuple[int, int, int]:
        return tuple(counts[f"{kind}_pixels"] for kind in ("reference", "predicted", "intersection"))

    def of_class(label: str, numerator, denominator) -> float:
        below = sum(denominator(video[label]) for video in videos)
        return sum(numerator(video[label]) for video in videos) / below if below else math.nan

    def summed_dice(counts: dict) -> float:  # over frames with the class in the labels; others have Dice 0
        return (counts["frame_dice"] or 0.0) * counts["reference_frames"]

    found = {}
    for suffix, classes in suffixes.items():
        found[f"video_dice{suffix}"] = mean(
            mean(dice(*pixels(video[label])) for label in classes if video[label]["reference_pixels"])
            for video in videos
        )
        found[f"pooled_dice{suffix}"] = mean(
            dice(*(sum(kind) for kind in zip(*(pixels(video[label]) for video in videos), strict=True)))
            for label in classes
        )
        found[f"endovit_dice{suffix}"] = mean(
            of_class(label, summed_dice, lambda counts: counts["reference_frames"] + counts["spurious_frames"])
            for label in classes
        )
        for name in ("assd", "hd95", "assd_found", "hd95_found"):
            found[f"video_{name}{suffix}"] = mean(mean(video[label][name] for label in classes) for video in videos)
    foreground = suffixes[""]
    found["atlas_dice"] = mean(
        of_class(label, summed_dice, lambda counts: counts["reference_frames"]) for label in foreground
    )
    found["surgenetdino_dice"] = mean(mean(dice(*pixels(video[label])) for label in foreground) for video in videos)
    found["surgenetdino_hd95"] = mean(
        mean(video[label]["pooled_hd95_found"] for label in foreground) for video in videos
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.json (schema 2) of a segmentation model")
    results = json.loads(parser.parse_args().results.read_text(encoding="utf-8"))
    for name, value in recompute(results).items():
        stated = results["metrics"][name]
        print(f"{name:<32}{value:12.6f}   in the file {stated:12.6f}   difference {abs(value - stated):.1e}")


if __name__ == "__main__":
    main()
