"""Schema, reader, and validation of results files, and checks that results are comparable."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from ..data.names import named
from ..errors import MissingFileError, UserError
from ..privacy import video_hashes
from ..tasks import TASKS
from .probe_arguments import DEFAULT_POOLING

FINE_TUNING, FROZEN = "fine-tuning", "frozen backbone"  # modes of training
SCHEMA, OLD_SCHEMA = "surgenet_hf.results/2", "surgenet_hf.results/1"
# {metric: common name}, for metrics whose name is not self-explanatory
TITLES = {
    "video_dice": "Dice",
    "video_iou": "IoU",
    "video_assd": "ASSD",
    "video_hd95": "HD95",
    "mean_average_precision": "mAP",
    "mean_video_average_precision": "video-wise mAP",
    "mean_balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "macro_f1": "F1",
    "edit_score": "edit score",
}
# parts of a model's folder that describe the run, not the model
RUN_FOLDERS = re.compile(r"model|best|final|last|checkpoint-\d+")
SEED = re.compile(r"[-_. ]?seed[-_=. ]?(\d+)")


def read_results(paths: Iterable[str | os.PathLike]) -> dict[Path, dict]:
    """Read results files. Each file is read once.

    Args:
        paths: files, or folders that are searched for results.json.

    Returns:
        {path: content of the file}

    Raises:
        MissingFileError: a path does not exist, or a folder contains no results.json.
        UserError: a file is not valid (see `read_results_file`).
    """
    read, seen = {}, set()
    for path in map(Path, paths):
        if not path.exists():
            raise MissingFileError(f"{path} does not exist; give results.json files, or the folders that contain them")
        found = sorted(path.rglob("results.json")) if path.is_dir() else [path]
        if not found:
            raise MissingFileError(
                f"{path} and its subfolders contain no results.json; give the output folders of runs"
            )
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                read[file] = read_results_file(file)
    return read


def read_results_file(path: str | os.PathLike) -> dict:
    """Read and validate one results file.

    Raises:
        UserError: the file is not JSON, has another schema, or lacks a required field. Also raised if a value has a
            wrong type or is outside the range of its metric. The message names the file and the field.
    """
    path = Path(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not text
        raise UserError(f"{path} is not JSON: {error}") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema not in (SCHEMA, OLD_SCHEMA):
        raise UserError(f"{path} is not a results file: its schema is {schema!r}; expected {SCHEMA!r}")
    check_results(results, str(path))
    return results


def find_results(model_dir: str | os.PathLike) -> Path | None:
    """Return the results.json of a saved model, in its folder or the parent folder, or None."""
    paths = (Path(model_dir, "results.json"), Path(model_dir).parent / "results.json")
    return next((path for path in paths if path.is_file()), None)


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list_of(*kinds: type) -> Callable:
    return lambda value: isinstance(value, list) and all(isinstance(item, kinds) for item in value)


def _object_of(*kinds: type) -> Callable:
    return lambda value: isinstance(value, dict) and all(isinstance(item, kinds) for item in value.values())


# {(expected content in words, check): fields}; an object comes before its parts
_FIELDS = {
    ("an object", _object_of(object)): "model training data definitions metrics inference",
    ("a string", lambda value: isinstance(value, str)): (
        "task command model.name model.type training.mode training.pooling data.name data.split data.split_protocol "
        "data.background data.leakage inference.runtime inference.precision"
    ),
    ("a non-negative integer", _is_count): (
        "seed model.parameters training.train_videos training.train_frames data.frames inference.calibration_frames"
    ),
    ("true or false", lambda value: isinstance(value, bool)): "data.videos_are_public inference.compile",
    ("an object or a string", lambda value: isinstance(value, dict | str)): "model.pretraining",
    ("a list of strings", _list_of(str)): (
        "data.videos data.labels data.notes data.selected training.train_video_names"
    ),
    ("a list of two non-negative integers", lambda value: isinstance(value, list) and all(map(_is_count, value))): (
        "data.image_size"
    ),
    ("an object with string values", _object_of(str)): "data.video_hashes versions",
    ("an object with object values", _object_of(dict)): "metrics.per_class per_video comparisons",
    ("an object with list values", _object_of(list)): "bootstrap",
    ("an object with object or list values", _object_of(dict, list, NoneType)): "intervals",
}
_REQUIRED = ("task", "model", "data", "metrics", "data.name", "data.split")
# (part of a metric's name, minimum, maximum); other metrics have no known range
_RANGES = (
    (re.compile("assd|hd95"), 0, math.inf),
    (re.compile("frames$|videos$|pixels$|positives|negatives|missed|spurious|relaxed_hits|segments@"), 0, math.inf),
    (re.compile("dice|iou|jaccard|precision|recall|accuracy|f1|edit_score"), 0, 1),
)


def check_results(results: dict, source: str) -> None:
    """Check types and ranges of the content of a results file. Null counts as missing.

    Args:
        results: content of the file.
        source: name of the file in error messages.

    Raises:
        UserError: a field is not valid. The message names the source and the field.
    """
    for (expected, is_valid), fields in _FIELDS.items():
        for field in fields.split():
            value = _field(results, field)
            if value is not None and not is_valid(value):
                raise UserError(f"{source}: {field} is {_excerpt(value)}; expected {expected}")
    videos = _field(results, "data.videos") or []
    if len(set(videos)) < len(videos):
        raise UserError(f"{source}: data.videos contains a video twice; expected each video once")
    if missing := [field for field in _REQUIRED if not _field(results, field)]:
        raise UserError(f"{source} lacks {', '.join(missing)}")
    fraction = _field(results, "training.train_fraction")
    if fraction is not None and not (isinstance(fraction, int | float) and 0 < fraction <= 1):
        raise UserError(f"{source}: training.train_fraction is {_excerpt(fraction)}; expected a number from 0 to 1")
    for field, metric, value in _numbers(results):
        low, high = next(((low, high) for name, low, high in _RANGES if name.search(metric)), (-math.inf, math.inf))
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if value is not None and not (is_number and low - 1e-6 <= value <= high + 1e-6):
            scope = "" if low == -math.inf else f" from {low}" + ("" if high == math.inf else f" to {high}")
            raise UserError(f"{source}: {field} is {_excerpt(value)}; expected a number{scope}, or null")
    for metric in results.get("intervals") or {}:
        lower, upper = interval_bounds(results, metric)
        if lower is not None and upper is not None and lower > upper:
            raise UserError(f"{source}: intervals.{metric} is {_excerpt([lower, upper])}; expected [lower, upper]")


def metric_title(name: str) -> str:
    """Return the name of a metric in tables and figures. The default is its key with spaces."""
    return TITLES.get(name, name.replace("_", " "))


def training_label(results: dict) -> str:
    """Describe how the labeled data trained a model, if this is not fine-tuning on all training videos.

    The result is "" for fine-tuning on all videos. It is for example "25 % of the videos" or "k-NN, mean pooling".
    """
    training = results.get("training") or {}
    mode, fraction, pooling = (training.get(key) for key in ("mode", "train_fraction", "pooling"))
    parts = [
        "" if mode in (None, FINE_TUNING) else mode,
        f"{pooling} pooling" if pooling not in (None, DEFAULT_POOLING) else "",
        f"{100 * fraction:g} % of the videos" if fraction not in (None, 1) else "",
    ]
    return ", ".join(part for part in parts if part)


def interval_bounds(results: dict, metric: str) -> tuple[float | None, float | None]:
    """Return the bounds of a metric's interval in either schema, or (None, None) without an interval."""
    interval = (results.get("intervals") or {}).get(metric)
    if isinstance(interval, dict):
        return interval.get("low"), interval.get("high")
    return tuple(interval) if interval else (None, None)


