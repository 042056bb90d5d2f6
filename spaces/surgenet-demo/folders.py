"""Validation and loading of models from local folders and the Hub.

Of visitors' models, only SurgeNet classes in the safetensors format and within the limits below are loaded. The checks
run before weights are downloaded or models are built. Only the settings that SurgeNet needs are read from the
configuration files. The owner's models can be of any family that has a head for a task, or vision transformers of
DINO.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from media import Refused, full_disk, shorten
from PIL import Image
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedConfig, SegformerImageProcessor

from surgenet_hf import (
    SurgeNetConfig,
    SurgeNetForImageClassification,
    SurgeNetForPhaseRecognition,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)
from surgenet_hf.checkpoints.catalog import CATALOG
from surgenet_hf.checkpoints.reading import check_finite
from surgenet_hf.configuration_surgenet_phase import SurgeNetPhaseConfig
from surgenet_hf.data import class_colors
from surgenet_hf.errors import UserError
from surgenet_hf.image_processing import load_image_processor
from surgenet_hf.inference.embeddings import load_backbone
from surgenet_hf.models import is_surgenet, load_config, load_model
from surgenet_hf.tasks import find_task

# {task: model class}
CLASSES = {
    "segmentation": SurgeNetForSemanticSegmentation,
    "classification": SurgeNetForImageClassification,
    "phases": SurgeNetForPhaseRecognition,
    "features": SurgeNetModel,
}
# {task of `surgenet_hf.tasks`: task of the demo}
TASKS = {
    "semantic-segmentation": "segmentation",
    "image-classification": "classification",
    "phase-recognition": "phases",
}
MAX_BYTES, MAX_PARAMETERS, MAX_LABELS, MAX_IMAGE_SIZE = 10**9, 200_000_000, 64, 1024
MAX_CONFIG_BYTES = 2**20  # also for the index and headers of weight files; SurgeNet's have less than 100 kB
MAX_FILES = 32
MAX_FLOPS = 500e9  # per frame; a published backbone at 1024 x 1024 pixels needs up to 430e9
FEATURE_SIDE = 640  # height and width in pixels of frames for dense features, which have a stride of 32
FEATURE_PATCHES = 32  # number of rows and columns of dense features of vision transformers
VITS = ("dinov2_with_registers", "dinov3_vit")  # model types of vision transformers whose features are shown
LIMITS = {  # maxima of settings, checked before a model is built
    "num_channels": 3,
    "pyramid_channels": 512,
    "segmentation_channels": 512,
    "num_stages": 8,
    "num_layers": 12,
    "num_feature_maps": 1024,
}
MAX_DEPTHS = (8, 16, 64, 16)  # lower in the first stages, whose larger maps make each block slower
MAX_WIDTHS = (4096, 4096, 4096, 4096)
MAX_ID = 140  # characters; the Hub allows 42 for an organization and 96 for a model
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
CONFIG_FILES = ("config.json", "preprocessor_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}  # names in safetensors
# Published checkpoints in the lists. ViT-L is too large: its conversion needs more than 3 GB of memory. The tensors of
# SurgeNet2M are unknown, so they may be refused.
PUBLISHED = tuple(entry for entry in CATALOG if not entry.is_vit or 0 < (entry.elements or 0) <= MAX_PARAMETERS)
# The only settings that are read. Others could change how transformers loads a model or what the model returns.
LABEL_SETTINGS = {"id2label", "num_labels", "problem_type"}
PROCESSOR_SETTINGS = (
    "do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std",
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """Loaded model.

    Attributes:
        name: name of the model.
        tasks: supported tasks, keys of `CLASSES`.
        model: model in evaluation mode.
        processor: image processor of the model.
        note: text to show with every result.
    """

    name: str
    tasks: tuple[str, ...]
    model: torch.nn.Module
    processor: SegformerImageProcessor
    note: str

    @property
    def labels(self) -> list[str]:
        """Return the names of the classes."""
        return class_names(self.model.config)

    @property
    def feature_side(self) -> int:
        """Return height and width in pixels of frames for dense features."""
        config = self.model.config
        return FEATURE_PATCHES * config.patch_size if config.model_type in VITS else FEATURE_SIDE

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """Return the colors of the classes."""
        return class_colors(self.labels)


def class_names(config) -> list[str]:
    """Return the class names of a model in the order of their ids. Duplicate names are extended by their ids."""
    names = [shorten(str(config.id2label[i])) for i in range(config.num_labels)]
    while len(counts := Counter(names)) < len(names):
        names = [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
    return names


def tasks_of(task: str) -> tuple[str, ...]:
    """Return the tasks that a model for a given task supports. All models have a backbone and support features."""
    return tuple(dict.fromkeys((task, "features")))


def download(name: str, folder: Path, weights: bool = True) -> None:
    """Download a visitor's model from the Hub, without the owner's token.

    Args:
        name: Hub id of the model.
        folder: folder for the files.
        weights: whether to download the weights in addition to the configuration.

    Raises:
        Refused: the model does not exist or is not public, is not in safetensors, or has too many or too large files.
    """
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name or len(name) > MAX_ID:
        raise Refused(
            f"There is no model {shorten(name)!r}. Please choose one from the list, or type a Hub id (ORG/NAME)."
        )
    api = HfApi(token=False)
    try:
        info = api.model_info(name, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size for file in info.siblings}
        files = [file for file in sizes if file in CONFIG_FILES]
        if weights:
            files += [file for file in sizes if file in (WEIGHTS, INDEX) or SHARD.fullmatch(file)]
        check_sizes(name, sizes, files, weights)
        with full_disk():
            api.snapshot_download(name, revision=info.sha, allow_patterns=files, local_dir=folder, max_workers=2)
    except RepositoryNotFoundError as error:
        raise Refused(f"The Hub has no public model {name}. Please check its name.") from error
    except (HfHubHTTPError, OSError, ConnectionError) as error:
        raise Refused(
            f"{name} could not be downloaded: the request to the Hub failed. Please try again later."
        ) from error
    except Exception as error:
        if type(error).__module__.startswith("http"):  # errors of the HTTP client mean that there is no connection
            raise Refused(f"{name} could not be downloaded: the Hub cannot be reached from here.") from error
        raise


def check_sizes(name: str, sizes: dict[str, int | None], files: list[str], weights: bool) -> None:
    """Check the names, number, and sizes of the files of a model.

    Args:
        name: name of the model in messages.
        sizes: {file of the repository: size in bytes, or None if unknown}.
        files: files to download.
        weights: whether weights are required.

    Raises:
        Refused: files are missing, too many, or too large.
    """
    if missing := [file for file in CONFIG_FILES if file not in sizes]:
        raise Refused(f"{name} has no {' and no '.join(missing)}: it is not a fine-tuned SurgeNet model.")
    if weights and not any(file.endswith(".safetensors") for file in files):
        raise Refused(
            f"{name} has no weights in the safetensors format (model.safetensors); other formats are not loaded."
        )
    texts = [file for file in files if file.endswith(".json")]
    if any(sizes[file] is None for file in files) or any(sizes[file] > MAX_CONFIG_BYTES for file in texts):
        raise Refused(f"{name}: its configuration is larger than that of any SurgeNet model.")
    if len(files) > MAX_FILES:
        raise Refused(f"{name} has {len(files)} weight and configuration files; up to {MAX_FILES} are allowed here.")
    total = sum(sizes[file] for file in files)
    if total > MAX_BYTES:
        raise Refused(f"{name} has {total / 1e9:.1f} GB; models may have up to {MAX_BYTES / 1e9:.0f} GB here.")


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        ValueError: the file does not contain a JSON object in UTF-8.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} contains a {type(content).__name__} instead of a JSON object")
    return content


def read_config(folder: Path, name: str) -> tuple[str, object]:
    """Read the task and the configuration of a model folder without its weights.

    Raises:
        Refused: the model is not of a SurgeNet class, or exceeds a limit.
    """
    try:
        raw = read_json(folder / "config.json")
        kind, architecture = raw.get("model_type"), (raw.get("architectures") or ["none"])[0]
        names = {cls.__name__: task for task, cls in CLASSES.items()} | {"SurgeNetBackbone": "features"}
        if kind not in ("surgenet", "surgenet_phase") or architecture not in names:
            kind, architecture = shorten(str(kind)), shorten(str(architecture))
            raise Refused(f"{name} is not a SurgeNet model: it is of type {kind}, class {architecture}.")
        task = names[architecture]
        backbone = raw.get("backbone_config") or {} if kind == "surgenet_phase" else raw
        check_limits(name, raw, backbone)
        settings = {key: raw[key] for key in LABEL_SETTINGS & raw.keys()}
        if kind == "surgenet_phase":
            own = {"backbone_config": own_settings(SurgeNetConfig, backbone)}
            config = SurgeNetPhaseConfig(**own_settings(SurgeNetPhaseConfig, raw) | own, **settings)
        else:
            config = SurgeNetConfig(**own_settings(SurgeNetConfig, raw), **settings)
        parameters = build_empty(task, config).num_parameters()
        class_names(config)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{name}: its config.json is not a valid configuration of a SurgeNet model.") from error
    if parameters > MAX_PARAMETERS:
        raise Refused(
            f"{name} has {parameters / 1e6:.0f} million parameters; up to {MAX_PARAMETERS // 10**6} million are "
            "allowed."
        )
    return task, config


def own_settings(config_class: type, raw: dict) -> dict:
    """Select the settings that a configuration class adds to those of all transformers models."""
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")} - common
    return {key: raw[key] for key in own & raw.keys()}


def build_empty(task: str, config) -> torch.nn.Module:
    """Build a model on the meta device, where tensors have shapes but no memory."""
    with torch.device("meta"):
        return CLASSES[task](config).eval()


def check_limits(name: str, raw: dict, backbone: dict) -> None:
    """Check that a model does not need more memory or time to build than any SurgeNet model.

    Raises:
        Refused: a setting exceeds its limit.
    """
    for settings in (raw, backbone):
        for key, limit in LIMITS.items():
            value = settings.get(key, 1)
            if not isinstance(value, int) or not 0 < value <= limit:
                raise Refused(f"{name}: {key} is {shorten(repr(value))}; it must be an integer from 1 to {limit}.")
        for key, limits in (("depths", MAX_DEPTHS), ("hidden_sizes", MAX_WIDTHS)):
            values = settings.get(key) or limits
            whole = len(values) == 4 and all(isinstance(value, int) for value in values)
            if not whole or not all(0 < value <= limit for value, limit in zip(values, limits, strict=True)):
                raise Refused(
                    f"{name}: {key} must be four integers of at least 1 and at most {', '.join(map(str, limits))}."
                )
        counts = len(settings.get("id2label", "1")), settings.get("num_labels", 1)
        if not all(0 < count <= MAX_LABELS for count in counts):
            raise Refused(f"{name} has no classes, or more than {MAX_LABELS} classes.")


def load_folder(folder: Path, name: str, note: str | None = None) -> Loaded:
    """Load the model and the image processor of a folder, in float32.

    Args:
        folder: folder of the model.
        name: name of the model in messages.
        note: text to show with every result. Default: a summary of the configuration.

    Raises:
        Refused: the configuration is not valid (see `read_config`), the weights or the image processor are damaged or
            of another kind, or the model is too slow.
    """
    if missing := [file for file in CONFIG_FILES if not (folder / file).is_file()]:
        raise Refused(
            f"{name} has no {' and no '.join(missing)}: save the model and the image processor in one folder."
        )
    task, config = read_config(folder, name)
    if config.problem_type == "regression":
        raise Refused(f"{name} is a regression model; the demo supports only models that predict classes.")
    processor = read_processor(folder, name)
    check_speed(name, task, config, processor)
    check_weights(folder, name)
    try:
        options = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
        model, info = CLASSES[task].from_pretrained(folder, config=config, output_loading_info=True, **options)
    except Exception as error:  # damaged files cause many kinds of errors
        raise Refused(
            f"{name} could not be loaded: its files are damaged or do not match its configuration."
        ) from error
    if info["missing_keys"]:
        raise Refused(f"{name} was saved without a trained head for {task}.")
    try:
        check_finite(model.state_dict(), name)
    except ValueError as error:
        raise Refused(f"{error}.") from error
    if task in ("segmentation", "classification"):
        model.register_forward_hook(lambda _module, _inputs, outputs: check_answer(name, outputs.logits))
    if task == "classification" and model.config.problem_type is None:
        model.config.problem_type = "single_label_classification"  # Trainer's default for class ids
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Loaded(name, tasks_of(task), model, processor, note or summary(name, task, config)["note"])


def load_vit(folder: Path, name: str, note: str | None = None) -> Loaded:
    """Load a vision transformer of DINO for features, in float32.

    Args:
        folder: folder of `fetch_checkpoint`, or of the owner.
        name: name of the model in messages.
        note: text to show with every result. Default: a summary of the configuration.

    Raises:
        UserError: the weights are not complete, or the image processor is missing.
    """
    model, _ = load_backbone(str(folder))
    check_finite(model.state_dict(), name)
    processor = load_image_processor(folder)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Loaded(name, ("features",), model, processor, note or summary(name, "features", model.config)["note"])


def load_given(folder: Path, name: str) -> Loaded:
    """Load a model of the owner, of any family.

    Args:
        folder: folder of the model.
        name: name of the model in messages.

    Raises:
        Refused: the model has no head for a task and is not a vision transformer of DINO, or is damaged.
    """
    try:
        config = load_config(folder)
        if is_surgenet(config) and is_surgenet(getattr(config, "backbone_config", config)):
            return load_folder(folder, name)
        found = find_task(config)
        if found is None and config.model_type in VITS:
            return load_vit(folder, name)
        if found is None:
            raise Refused(f"{name} is of type {config.model_type}, without a head for a task: fine-tune it first.")
        task, auto_class = TASKS[found[0]], found[1]
        model = load_model(auto_class, folder, lambda model: dict(model.named_parameters()), dtype=torch.float32)
        processor = load_image_processor(folder)
    except UserError as error:
        raise Refused(f"{error}.") from error
    model.register_forward_hook(
        lambda _module, _inputs, outputs: check_answer(
            name, outputs["masks_queries_logits" if "masks_queries_logits" in outputs else "logits"]
        )
    )
    if task == "classification" and model.config.problem_type is None:
        model.config.problem_type = "single_label_classification"  # Trainer's default for class ids
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Loaded(name, (task,), model, processor, summary(name, task, config)["note"])


def read_processor(folder: Path, name: str) -> SegformerImageProcessor:
    """Read the image processor of a model folder.

    Raises:
        Refused: the settings are damaged, or the output is not finite or has a size outside the limits.
    """
    broken = f"{name}: its preprocessor_config.json is not a valid configuration of a SurgeNet image processor."
    try:
        raw = read_json(folder / "preprocessor_config.json")
        processor = SegformerImageProcessor(**{key: raw[key] for key in PROCESSOR_SETTINGS if key in raw})
        sides = {side: value for side, value in dict(processor.size).items() if value is not None}
    except Exception as error:  # invalid settings cause many kinds of errors
        raise Refused(broken) from error
    if raw.get("do_center_crop") or raw.get("do_pad"):
        raise Refused(f"{name}: its image processor crops or pads images; the demo supports only resizing.")
    possible = all(isinstance(side, int) and 32 <= side <= MAX_IMAGE_SIZE for side in sides.values())
    if not possible or sides.keys() != {"height", "width"} or not processor.do_resize:
        raise Refused(
            f"{name}: its image processor has the size {shorten(str(sides))}; it must resize images to a height and a "
            f"width of 32 to {MAX_IMAGE_SIZE} pixels."
        )
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
    except Exception as error:  # invalid settings cause many kinds of errors
        raise Refused(broken) from error
    if not torch.isfinite(pixels).all():
        raise Refused(f"{name}: its image processor produces values that are not finite.")
    return processor


class FlopCounter(TorchDispatchMode):
    """Counter of the floating-point operations in a `with` block.

    Unlike torch's FlopCounterMode, it sets no hooks on modules that other threads run at the same time.

    Attributes:
        flops: number of operations.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **kwargs, out_val=result)
        return result


