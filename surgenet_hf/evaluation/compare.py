"""Comparison of results files: means over runs, intervals, paired tests, and ranks.

A row is a model, and a column is a metric on one split of one dataset. Results share a column only if they have the
same videos, frames, and classes. Runs of a model that differ only in their seed share a row.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..tasks import TASKS
from .results import (
    OLD_SCHEMA,
    SCHEMA,
    check_runs,
    check_same_data,
    group_by_data,
    interval_bounds,
    metric_title,
    model_labels,
)
from .statistics import (
    LEVEL,
    MIN_VIDEOS,
    Interval,
    PairedTest,
    bootstrap_interval,
    cannot_be_significant,
    holm,
    mean_draws,
    metric_bounds,
    sign_flip_test,
    student_interval,
)


@dataclass(frozen=True)
class Column:
    """Metric on one split of one dataset."""

    task: str
    data: str
    split: str
    metric: str

    def __str__(self) -> str:
        return f"{self.data}, {self.split}: {self.title}"

    @property
    def title(self) -> str:
        return metric_title(self.metric)

    @property
    def higher_is_better(self) -> bool:
        """Return whether higher values are better: shares from 0 to 1, but not distances."""
        return math.isfinite(metric_bounds(self.metric)[1])

    @property
    def unit(self) -> str:
        return "%" if self.higher_is_better else "px"

    def text(self, value: float, sign: str = "") -> str:
        """Format a value in the unit of the column."""
        return f"{100 * value:{sign}z.1f}" if self.higher_is_better else f"{value:{sign}z.2f}"

    def rank(self, values: np.ndarray) -> np.ndarray:
        """Rank values along the first axis. Rank 1 is the best."""
        return rank(values if self.higher_is_better else -values)


@dataclass(frozen=True)
class Score:
    """Result of a model in a column.

    Attributes:
        values: metric of each run.
        videos: number of videos with a value.
        interval: 95 % interval (low, high) over videos, or None.
        per_video: values of the videos in sorted order, averaged over runs. NaN if a run has no value. None if the
            metric is not a mean over videos.
        draws: stored bootstrap draws, averaged over runs. NaN if a run has no value. None if a file has no draws.
    """

    values: tuple[float, ...]
    videos: int
    interval: tuple[float, float] | None = None
    per_video: np.ndarray | None = None
    draws: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Return the sample standard deviation over runs, NaN for a single run."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Pair:
    """Difference between two models in a column.

    Attributes:
        column: column of both scores.
        first: name of the first model.
        second: name of the second model.
        difference: score of the first model minus score of the second model.
        videos: number of videos with a value of both models.
        test: paired test, or None if the metric has no values per video.
        adjusted_p: p-value adjusted for the number of tests in the column.
        tests: number of tests in the column.
        interval: paired bootstrap interval if there is no test and both models have draws.
    """

    column: Column
    first: str
    second: str
    difference: float
    videos: int
    test: PairedTest | None = None
    adjusted_p: float = math.nan
    tests: int = 0
    interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        if self.test is None:
            return "not tested: no values per video"
        if self.adjusted_p <= 1 - LEVEL:
            better = self.first if (self.difference > 0) == self.column.higher_is_better else self.second
            return f"{better} is better"
        if cannot_be_significant(self.test.smallest_p, self.tests):
            return f"cannot be significant at n = {self.videos}"
        return "not significant"


@dataclass(frozen=True)
class Comparison:
    """Comparison of models on several columns.

    Attributes:
        models: names of the models, sorted by mean rank, the best first.
        columns: columns sorted by task, dataset, and split.
        scores: {(model, column): score} for all existing scores.
        cautions: {(model, task, data, split): reasons why these results are, or could be, too optimistic}.
        notes: {(task, data, split): notes on the data}. The first note has the number of frames and videos. The next
            note has the size of the input of each model, if the sizes differ.
        left_out: models without a score in any column.
    """

    models: tuple[str, ...]
    columns: tuple[Column, ...]
    scores: dict[tuple[str, Column], Score]
    cautions: dict[tuple[str, str, str, str], tuple[str, ...]]
    notes: dict[tuple[str, str, str], tuple[str, ...]]
    left_out: tuple[str, ...] = ()

    def ranks(self) -> np.ndarray:
        """Rank the models in each column.

        Returns:
            Ranks (models, columns). 1 is the best, ties share the lowest of their ranks, and models without a value
            have NaN.
        """
        return _ranks(self.models, self.columns, self.scores)

    def bootstrap_ranks(self) -> dict[Column, np.ndarray]:
        """Rank the models on each bootstrap resample of the videos.

        A column is excluded if a model has no draws, because ranks among fewer models are not comparable. Resamples on
        which a metric is undefined for a model are also excluded.

        Returns:
            {column: ranks (models, resamples)}
        """
        found = {}
        for column in self.columns:
            draws = _paired_draws([self.scores.get((model, column)) for model in self.models])
            if draws is not None and draws.shape[1]:
                found[column] = column.rank(draws)
        return found

    def pairs(self) -> list[Pair]:
        """Compare each pair of models in each column on the same videos.

        Means over videos are compared with a sign-flip permutation test. Holm's method adjusts the p-values for the
        number of tests in the column. Other metrics are not tested.
        """
        found = []
        for column in self.columns:
            scored = [model for model in self.models if (model, column) in self.scores]
            couples = list(combinations(scored, 2))
            pairs = [_pair(column, *couple, *(self.scores[model, column] for model in couple)) for couple in couples]
            tests = [pair.test for pair in pairs if pair.test is not None]
            adjusted = iter(holm([test.p for test in tests]))
            for pair in pairs:
                if pair.test is not None:
                    pair = replace(pair, adjusted_p=next(adjusted), tests=len(tests))
                found.append(pair)
        return found


def compare(
    results: dict[Path, dict], label_by: str | Mapping[Path, str] = "model", metrics: Sequence[str] | None = None
) -> Comparison:
    """Compare results of several models.

    Args:
        results: results as returned by `read_results`.
        label_by: "model" labels a result by the last part of the model's name or folder, without the seed.
            "pretraining" labels it by the initial weights of the model. A mapping contains the label of each path.
        metrics: names of scalar metrics in the files. Default: the main metrics of each task (`surgenet_hf.tasks`).

    Returns:
        The comparison.

    Raises:
        UserError: a file has schema 1. Results on the same dataset and split differ in their videos, frames, or
            classes. Runs of a model have the same seed. Numbers of bootstrap draws differ. No file has a requested
            metric, or it is a standard deviation.
        ValueError: `label_by` is unknown.
    """
    for path, found in results.items():
        if found["schema"] == OLD_SCHEMA:
            raise UserError(
                f"{path} has the schema {OLD_SCHEMA!r}, but a comparison needs {SCHEMA!r}, which has values per video "
                "for all metrics; evaluate the model again"
            )
    labels = model_labels(results, label_by) if isinstance(label_by, str) else dict(label_by)
    groups = group_by_data(results)
    _check_metrics(metrics or (), results)
    tasks = list(TASKS)
    columns: list[Column] = []
    scores, cautions, notes = {}, {}, {}
    for key in sorted(groups, key=lambda key: (tasks.index(key[0]) if key[0] in tasks else len(tasks), *key)):
        group = groups[key]
        check_same_data(group)
        rows: dict[str, dict[Path, dict]] = {}
        for path, found in group.items():
            rows.setdefault(labels[path], {})[path] = found
        names = metrics or _headlines(key[0])
        chosen = [name for name in names if any(_value(found, name) is not None for found in group.values())]
        columns += (Column(*key, metric) for metric in chosen)
        for model, runs in rows.items():
            check_runs(model, runs)
            cautions[model, *key] = _cautions(runs.values())
            for metric in chosen:
                if all(_value(found, metric) is not None for found in runs.values()):
                    scores[model, Column(*key, metric)] = _score(list(runs.values()), metric)
        if not chosen:
            continue
        data = next(iter(group.values()))["data"]
        size = f"{data.get('frames', '?')} frames of {len(data.get('videos') or ())} videos"
        others = (note for found in group.values() for note in found["data"].get("notes") or ())
        notes[key] = size, *_input_sizes(rows), *dict.fromkeys(others)
    if not scores:
        names = metrics or dict.fromkeys(name for task, *_ in groups for name in _headlines(task))
        raise UserError(
            f"No results file has a value for {' or '.join(names) or 'a metric of a known task'}; choose other metrics"
        )
    scored = {model for model, _ in scores}
    models = [model for model in dict.fromkeys(labels.values()) if model in scored]
    order = np.argsort(np.nanmean(_ranks(models, columns, scores), axis=1), kind="stable")
    left_out = tuple(sorted(set(labels.values()) - scored))
    return Comparison(tuple(models[i] for i in order), tuple(columns), scores, cautions, notes, left_out)


def _input_sizes(rows: dict[str, dict[Path, dict]]) -> list[str]:
    """Return a note on the input of each model if the models have inputs of different sizes, otherwise nothing."""
    sizes = {model: next(iter(runs.values()))["data"].get("image_size") for model, runs in rows.items()}
    texts = {model: "unknown" if size is None else "{} x {}".format(*size) for model, size in sizes.items()}
    if len(set(texts.values())) == 1:
        return []
    return ["input in pixels: " + ", ".join(f"{model} {text}" for model, text in texts.items())]


def _headlines(task: str) -> tuple[str, ...]:
    return TASKS[task].headlines if task in TASKS else ()


def rank(values: np.ndarray) -> np.ndarray:
    """Rank values along the first axis. 1 is the highest, and NaN stays NaN.

    Ties share the lowest of their ranks, the default of challengeR (`ties.method = "min"` of `aggregateThenRank`).
    """
    return np.where(np.isnan(values), np.nan, (values[None] > values[:, None]).sum(1) + 1)


def _ranks(models: Sequence[str], columns: Sequence[Column], scores: dict) -> np.ndarray:
    ranks = np.full((len(models), len(columns)), np.nan)
    for j, column in enumerate(columns):
        found = [scores.get((model, column)) for model in models]
        ranks[:, j] = column.rank(np.array([np.nan if score is None else score.mean for score in found]))
    return ranks


def _check_metrics(names: Sequence[str], results: dict[Path, dict]) -> None:
    """Check that the files have comparable metrics of these names.

    Raises:
        UserError: no file has the metric, or it is a standard deviation.
    """
    every = {name for found in results.values() for name in found["metrics"] if name != "per_class"}
    available = sorted(name for name in every if not name.endswith("_sd"))
    for name in names:
        if name.endswith("_sd"):
            raise UserError(
                f"{name} is a standard deviation over videos, which cannot be ranked; compare "
                f"{name.removesuffix('_sd')} instead"
            )
        if name not in available:
            near = difflib.get_close_matches(name, available, cutoff=0.5)
            hint = (
                f"similar metrics are {', '.join(near)}" if near else f"available metrics are {', '.join(available)}"
            )
            raise UserError(f"No results file has the metric {name!r}; {hint}")


def _value(results: dict, metric: str) -> float | None:
    return results["metrics"].get(metric)


def _score(runs: list[dict], metric: str) -> Score:
    values = tuple(_value(found, metric) for found in runs)
    per_video, draws = _mean_over_runs(runs, metric, _per_video), _mean_over_runs(runs, metric, _stored_draws)
    videos = len(runs[0]["data"].get("videos") or ()) if per_video is None else int((~np.isnan(per_video)).sum())
    interval = None
    if len(runs) == 1:
        low, high = interval_bounds(runs[0], metric)
        interval = None if low is None or high is None else (low, high)
    elif per_video is not None:
        interval = _bounds(student_interval(per_video, metric_bounds(metric)))
    elif draws is not None:
        interval = _bounds(bootstrap_interval(draws, videos, metric_bounds(metric)))
    return Score(values, videos, interval, per_video, draws)


def _bounds(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


def _mean_over_runs(runs: list[dict], metric: str, read) -> np.ndarray | None:
    """Return the mean over runs of the arrays from `read`, or None if a run has no array."""
    arrays = [read(found, metric) for found in runs]
    return None if any(array is None for array in arrays) else np.mean(arrays, axis=0)


def _per_video(results: dict, metric: str) -> np.ndarray | None:
    """Return the values of the videos in sorted order. Neutral names in published files keep this order."""
    table = results.get("per_video") or {}
    videos = sorted(results["data"].get("videos") or ())
    if not videos or any(metric not in table.get(video, {}) for video in videos):
        return None
    return np.array([table[video][metric] for video in videos], float)  # null becomes NaN


def _stored_draws(results: dict, metric: str) -> np.ndarray | None:
    draws = (results.get("bootstrap") or {}).get(metric)
    return np.array(draws, float) if draws else None


def _paired_draws(scores: Sequence[Score | None]) -> np.ndarray | None:
    """Return bootstrap draws (models, resamples) on which all models have a value.

    The resamples are the same for all models. The result is None if draws are missing, or if a score has fewer than
    `MIN_VIDEOS` videos, which give too few distinct resamples.
    """
    known = [score for score in scores if score is not None and score.videos >= MIN_VIDEOS]
    if len(known) < len(scores):
        return None
    per_video = [score.per_video for score in known if score.per_video is not None]
    stored = [score.draws for score in known if score.draws is not None]
    if len(per_video) == len(known):
        draws = np.stack([mean_draws(values) for values in per_video])
    elif len(stored) == len(known):
        draws = np.stack(stored)
    else:
        return None
    return draws[:, ~np.isnan(draws).any(axis=0)]


def _pair(column: Column, first: str, second: str, one: Score, other: Score) -> Pair:
    if one.per_video is not None and other.per_video is not None:
        test = sign_flip_test(one.per_video, other.per_video)
        if test is not None:
            return Pair(column, first, second, test.difference, test.videos, test)
    videos = min(one.videos, other.videos)
    draws = _paired_draws([one, other])
    interval = None if draws is None else _bounds(bootstrap_interval(draws[0] - draws[1], videos))
    return Pair(column, first, second, one.mean - other.mean, videos, interval=interval)


def _cautions(runs: Iterable[dict]) -> tuple[str, ...]:
    """Return notes on evaluation videos that trained or selected these models, or possibly did."""
    notes = (found["data"].get("leakage", "unknown: the results file does not say") for found in runs)
    return tuple(f"Leakage: {note}" for note in dict.fromkeys(filter(None, notes)))
