"""Many results files to one comparison: means over seeds, paired bootstrap, ranks, Markdown.

A row is a model, a column a metric on one split of one data set. Results are put side by side only if they come from
the same videos, frames and classes; runs of a model there that differ in their seeds are one row.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from .metrics.bootstrap import confidence_interval
from .results import check_runs, check_same_data, group_by_data, model_labels


@dataclass(frozen=True)
class Metric:
    title: str
    unit: str  # "%": a share, written times 100
    higher_is_better: bool

    def text(self, value: float, sign: str = "") -> str:
        if math.isnan(value):
            return "-"
        return f"{100 * value:{sign}.1f}" if self.unit == "%" else f"{value:{sign}.2f}"


METRICS = {
    "mean_video_dice": Metric("Dice", "%", True),
    "mean_dice": Metric("pooled Dice", "%", True),
    "mean_video_iou": Metric("IoU", "%", True),
    "mean_iou": Metric("pooled IoU", "%", True),
    "pixel_accuracy": Metric("pixel accuracy", "%", True),
    "mean_assd": Metric("ASSD", "px", False),
    "mean_hd95": Metric("HD95", "px", False),
    "mean_average_precision": Metric("mAP", "%", True),
    "mean_balanced_accuracy": Metric("balanced accuracy", "%", True),
    "accuracy": Metric("accuracy", "%", True),
    "macro_f1": Metric("F1", "%", True),
    "macro_precision": Metric("precision", "%", True),
    "macro_recall": Metric("recall", "%", True),
    "macro_jaccard": Metric("Jaccard", "%", True),
    "edit_score": Metric("edit score", "%", True),
    "f1@10": Metric("F1@10", "%", True),
    "f1@25": Metric("F1@25", "%", True),
    "f1@50": Metric("F1@50", "%", True),
}

# the columns of each task, in their order
HEADLINES = {
    "semantic-segmentation": ("mean_video_dice", "mean_assd", "mean_hd95"),
    "image-classification": ("mean_average_precision", "mean_balanced_accuracy"),
    "phase-recognition": ("accuracy", "macro_f1"),
}


@dataclass(frozen=True)
class Column:
    task: str
    data: str
    split: str
    metric: str

    def __str__(self) -> str:
        return f"{self.data}, {self.split}: {METRICS[self.metric].title}"


@dataclass(frozen=True)
class Score:
    """A model in a column.

    Attributes:
        values: of its runs, one a seed.
        draws: bootstrap values, averaged over the runs draw by draw; NaN where a run's is undefined; None without.
        interval: of 95 % of the draws; without draws, what the file of a single run says; NaN if unknown.
    """

    values: tuple[float, ...]
    draws: np.ndarray | None = None
    interval: tuple[float, float] = (math.nan, math.nan)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Standard deviation over seeds (n - 1); NaN for one run."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Comparison:
    """Models against columns.

    Attributes:
        models: names, the best mean rank first.
        columns: by task, data set and split, metric.
        scores: {(model, column): score}, where there is one.
        leakage: {(model, task, data, split): what is known of videos that its weights have seen}.
        notes: {(task, data, split): on the data, the first with the numbers of frames and videos}.
        left_out: models without a score in any column.
    """

    models: tuple[str, ...]
    columns: tuple[Column, ...]
    scores: dict[tuple[str, Column], Score]
    leakage: dict[tuple[str, str, str, str], str]
    notes: dict[tuple[str, str, str], tuple[str, ...]]
    left_out: tuple[str, ...] = ()

    def ranks(self) -> np.ndarray:
        """(models, columns): 1 is best, ties share the mean of their ranks, NaN where a model has no value."""
        return _ranks(self.models, self.columns, self.scores)

    def bootstrap_ranks(self) -> dict[Column, np.ndarray]:
        """Ranks in each bootstrap draw: {column: (models, draws)}.

        Ranks among fewer models are other ranks: columns in which a model has no draws are left out, and draws in
        which the metric is undefined for one.
        """
        found = {}
        for column in self.columns:
            scores = [self.scores.get((model, column)) for model in self.models]
            if any(score is None or score.draws is None for score in scores):
                continue
            draws = np.stack([score.draws for score in scores])
            draws = draws[:, ~np.isnan(draws).any(0)]
            if draws.shape[1]:
                found[column] = rank(draws if METRICS[column.metric].higher_is_better else -draws)
        return found

    def pairs(self) -> list[tuple[Column, str, str, dict]]:
        """`paired_bootstrap` of each pair of models, in every column in which both have draws."""
        found = []
        for column in self.columns:
            scored = [(model, self.scores.get((model, column))) for model in self.models]
            scored = [(model, score) for model, score in scored if score is not None and score.draws is not None]
            for (first, one), (second, other) in combinations(scored, 2):
                pair = paired_bootstrap(one, other, METRICS[column.metric].higher_is_better)
                found.append((column, first, second, pair))
        return found


def compare(results: dict[Path, dict], label_by: str = "model", metrics: Sequence[str] | None = None) -> Comparison:
    """Put results side by side.

    Args:
        results: as `read_results` gives them.
        label_by: "model": the last part of its name or folder, without seed. "pretraining": the weights that it
            started from.
        metrics: names in METRICS; None: the headline figures of each task.

    Raises:
        ValueError: results under one name of data set and split, but on other videos, frames or classes; runs of one
            model and one seed; numbers of bootstrap draws that differ; an unknown metric, or none that a file has.
    """
    if unknown := [name for name in metrics or () if name not in METRICS]:
        raise ValueError(f"unknown metrics: {', '.join(unknown)}; known are {', '.join(METRICS)}")
    labels = model_labels(results, label_by)
    groups = group_by_data(results)
    tasks = list(HEADLINES)
    columns, scores, leakage, notes = [], {}, {}, {}
    for key in sorted(groups, key=lambda key: (tasks.index(key[0]) if key[0] in tasks else len(tasks), *key)):
        group = groups[key]
        check_same_data(group)
        rows: dict[str, dict[Path, dict]] = {}
        for path, found in group.items():
            rows.setdefault(labels[path], {})[path] = found
        chosen = _choose_metrics(key[0], group, metrics)
        columns += (Column(*key, metric) for metric in chosen)
        for model, runs in rows.items():
            check_runs(model, runs)
            if text := _leakage(runs.values()):
                leakage[model, *key] = text
            for metric in chosen:
                if all(_value(found, metric) is not None for found in runs.values()):
                    scores[model, Column(*key, metric)] = _score(runs, metric)
        if not chosen:
            continue
        data = next(iter(group.values()))["data"]
        size = f"{data.get('frames', '?')} frames of {len(data.get('videos') or ())} videos"
        others = (note for found in group.values() for note in found["data"].get("notes") or ())
        notes[key] = size, *dict.fromkeys(others)
    if not scores:
        raise ValueError(f"no file has a value of {' or '.join(metrics or METRICS)}")
    scored = {model for model, _ in scores}
    models = [model for model in dict.fromkeys(labels.values()) if model in scored]
    order = np.argsort(np.nanmean(_ranks(models, columns, scores), axis=1), kind="stable")
    left_out = tuple(sorted(set(labels.values()) - scored))
    return Comparison(tuple(models[i] for i in order), tuple(columns), scores, leakage, notes, left_out)


def paired_bootstrap(first: Score, second: Score, higher_is_better: bool) -> dict:
    """Two models on the same videos: `difference` of means (first - second), its 95 % `interval`, and `probability`.

    The probability is the share of draws in which the first is better; ties count half. Draws in which one of them is
    undefined are left out.

    Raises:
        ValueError: a score without draws, or with another number of them than the other.
    """
    if first.draws is None or second.draws is None or len(first.draws) != len(second.draws):
        raise ValueError("a paired bootstrap needs draws of both models, and as many of the one as of the other")
    differences = first.draws - second.draws
    better = differences[~np.isnan(differences)] * (1 if higher_is_better else -1)
    return {
        "difference": first.mean - second.mean,
        "interval": confidence_interval(differences),
        "probability": float(np.mean((better > 0) + 0.5 * (better == 0))) if len(better) else math.nan,
    }


def rank(values: np.ndarray) -> np.ndarray:
    """Ranks down the first axis: 1 for the highest, ties share the mean of their ranks, NaN stays NaN."""
    higher = (values[None] > values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return np.where(np.isnan(values), np.nan, higher + (equal + 1) / 2)


def markdown_table(comparison: Comparison) -> str:
    """A row a model, a column a data set and metric: mean ± sd over seeds [95 % interval], the best in bold.

    Below it footnotes on leakage, and notes on the data.
    """
    footnotes: dict[str, int] = {}
    header, cells = ["model"], {model: [model] for model in comparison.models}
    for column in comparison.columns:
        metric = METRICS[column.metric]
        arrow = "↑" if metric.higher_is_better else "↓"
        header.append(f"{column.data}, {column.split}<br>{metric.title}, {metric.unit} {arrow}")
        column_scores = {model: comparison.scores.get((model, column)) for model in comparison.models}
        means = [score.mean for score in column_scores.values() if score is not None]
        best = (max if metric.higher_is_better else min)(means) if len(means) > 1 else None
        for model, score in column_scores.items():
            text = comparison.leakage.get((model, column.task, column.data, column.split))
            mark = f"<sup>{footnotes.setdefault(text, len(footnotes) + 1)}</sup>" if text and score else ""
            cells[model].append("-" if score is None else _cell(score, metric, score.mean == best) + mark)
    lines = [_row(header), _row(["---"] * len(header)), *(_row(row) for row in cells.values()), ""]
    lines.append(
        "Mean ± standard deviation over seeds (number of runs) [95 % bootstrap interval over videos, which holds "
        "nothing of the spread over seeds]. Bold: the best. ↑ higher, ↓ lower is better. -: no value."
    )
    if comparison.left_out:
        lines.append(f"\nWithout a value in any column: {', '.join(comparison.left_out)}.")
    lines += [f"\n<sup>{number}</sup> Leakage: {text.rstrip('.')}." for text, number in footnotes.items()]
    lines.append("\nData\n")
    for (task, data, split), notes in comparison.notes.items():
        lines.append(f"- {data}, {split} ({task}): {'; '.join(note.rstrip('.') for note in notes)}.")
    return "\n".join(lines) + "\n"


def paired_table(comparison: Comparison) -> str:
    """Each pair of models in each column: difference, its interval, and the probability that the first is better."""
    lines = [_row(["data and metric", "A", "B", "A - B", "95 % interval", "P(A is better)"]), _row(["---"] * 6)]
    for column, first, second, pair in comparison.pairs():
        metric = METRICS[column.metric]
        low, high = (metric.text(bound, "+") for bound in pair["interval"])
        difference, chance = metric.text(pair["difference"], "+"), pair["probability"]
        probability = "-" if math.isnan(chance) else f"{chance:.3f}"
        lines.append(_row([f"{column}, {metric.unit}", first, second, difference, f"[{low}, {high}]", probability]))
    lines.append(
        "\nPaired bootstrap over videos: in each draw both models are on the same videos. P: share of draws in which "
        "A is better, ties counting half; not corrected for the number of comparisons."
    )
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(score: Score, metric: Metric, bold: bool) -> str:
    text = f"**{metric.text(score.mean)}**" if bold else metric.text(score.mean)
    if len(score.values) > 1:
        text += f" ± {metric.text(score.sd)} ({len(score.values)})"
    low, high = score.interval
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{metric.text(low)}, {metric.text(high)}]"


def _ranks(models: Sequence[str], columns: Sequence[Column], scores: dict) -> np.ndarray:
    values = np.full((len(models), len(columns)), np.nan)
    for j, column in enumerate(columns):
        for i, model in enumerate(models):
            if score := scores.get((model, column)):
                values[i, j] = score.mean if METRICS[column.metric].higher_is_better else -score.mean
    return rank(values)


def _choose_metrics(task: str, group: dict[Path, dict], chosen: Sequence[str] | None) -> list[str]:
    """The metrics that become columns: those chosen, or the headlines, of which a file has a value."""
    names = chosen or HEADLINES.get(task, METRICS)
    return [name for name in names if any(_value(found, name) is not None for found in group.values())]


def _value(results: dict, metric: str) -> float | None:
    value = results["metrics"].get(metric)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _score(runs: dict[Path, dict], metric: str) -> Score:
    values = tuple(_value(found, metric) for found in runs.values())
    draws = [(found.get("bootstrap") or {}).get(metric) for found in runs.values()]
    if not all(draws):
        stated = next(iter(runs.values())).get("intervals") or {} if len(runs) == 1 else {}
        low, high = np.array(stated.get(metric) or (None, None), float)  # null is NaN
        return Score(values, None, (float(low), float(high)))
    mean = np.mean(np.array(draws, float), axis=0)
    return Score(values, mean, confidence_interval(mean))


def _leakage(runs: Iterable[dict]) -> str | None:
    """What is known, or not, of videos of this evaluation that these runs' weights have seen; None: they saw none."""
    texts = (found["data"].get("leakage", "unknown: the results file does not say") for found in runs)
    return "; ".join(dict.fromkeys(filter(None, texts))) or None