def check_speed(name: str, task: str, config, processor: SegformerImageProcessor) -> None:
    """Check that a model is fast enough. A forward pass cannot be interrupted.

    Raises:
        Refused: a frame takes more than `MAX_FLOPS`, at the size of the image processor or for dense features.
    """
    model = build_empty(task, config)
    whole = model.base_model if task == "phases" else model
    side = FEATURE_SIDE
    for part, height, width in (
        (whole, processor.size["height"], processor.size["width"]),
        (model.base_model, side, side),
    ):
        try:
            with torch.no_grad(), FlopCounter() as counter:
                part(torch.empty(1, 3, height, width, device="meta"))
        except Exception as error:  # incompatible shapes
            raise Refused(f"{name}: its config.json is not a valid configuration of a SurgeNet model.") from error
        if counter.flops > MAX_FLOPS:
            raise Refused(
                f"{name} is too slow for this demo: a frame of {height} x {width} pixels needs "
                f"{counter.flops / 1e9:.0f} billion operations; up to {MAX_FLOPS / 1e9:.0f} billion are allowed."
            )


def check_weights(folder: Path, name: str) -> None:
    """Check that the weights are floating-point numbers in the folder's own files.

    An index of weights can name any path, and transformers would open it.

    Raises:
        Refused: the index, the header of a file, or the data type of a tensor is not that of a SurgeNet model.
    """
    files = {WEIGHTS}
    try:
        if not (folder / WEIGHTS).is_file():
            files = set(read_json(folder / INDEX)["weight_map"].values())
            if wrong := [file for file in files if not SHARD.fullmatch(file) or not (folder / file).is_file()]:
                raise Refused(
                    f"{name}: {INDEX} names {shorten(repr(wrong[0]))}, which is not one of its weight files "
                    "(model-00001-of-00002.safetensors, ...)."
                )
        dtypes = {}
        for file in files:
            with open(folder / file, "rb") as content:
                if int.from_bytes(content.read(8), "little") > MAX_CONFIG_BYTES:
                    raise Refused(f"{name}: the header of {file} is larger than that of any SurgeNet model.")
            with safe_open(folder / file, "pt") as tensors:
                dtypes |= {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    except Refused:
        raise
    except Exception as error:  # damaged files cause many kinds of errors
        raise Refused(
            f"{name} could not be loaded: its files are damaged or not in the safetensors format."
        ) from error
    if wrong := [f"{shorten(key)}: {dtype}" for key, dtype in dtypes.items() if dtype not in FLOAT_DTYPES]:
        raise Refused(f"{name}: its weights must be floating-point numbers, and some are not ({wrong[0]}).")


def check_answer(name: str, values) -> None:
    """Check that all predictions of a model are finite.

    Otherwise, the maximum of NaN values would look like a valid prediction.

    Raises:
        Refused: a value is not finite.
    """
    if not torch.isfinite(torch.as_tensor(values)).all():
        raise Refused(
            f"{name} returned values that are not finite (NaN or infinite) for this frame. Please choose another "
            "model."
        )


def summary(name: str, task: str, config) -> dict:
    """Summarize the configuration of a model."""
    source = shorten(str((getattr(config, "pretraining", None) or {}).get("name") or "unknown"))
    backbone = getattr(config, "backbone_config", None) or config
    backbone = getattr(backbone, "backbone", None) or getattr(backbone, "architecture", None) or backbone.model_type
    labels = [] if task == "features" else class_names(config)
    what = "a backbone" if task == "features" else f"a model for {task}, {len(labels)} classes"
    return {
        "name": name,
        "tasks": list(tasks_of(task)),
        "backbone": backbone,
        "pretraining": source,
        "labels": labels,
        "note": f"{name}: {what} ({backbone}); backbone pretraining: {source}.",
    }
