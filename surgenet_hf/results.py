"""Results files read back: what the model of each is called, and which may be put side by side."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .evaluation import SCHEMA

# what a model's folder says about the run, but not about the model
RUN_FOLDERS = re.compile(r"model|best|final|last|checkpoint-\d+")
SEED = re.compile(r"[-_. ]?seed[-_=. ]?(\d+)")


def read_results(paths: Iterable[str | os.PathLike]) -> dict[Path, dict]:
    """Results files: `paths` are files, or folders in which every results.json is taken; none is taken twice.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without results.json.
        ValueError: a file that is not JSON, of another schema, or that lacks a part of it.
    """
    read, seen = {}, set()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give results.json files, or the folders that hold them")
        found = sorted(path.rglob("results.json")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"{path} holds no results.json, nor do the folders in it")
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                read[file] = _read(file)
    return read


def _read(path: Path) -> dict:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is not JSON: {error}") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} is not a results file: its schema is {schema!r}, not {SCHEMA!r}")
    missing = [key for key in ("task", "model", "data", "metrics") if not results.get(key)]
    missing += [f"data.{key}" for key in ("name", "split") if "data" not in missing and not results["data"].get(key)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return results


def group_by_data(results: dict[Path, dict]) -> dict[tuple[str, str, str], dict[Path, dict]]:
    """The files of each (task, name of data set, split)."""
    groups: dict[tuple[str, str, str], dict[Path, dict]] = {}
    for path, found in results.items():
        groups.setdefault((found["task"], found["data"]["name"], found["data"]["split"]), {})[path] = found
    return groups


def model_labels(results: dict[Path, dict], label_by: str) -> dict[Path, str]:
    """The name of the model of each file.

    By "model": the last part of its name or folder, or as many parts as tell apart the models on the same data. By
    "pretraining": the weights that it started from; where they are unknown, "unknown" with the model's name.
    """
    if label_by not in ("model", "pretraining"):
        raise ValueError(f"label_by is 'model' or 'pretraining', not {label_by!r}")
    names = {path: _name_parts(found) for path, found in results.items()}
    depth = 1
    for paths in group_by_data(results).values():
        different = len({names[path] for path in paths})
        while len({names[path][-depth:] for path in paths}) < different:
            depth += 1
    labels = {path: "/".join(parts[-depth:]) for path, parts in names.items()}
    if label_by == "pretraining":
        return {path: _pretraining(found) or f"unknown ({labels[path]})" for path, found in results.items()}
    first: dict[str, Path] = {}
    for path, label in labels.items():
        other = first.setdefault(label, path)
        one, two = _pretraining(results[other]), _pretraining(results[path])
        if one != two:
            raise ValueError(
                f"{other} and {path} are both called {label}, but started from {one or 'unknown weights'} and "
                f"{two or 'unknown weights'}: label them by pretraining"
            )
    return labels


def _name_parts(results: dict) -> tuple[str, ...]:
    """The model's name or folder without what belongs to the run: outputs/xl-seed1/model is ("outputs", "xl")."""
    parts = re.split(r"[/\\]", str(results["model"].get("name") or "unknown"))
    parts = [SEED.sub("", part) for part in parts if not RUN_FOLDERS.fullmatch(part)]
    return tuple(part for part in parts if part) or ("unknown",)


def _pretraining(results: dict) -> str | None:
    """The name of the weights that the model started from, None if unknown."""
    source = results["model"].get("pretraining")
    name = source.get("name") if isinstance(source, dict) else source
    return None if name in (None, "", "unknown") else str(name)


def check_same_data(group: dict[Path, dict]) -> None:
    """Videos, frames, classes and, so that draws can be paired, their numbers must be the same."""
    draws: dict[int, Path] = {}
    for path, found in group.items():
        draws |= {len(values): path for values in (found.get("bootstrap") or {}).values()}
    if len(draws) > 1:
        counts = ", ".join(f"{count} in {path}" for count, path in draws.items())
        raise ValueError(f"numbers of bootstrap draws differ: {counts}; evaluate again with the same number")
    (first, reference), *others = group.items()
    for path, found in others:
        for part in ("videos", "frames", "labels"):
            one, other = reference["data"].get(part), found["data"].get(part)
            if part == "videos":
                one, other = sorted(one or ()), sorted(other or ())
            if one != other:
                raise ValueError(
                    f"{first} and {path} are both on {found['data']['name']}, {found['data']['split']}, but differ in "
                    f"{part}: {_brief(one)} against {_brief(other)}. Only results on the same data can be compared."
                )


def _brief(value) -> str:
    if not isinstance(value, list):
        return str(value)
    return ", ".join(map(str, value[:4])) + (f", ... ({len(value)})" if len(value) > 4 else "")


def check_runs(label: str, runs: dict[Path, dict]) -> None:
    """Runs of one label on the same data must differ in their seeds, and there alone."""
    advice = "label them by the other of model and pretraining, or leave one out"
    (first, reference), *others = runs.items()
    for path, found in others:
        for what in ("type", "parameters"):
            one, other = reference["model"].get(what), found["model"].get(what)
            if one != other:
                raise ValueError(
                    f"{first} and {path} are both called {label}, but differ in {what}: {one} and {other}; {advice}"
                )
    # a file without a seed may be of the same run as another, unless the names of their folders say otherwise
    known = all(found.get("seed") is not None for found in runs.values())
    seen: dict[tuple, Path] = {}
    for path, found in runs.items():
        seed = found.get("seed") if known else None, *SEED.findall(str(found["model"].get("name")))
        if seed in seen:
            raise ValueError(
                f"{seen[seed]} and {path} are both called {label}, with seeds {runs[seen[seed]].get('seed')} and "
                f"{found.get('seed')}, but runs of one model must have seeds of their own; {advice}"
            )
        seen[seed] = path