def inference_text(results: dict) -> str | None:
    """Return runtime and precision of an evaluation in words, or None for float32 in PyTorch."""
    found = results.get("inference")
    if not found:
        return None
    return f"{found.get('runtime')} {found.get('precision')}" + ", compiled" * bool(found.get("compile"))


def headlines(results: dict) -> list[str]:
    """Return the main metrics that have a value in a results file, most important first."""
    task = TASKS.get(results["task"])
    names = task.headlines if task else ()
    return [name for name in names if isinstance(results["metrics"].get(name), int | float)]


def _field(results: dict, field: str):
    """Return the value of a field such as "data.name", or None if it is missing."""
    *parents, name = field.split(".")
    for parent in parents:
        results = results.get(parent) or {}
    return results.get(name)


def _numbers(results: dict) -> Iterator[tuple[str, str, Any]]:
    """Yield field, metric name, and value for all fields that must be a number or null."""
    tables = {"metrics": results["metrics"]}
    tables |= {f"comparisons.{name}": metrics for name, metrics in (results.get("comparisons") or {}).items()}
    tables |= {f"per_video.{video}": metrics for video, metrics in (results.get("per_video") or {}).items()}
    for table, metrics in tables.items():
        for metric, value in metrics.items():
            if metric == "per_class" and _object_of(dict)(value):
                for label, of_label in value.items():
                    yield from ((f"{table}.per_class.{label}.{name}", name, item) for name, item in of_label.items())
            elif metric.startswith("segments@") and isinstance(value, list):
                yield from ((f"{table}.{metric}[{i}]", metric, item) for i, item in enumerate(value))
            else:
                yield f"{table}.{metric}", metric, value
    for metric, values in (results.get("bootstrap") or {}).items():
        yield from ((f"bootstrap.{metric}[{i}]", metric, value) for i, value in enumerate(values))
    for metric, interval in (results.get("intervals") or {}).items():
        bounds = {"low": interval.get("low"), "high": interval.get("high")} if isinstance(interval, dict) else interval
        if isinstance(bounds, list) and len(bounds) == 2:
            bounds = dict(enumerate(bounds))
        if not isinstance(bounds, dict):
            yield f"intervals.{metric}", metric, bounds
        else:
            yield from ((f"intervals.{metric}[{name}]", metric, value) for name, value in bounds.items())


