"""Protocols: which models are trained and evaluated on which datasets, how often, and with which options.

A protocol is a YAML file. Those in `protocols/` are shipped and have a name. `docs/guides/protocol.md` describes the
keys.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..data import DATASETS
from ..errors import MissingFileError, UserError
from ..tasks import TASKS

FOLDER = Path(__file__).parent / "protocols"
MODES = ("finetuned", "linear", "knn")
ONLY_PROBES = ("pooling", "k", "temperature", "regularization")
PROBE_OPTIONS = ("image_size", "per_device_eval_batch_size", *ONLY_PROBES)
RESERVED = (  # options that the cell determines
    "model_name_or_path backbone dataset data_dir split_protocol train_fraction seed output_dir features_dir method "
    "split eval_split head freeze_backbone resume_from_checkpoint"
).split()


@dataclass(frozen=True)
class ModelEntry:
    """Model of a protocol: either initial weights, or an architecture with random weights.

    Attributes:
        name: name in tables, and folder name.
        model: initial weights, as in `--model_name_or_path`.
        backbone: backbone with random weights, as in `--backbone`.
        config: configuration of transformers with the key `model_type`, for random weights.
        options: options of the commands for this model, e.g. {"image_size": 224}.
    """

    name: str
    model: str | None = None
    backbone: str | None = None
    config: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetEntry:
    """Dataset of a protocol.

    Attributes:
        name: name of the dataset.
        folder: its folder in the data root. Default: its name.
        split_protocol: its split protocol.
        split: split of the results. Default: test if the dataset has it, otherwise validation.
        modes: modes of the protocol that apply to it. Default: all.
        options: options of the commands for this dataset.
    """

    name: str
    folder: str | None = None
    split_protocol: str | None = None
    split: str | None = None
    modes: tuple[str, ...] = MODES
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return DATASETS[self.name].task

    @property
    def suffix(self) -> str:
        """Split protocol in parentheses, which distinguishes two entries of one dataset in tables."""
        return f" ({self.split_protocol})" if self.split_protocol else ""


@dataclass(frozen=True)
class Protocol:
    """Protocol of a comparison.

    Attributes:
        name: name.
        models: models.
        datasets: datasets.
        modes: "finetuned" (all weights), "linear" (a linear head on frozen features), and "knn".
        fractions: fractions of the training videos, greater than 0 and at most 1.
        seeds: seeds of the training.
        options: {task or mode: options of the commands}. Those of models and datasets override them.
        description: purpose of the protocol.
        sources: {option: where its value comes from}.
    """

    name: str
    models: tuple[ModelEntry, ...]
    datasets: tuple[DatasetEntry, ...]
    modes: tuple[str, ...] = ("finetuned",)
    fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    description: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    def as_yaml(self) -> str:
        """Return the protocol as the content of a YAML file."""
        return yaml.safe_dump(plain(asdict(self)), sort_keys=False, allow_unicode=True, width=100)


def shipped_protocols() -> list[str]:
    """Return the names of the protocols of this package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_protocol(name_or_path: str) -> Protocol:
    """Read a protocol.

    Args:
        name_or_path: name of a shipped protocol, or path of a YAML file.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file is not YAML, or does not describe a protocol.
    """
    path = FOLDER / f"{name_or_path}.yaml" if name_or_path in shipped_protocols() else Path(name_or_path)
    if not path.is_file():
        raise MissingFileError(
            f"there is no protocol {name_or_path}; give one of {', '.join(shipped_protocols())}, or a YAML file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    protocol = parse_protocol(content, str(path))
    folders = {  # folders are relative to the file, so that every call means the same weights
        entry.name: str((path.parent / entry.model).resolve())
        for entry in protocol.models
        if entry.model and (path.parent / entry.model).is_dir()
    }
    models = tuple(replace(entry, model=folders.get(entry.name, entry.model)) for entry in protocol.models)
    return replace(protocol, models=models)


def parse_protocol(content, source: str) -> Protocol:
    """Check the content of a YAML file and return the protocol.

    Args:
        content: content of the file.
        source: its path, for messages.

    Raises:
        UserError: a key is unknown or missing, or a value is not usable.
    """
    values = _check_keys(content, Protocol, source)
    models = [
        {"name": each, "model": each} if isinstance(each, str) else each for each in _items(values, "models", source)
    ]
    datasets = [{"name": each} if isinstance(each, str) else each for each in _items(values, "datasets", source)]
    values["models"] = tuple(_model(each, source) for each in models)
    values["datasets"] = tuple(_dataset(each, source) for each in datasets)
    for name in ("modes", "fractions", "seeds"):
        if name in values:
            values[name] = tuple(_items(values, name, source))
    protocol = Protocol(**values)
    if unknown := sorted(set(protocol.modes) - set(MODES)):
        raise UserError(f"{source}: unknown mode {unknown[0]}; expected {', '.join(MODES)}")
    if wrong := [each for each in protocol.fractions if type(each) not in (int, float) or not 0 < each <= 1]:
        raise UserError(f"{source}: a fraction must be greater than 0 and at most 1, got {wrong[0]}")
    if wrong := [each for each in protocol.seeds if type(each) is not int or each < 0]:
        raise UserError(f"{source}: a seed must be an integer of at least 0, got {wrong[0]}")
    if unknown := sorted(set(protocol.options) - {*TASKS, *MODES}):
        raise UserError(f"{source}: unknown key {unknown[0]} of options; expected {', '.join((*TASKS, *MODES))}")
    if flat := [name for name, each in protocol.options.items() if not isinstance(each, dict)]:
        raise UserError(f"{source}: options of {flat[0]} must have keys and values, got {protocol.options[flat[0]]}")
    for name in ("modes", "fractions", "seeds"):
        if len(set(getattr(protocol, name))) < len(getattr(protocol, name)):
            raise UserError(f"{source}: {name} contains a value twice: {list(getattr(protocol, name))}")
    every = [
        *protocol.options.values(),
        *(m.options for m in protocol.models),
        *(d.options for d in protocol.datasets),
    ]
    if reserved := sorted({str(name) for options in every for name in options} & set(RESERVED)):
        raise UserError(
            f"{source}: {reserved[0]} is determined by the cell, and is not possible in options; remove it"
        )
    if unknown := sorted(set(protocol.options.get("knn", {})) - set(PROBE_OPTIONS)):
        raise UserError(f"{source}: unknown option {unknown[0]} of knn; expected {', '.join(PROBE_OPTIONS)}")
    for kind, names in (
        ("model", [each.name for each in protocol.models]),
        ("dataset", [each.name + each.suffix for each in protocol.datasets]),
    ):
        if double := next((name for name in names if names.count(name) > 1), None):
            raise UserError(
                f"{source}: there are two {kind}s called {double}; give each model its own name, and each entry of a "
                "dataset its own split_protocol"
            )
    return protocol


def _model(content, source: str) -> ModelEntry:
    values = _check_keys(content, ModelEntry, f"{source}: model")
    entry = ModelEntry(**values)
    given = [name for name in ("model", "backbone", "config") if getattr(entry, name) is not None]
    if len(given) != 1:
        raise UserError(
            f"{source}: model {entry.name} has {' and '.join(given) or 'no weights'}; "
            "give one of model, backbone, or config"
        )
    if not entry.name or entry.name.startswith(".") or "/" in entry.name:
        raise UserError(f"{source}: the name of a model becomes a folder; {entry.name!r} is not usable. Add a `name`")
    if entry.config is not None and not isinstance(entry.config.get("model_type"), str):
        raise UserError(f"{source}: the config of model {entry.name} needs a model_type of transformers, e.g. dinov2")
    return entry


def _dataset(content, source: str) -> DatasetEntry:
    values = _check_keys(content, DatasetEntry, f"{source}: dataset")
    if values["name"] not in DATASETS:
        near = difflib.get_close_matches(str(values["name"]), DATASETS, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"expected {', '.join(DATASETS)}"
        raise UserError(f"{source}: unknown dataset {values['name']}; {hint}")
    modes = _items(values, "modes", source) if "modes" in values else MODES
    entry = DatasetEntry(**{**values, "modes": tuple(modes)})
    if unknown := sorted(set(entry.modes) - set(MODES)):
        raise UserError(f"{source}: unknown mode {unknown[0]} of {entry.name}; expected {', '.join(MODES)}")
    return entry


def _check_keys(content, kind: type, source: str) -> dict:
    fields = {each.name: each for each in dataclasses.fields(kind)}
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected keys and values, got {content!r:.60}")
    if unknown := [str(key) for key in content if key not in fields]:
        raise UserError(f"{source}: unknown key {unknown[0]}; expected {', '.join(fields)}")
    required = [
        name
        for name, each in fields.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in content]:
        raise UserError(f"{source}: the key {missing[0]} is missing")
    for name in ("options", "config", "sources"):
        if not isinstance(content.get(name, {}), dict):
            raise UserError(f"{source}: {name} must have keys and values, got {content[name]!r:.60}")
    for name in ("name", "model", "backbone", "folder", "split_protocol", "split", "description"):
        if not isinstance(content.get(name, ""), str):
            raise UserError(f'{source}: {name} must be text, got {content[name]!r:.60}; write it as "TEXT"')
    return dict(content)


def _items(values: dict, name: str, source: str) -> list:
    if not isinstance(values[name], list | tuple) or not values[name]:
        raise UserError(f"{source}: {name} must be a list with at least one entry, got {values[name]!r:.60}")
    return list(values[name])


def plain(value):
    """Return a value without tuples and empty entries, for YAML and JSON."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if each not in (None, "", (), {}, [])}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
