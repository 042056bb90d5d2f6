"""Folders of models, on the disk or the Hub: what may be loaded, checked before it is downloaded or built.

Only SurgeNet's own classes, only safetensors, only sizes that this demo can bear; no code of a folder is run.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from media import Refused, shorten
from PIL import Image
from transformers import SegformerImageProcessor

from surgenet_hf import (
    SurgeNetConfig,
    SurgeNetForImageClassification,
    SurgeNetForPhaseRecognition,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)
from surgenet_hf.configuration_surgenet_phase import SurgeNetPhaseConfig
from surgenet_hf.data import synthetic
from surgenet_hf.data.segmentation import palette

# what a model does, and the class that does it
CLASSES = {
    "segmentation": SurgeNetForSemanticSegmentation,
    "classification": SurgeNetForImageClassification,
    "phases": SurgeNetForPhaseRecognition,
    "features": SurgeNetModel,
}
MAX_BYTES, MAX_PARAMETERS, MAX_LABELS, MAX_IMAGE_SIZE = 10**9, 200_000_000, 64, 1024
MAX_CONFIG_BYTES = 2**20
LIMITS = {  # of a configuration, before anything is built from it
    "num_channels": 3,
    "pyramid_channels": 2048,
    "segmentation_channels": 2048,
    "num_stages": 8,
    "num_layers": 12,
    "num_feature_maps": 1024,
}
MAX_ID = 140  # characters: an organisation's 42, a slash, a model's 96
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
CONFIG_FILES = ("config.json", "preprocessor_config.json")
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


@dataclass(frozen=True)
class Loaded:
    """A model that is ready.

    Attributes:
        tasks: what it can be asked for, of the keys of `CLASSES`.
        labels, colors: of its classes; none of a backbone.
        note: what to say beside every result.
    """

    name: str
    tasks: tuple[str, ...]
    model: torch.nn.Module
    processor: SegformerImageProcessor
    note: str

    @property
    def labels(self) -> list[str]:
        return class_names(self.model.config)

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        return synthetic.COLORS if self.labels == list(synthetic.LABELS) else palette(len(self.labels))


def class_names(config) -> list[str]:
    """The classes of a model in the order of their ids; those of the same name are told apart by their ids."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    while len(counts := Counter(names)) < len(names):
        names = [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
    return names


def tasks_of(task: str) -> tuple[str, ...]:
    """What a model made for a task can be asked for: a backbone is in all of them."""
    return tuple(dict.fromkeys((task, "features")))


def download(name: str, folder: Path, weights: bool = True) -> None:
    """Fetch a visitor's model from the Hub, without the owner's token, if its files are few and small enough.

    Raises:
        Refused: no such public model, other files than those of a model in safetensors, or too large.
    """
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name or len(name) > MAX_ID:
        raise Refused(
            f"There is no model {shorten(name)!r} here. Choose one in the list, or type a Hub id such as ORG/NAME."
        )
    api = HfApi(token=False)
    try:
        info = api.model_info(name, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size for file in info.siblings}
        files = [file for file in sizes if file in CONFIG_FILES or (weights and WEIGHTS.fullmatch(file))]
        check_sizes(name, sizes, files, weights)
        api.snapshot_download(name, revision=info.sha, allow_patterns=files, local_dir=folder, max_workers=2)
    except RepositoryNotFoundError as error:
        raise Refused(f"The Hub has no public model {name}. Please check its name.") from error
    except (HfHubHTTPError, OSError, ConnectionError) as error:
        raise Refused(f"{name} could not be fetched: the Hub did not answer as it should. Try again later.") from error
    except Exception as error:
        if type(error).__module__.startswith("http"):  # of the HTTP client: no connection
            raise Refused(f"{name} could not be fetched: the Hub cannot be reached from here.") from error
        raise


def check_sizes(name: str, sizes: dict[str, int | None], files: list[str], weights: bool) -> None:
    if missing := [file for file in CONFIG_FILES if file not in sizes]:
        raise Refused(f"{name} has no {' and no '.join(missing)}: it is not a fine-tuned SurgeNet model.")
    if weights and not any(file.endswith(".safetensors") for file in files):
        raise Refused(f"{name} has no weights in the safetensors format (model.safetensors); others are not read.")
    if any(sizes[file] is None for file in files) or any(sizes[file] > MAX_CONFIG_BYTES for file in CONFIG_FILES):
        raise Refused(f"{name}: its configuration is larger than that of any SurgeNet model.")
    total = sum(sizes[file] for file in files)
    if total > MAX_BYTES:
        raise Refused(f"{name} has {total / 1e9:.1f} GB; models may have up to {MAX_BYTES / 1e9:.0f} GB here.")


def read_config(folder: Path, name: str) -> tuple[str, object]:
    """The task of a model folder and its configuration; no weights are read, and no code of the folder is run.

    Raises:
        Refused: it is none of SurgeNet's classes, or asks for more than `LIMITS`.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, architecture = raw.get("model_type"), (raw.get("architectures") or ["none"])[0]
        names = {cls.__name__: task for task, cls in CLASSES.items()} | {"SurgeNetBackbone": "features"}
        if kind not in ("surgenet", "surgenet_phase") or architecture not in names:
            kind, architecture = shorten(str(kind)), shorten(str(architecture))
            raise Refused(f"{name} is not a SurgeNet model: it is of type {kind}, class {architecture}.")
        task = names[architecture]
        check_limits(name, raw, raw.get("backbone_config") or raw)
        config = (SurgeNetPhaseConfig if kind == "surgenet_phase" else SurgeNetConfig).from_dict(raw)
        with torch.device("meta"):  # counted, not made
            parameters = CLASSES[task](config).num_parameters()
        _ = [config.id2label[i] for i in range(config.num_labels)]
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{name}: its config.json is not that of a SurgeNet model.") from error
    if parameters > MAX_PARAMETERS:
        raise Refused(
            f"{name} has {parameters / 1e6:.0f} million parameters; up to {MAX_PARAMETERS // 10**6} are read."
        )
    return task, config


def check_limits(name: str, raw: dict, backbone: dict) -> None:
    """Refuse numbers that would take more memory or time to build than any SurgeNet needs."""
    for settings in (raw, backbone):
        for key, limit in LIMITS.items():
            value = settings.get(key, 1)
            if not isinstance(value, int) or not 0 < value <= limit:
                raise Refused(f"{name}: {key} is {shorten(repr(value))}; it may be 1 to {limit} here.")
        for key, limit in (("depths", 64), ("hidden_sizes", 4096)):
            values = settings.get(key) or []
            if len(values) not in (0, 4) or not all(isinstance(value, int) and 0 < value <= limit for value in values):
                raise Refused(f"{name}: {key} must be four numbers, each 1 to {limit}.")
        if len(settings.get("id2label") or {}) > MAX_LABELS or settings.get("num_labels", 1) > MAX_LABELS:
            raise Refused(f"{name} has more than {MAX_LABELS} classes.")


def load_folder(folder: Path, name: str, note: str | None = None) -> Loaded:
    """The model of a folder, in float32, and its image processor.

    Raises:
        Refused: as `read_config`; or weights that are not whole, or an image processor for other pictures.
    """
    if missing := [file for file in CONFIG_FILES if not (folder / file).is_file()]:
        raise Refused(f"{name} has no {' and no '.join(missing)}: save model and image processor in one folder.")
    task, config = read_config(folder, name)
    if getattr(config, "problem_type", None) == "regression":
        raise Refused(f"{name} predicts quantities, not classes; there is no tab for that.")
    try:
        processor = SegformerImageProcessor.from_pretrained(folder)
        options = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
        model, info = CLASSES[task].from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # damaged files have many kinds
        raise Refused(
            f"{name} could not be loaded: its files are damaged, or not those of its configuration."
        ) from error
    if info["missing_keys"]:
        raise Refused(f"{name} was saved without a trained head for {task}.")
    sides = [processor.size.get(side) for side in ("height", "width")]
    if not all(isinstance(side, int) and 32 <= side <= MAX_IMAGE_SIZE for side in sides) or not processor.do_resize:
        raise Refused(
            f"{name} works on pictures of {sides}; sides of 32 to {MAX_IMAGE_SIZE} pixels are possible here."
        )
    check_numbers(name, processor, model)
    if task in ("segmentation", "classification"):
        model.register_forward_hook(lambda _module, _inputs, outputs: check_finite(name, outputs.logits))
    if task == "classification" and model.config.problem_type is None:
        model.config.problem_type = "single_label_classification"  # as Trainer takes class ids
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Loaded(name, tasks_of(task), model, processor, note or summary(name, task, config)["note"])


def check_finite(name: str, values) -> None:
    """Refuse a model's answers that are not all finite: the largest of NaN would look like one."""
    if not torch.isfinite(torch.as_tensor(values)).all():
        raise Refused(f"{name} computes no valid numbers for this picture (NaN). Please choose another model.")


def check_numbers(name: str, processor: SegformerImageProcessor, model: torch.nn.Module) -> None:
    """Refuse an image processor and weights that would make every answer NaN."""
    for key, low in (("image_mean", -math.inf), ("image_std", 0.0)):
        values = getattr(processor, key)
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != 3 or not all(math.isfinite(value) and value > low for value in values):
            above = " above 0" if low == 0 else ""
            raise Refused(
                f"{name}: {key} of its image processor is {shorten(repr(values))}; it must be three numbers{above}."
            )
    try:
        pixels = processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    except Exception as error:  # of many kinds, by its settings
        raise Refused(f"{name}: its preprocessor_config.json is not that of a SurgeNet model.") from error
    if not torch.isfinite(pixels).all():
        raise Refused(f"{name}: its image processor makes values that are not finite.")
    broken = [key for key, values in model.state_dict().items() if not torch.isfinite(values).all()]
    if broken:
        raise Refused(f"{name}: its weights are not all finite ({broken[0]}); its training must have diverged.")


def summary(name: str, task: str, config) -> dict:
    """What a configuration says of a model."""
    source = str((config.pretraining or {}).get("name") or "unknown")
    labels = [] if task == "features" else class_names(config)
    what = "a backbone" if task == "features" else f"a model for {task}, {len(labels)} classes"
    return {
        "name": name,
        "tasks": list(tasks_of(task)),
        "backbone": config.backbone,
        "pretraining": source,
        "labels": labels,
        "note": f"{name}: {what} ({config.backbone}); its backbone's pretraining: {source}.",
    }