def _excerpt(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def group_by_data(results: dict[Path, dict]) -> dict[tuple[str, str, str], dict[Path, dict]]:
    """Group the files by (task, name of dataset, split)."""
    groups: dict[tuple[str, str, str], dict[Path, dict]] = {}
    for path, found in results.items():
        groups.setdefault((found["task"], found["data"]["name"], found["data"]["split"]), {})[path] = found
    return groups


def model_labels(results: dict[Path, dict], label_by: str) -> dict[Path, str]:
    """Return the label of the model of each file, with its `training_label` in parentheses.

    Args:
        results: results by path.
        label_by: "model" uses the last part of the model's name or folder, or as many parts as necessary to
            distinguish the models on the same data. "pretraining" uses the initial weights. If these are unknown, the
            label is "unknown" with the model's name. Runtime and precision follow, if they are not the default.

    Raises:
        UserError: two models have the same label but different initial weights.
        ValueError: `label_by` is unknown.
    """
    if label_by not in ("model", "pretraining"):
        raise ValueError(f"label_by must be 'model' or 'pretraining', got {label_by!r}")
    names = {path: _name_parts(found) for path, found in results.items()}
    depth = 1
    for paths in group_by_data(results).values():
        different = len({names[path] for path in paths})
        while len({names[path][-depth:] for path in paths}) < different:
            depth += 1
    settings = {path: f" ({text})" if (text := inference_text(found)) else "" for path, found in results.items()}
    labels = {path: "/".join(parts[-depth:]) for path, parts in names.items()}
    if label_by == "pretraining":
        labels = {path: _pretraining(found) or f"unknown ({labels[path]})" for path, found in results.items()}
    suffixes = {path: training_label(found) for path, found in results.items()}
    labels = {path: label + (f" ({suffixes[path]})" if suffixes[path] else "") for path, label in labels.items()}
    labels = {path: label + settings[path] for path, label in labels.items()}
    if label_by == "pretraining":
        return labels
    first: dict[str, Path] = {}
    for path, label in labels.items():
        other = first.setdefault(label, path)
        one, two = _pretraining(results[other]), _pretraining(results[path])
        if one != two:
            raise UserError(
                f"{other} and {path} are both called {label}, but started from {one or 'unknown weights'} and "
                f"{two or 'unknown weights'}: give --label_by pretraining, or omit one of the two"
            )
    return labels


def _name_parts(results: dict) -> tuple[str, ...]:
    """Return the parts of a model's name or folder, without parts that describe the run.

    For example, outputs/xl-seed1/model is ("outputs", "xl").
    """
    parts = re.split(r"[/\\]", str(results["model"].get("name") or "unknown"))
    parts = [SEED.sub("", part) for part in parts if not RUN_FOLDERS.fullmatch(part)]
    return tuple(part for part in parts if part) or ("unknown",)


def _pretraining(results: dict) -> str | None:
    """Return the name of the model's initial weights, or None if unknown."""
    source = results["model"].get("pretraining")
    name = source.get("name") if isinstance(source, dict) else source
    return None if name in (None, "", "unknown") else str(name)


def check_same_data(group: dict[Path, dict]) -> None:
    """Check that results have the same videos, frames, classes, and numbers of bootstrap draws.

    Draws can only be paired if their numbers are equal.

    Raises:
        UserError: the results differ.
    """
    draws: dict[int, Path] = {}
    for path, found in group.items():
        draws |= {len(values): path for values in (found.get("bootstrap") or {}).values()}
    if len(draws) > 1:
        counts = ", ".join(f"{count} in {path}" for count, path in draws.items())
        raise UserError(f"numbers of bootstrap draws differ: {counts}; evaluate again with the same number")
    (first, reference), *others = group.items()
    for path, found in others:
        for part in ("videos", "frames", "labels"):
            one, other = reference["data"].get(part), found["data"].get(part)
            if part == "videos":
                one, other = _video_identities(reference["data"], found["data"])
            if one != other:
                raise UserError(
                    f"{first} and {path} are both on {found['data']['name']}, {found['data']['split']}, but differ in "
                    f"{part}: {_shown(one)} against {_shown(other)}. Only results on the same data can be compared."
                )


def _video_identities(*data: dict) -> list[list[str]]:
    """Return the identities of the videos in several results files.

    These are names, or hashes if a file has neutral names.
    """
    if not any("video_hashes" in each for each in data):
        return [sorted(each.get("videos") or ()) for each in data]
    return [sorted((each.get("video_hashes") or video_hashes(each.get("videos") or ())).values()) for each in data]


def _shown(value) -> str:
    return named(value, 4) if isinstance(value, list) else str(value)


def check_runs(label: str, runs: dict[Path, dict]) -> None:
    """Check that runs with the same label on the same data differ only in their seeds.

    Raises:
        UserError: two runs have the same seed, or differ in the type, size, or input of the model, or in k and
            temperature of k-NN.
    """
    advice = "give the other --label_by (model or pretraining), or omit one of the two"
    (first, reference), *others = runs.items()
    for path, found in others:
        for field in ("model.type", "model.parameters", "data.image_size", "training.k", "training.temperature"):
            one, other = _field(reference, field), _field(found, field)
            if one != other:
                what = field.partition(".")[2]
                raise UserError(
                    f"{first} and {path} are both called {label}, but differ in {what}: {one} and {other}; {advice}"
                )
    # files without a seed could be of the same run, unless the seeds in the names of their folders differ
    known = all(found.get("seed") is not None for found in runs.values())
    seen: dict[tuple, Path] = {}
    for path, found in runs.items():
        seed = found.get("seed") if known else None, *SEED.findall(str(found["model"].get("name")))
        if seed in seen:
            raise UserError(
                f"{seen[seed]} and {path} are both called {label}, with seeds {runs[seen[seed]].get('seed')} and "
                f"{found.get('seed')}, but the runs of one model must have different seeds; {advice}"
            )
        seen[seed] = path
