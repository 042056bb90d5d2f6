"""Loading of models by the name of a published checkpoint, folder, Hub repository, or configuration."""

import difflib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, overload

import timm
from huggingface_hub import cached_assets_path, constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, TimmWrapperConfig

from ._version import __version__
from .checkpoints.catalog import CatalogEntry, find_entry
from .checkpoints.conversion import convert_checkpoint, save_converted, to_original_state_dict
from .checkpoints.reading import file_sha256
from .checkpoints.vit import architecture
from .configuration_surgenet import BACKBONES, SurgeNetConfig
from .errors import MissingFileError, UnavailableError, UserError
from .image_processing import build_image_processor

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# settings of a small CAFormer, for first runs and demonstrations
TINY: dict[str, Any] = {
    "depths": [1, 1, 2, 1],
    "hidden_sizes": [32, 64, 128, 192],
    "pyramid_channels": 64,
    "segmentation_channels": 64,
}


def load_checkpoint(name: str, model_class=AutoModel, **kwargs):
    """Load a published checkpoint from the authors' repository on the Hub.

    Example:
        >>> model = load_checkpoint("SurgeNetXL")
        >>> model = load_checkpoint("SurgeNetXL", AutoModelForSemanticSegmentation, num_labels=7)

    Args:
        name: name of a checkpoint in the catalog, in any spelling.
        model_class: Auto class, or class of the model. Heads have new weights.
        kwargs: arguments of `from_pretrained`.

    Returns:
        The model: a SurgeNet model, or for vision transformers a model of transformers.

    Raises:
        UserError: `name` is unknown or the path of a weight file, or the file is not the published one.
        UnavailableError: the Hub cannot be reached, and its cache does not have the file.
    """
    if Path(name).is_file() or Path(name).suffix in WEIGHT_SUFFIXES:
        raise UserError(
            f"{name} is a weight file, expected the name of a published checkpoint such as SurgeNetXL. Convert the "
            f'file with surgenet_hf.convert_checkpoint("{name}", output_dir="FOLDER"), and load the folder with '
            f"{model_class.__name__}.from_pretrained"
        )
    return model_class.from_pretrained(fetch_checkpoint(name), **kwargs)


def fetch_checkpoint(name: str, local_files_only: bool = False) -> Path:
    """Return the folder of a converted checkpoint in the Hub cache.

    The first call downloads and converts the checkpoint.

    Args:
        name: name of a checkpoint in the catalog, in any spelling.
        local_files_only: whether to read the file from the Hub cache without a request to the Hub.

    Raises:
        UserError: `name` is unknown, or the file is not the published one.
        UnavailableError: the Hub cannot be reached, and its cache does not have the file.
    """
    entry = find_entry(name)
    path = download_teacher(entry, local_files_only)
    version = f"{file_sha256(path)[:16]}-{__version__}"
    folder = cached_assets_path(
        "surgenet_hf", namespace=entry.repo_name, subfolder=version, assets_dir=constants.HF_ASSETS_CACHE
    )
    if not (folder / "config.json").exists():
        model = convert_entry(entry, path)
        try:
            save_converted(model, build_image_processor(entry.normalization, entry.image_size), folder)
        except UserError:
            if not (folder / "config.json").exists():  # no error if another process has saved the same checkpoint
                raise
    return folder


def model_folder(path: Path) -> Path:
    """Return `path`, or its subfolder `model` if `path` is the output folder of a run."""
    is_run = not (path / "config.json").is_file() and (path / "model" / "config.json").is_file()
    return path / "model" if is_run else path


@overload
def resolve_model(model_name_or_path: str, config_name: None = None) -> str: ...
@overload
def resolve_model(model_name_or_path: str | None, config_name: str) -> SurgeNetConfig: ...
@overload
def resolve_model(model_name_or_path: str | None, config_name: str | None = None) -> str | PreTrainedConfig: ...


def resolve_model(model_name_or_path: str | None, config_name: str | None = None) -> str | PreTrainedConfig:
    """Resolve the initial weights of a training to a folder, a Hub repository, or a configuration for random weights.

    Args:
        model_name_or_path: folder with a model, output folder of a run, repository, or name of a published checkpoint.
            A published checkpoint is downloaded.
        config_name: a SurgeNet backbone, "tiny" for a small CAFormer (`TINY`), timm/NAME, or a folder with a config,
            instead of `model_name_or_path`.

    Returns:
        A folder or repository, or a configuration if `config_name` is given.

    Raises:
        MissingFileError: the folder does not exist.
        UserError: the name is the path of a weight file, or has no slash and is neither a folder nor a published
            checkpoint.
    """
    if config_name == "tiny":
        return SurgeNetConfig(**TINY)
    if config_name in BACKBONES:
        return SurgeNetConfig(backbone=config_name)
    if config_name and config_name.startswith("timm/"):
        name = config_name.removeprefix("timm/")
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), 3)
            raise UserError(
                f"timm has no model {name}; " + (f"did you mean {', '.join(near)}?" if near else "check its name")
            )
        return TimmWrapperConfig(architecture=name)
    if config_name and Path(config_name).is_dir():
        return load_config(config_name)
    if config_name:
        raise UserError(
            f"--backbone {config_name} is unknown: give one of {', '.join(BACKBONES)}, tiny, timm/NAME, or a folder "
            "with a config.json"
        )
    if model_name_or_path is None:
        raise TypeError("expected model_name_or_path or config_name")
    name, path = model_name_or_path, Path(model_name_or_path).expanduser()
    if path.is_dir():
        return str(model_folder(path))
    if path.is_file():
        raise UserError(
            f"{name} is a file, expected a folder with a model. Convert the file with `surgenet convert --checkpoint "
            f"{name} --output_dir FOLDER`. To resume a full DINO checkpoint, give it to `surgenet pretrain` as "
            "--resume_from_checkpoint"
        )
    if name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1:  # these are not valid Hub names
        raise MissingFileError(f"there is no folder {name}; give a folder with a model, or ORG/NAME of the Hub")
    if "/" in name:
        return name
    entry = find_entry(name, "For your own model, give its folder, or ORG/NAME of a repository on the Hub")
    return str(fetch_checkpoint(entry.name))


def load_config(source: str | Path) -> PreTrainedConfig:
    """Load the config of a model.

    Args:
        source: folder, or repository on the Hub.

    Raises:
        MissingFileError: the folder has no config.json.
        UserError: config.json is damaged, or its model type is unknown to transformers.
        UnavailableError: the Hub has no such model or cannot be reached, and its cache does not have the model.
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise MissingFileError(
            f"{source} has no config.json, expected a folder with a model. Give the output folder of a training run "
            "or of `surgenet convert`"
        )
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:  # errors of transformers
        reason = str(error).splitlines()[0].rstrip(".")
        if folder.is_dir():
            raise UserError(
                f"{folder / 'config.json'} cannot be read, expected the config of a model: {reason}. Copy or save the "
                "model again"
            ) from error
        raise UnavailableError(
            f"there is no folder {source}, and no model of this name can be loaded from the Hub: {reason}. Check the "
            "name and the network; for a private model, log in with `hf auth login`"
        ) from error


def is_surgenet(config: PreTrainedConfig) -> bool:
    """Return whether a config is that of a SurgeNet model, including phase models, and not of another family."""
    return config.model_type in ("surgenet", "surgenet_phase")


def load_model(model_class, source: str | Path, required: Callable[..., Collection[str]] | None = None, **options):
    """Load a model with `from_pretrained`, and report a new head in one line instead of transformers' load report.

    Args:
        model_class: SurgeNet model class or Auto class.
        source: folder, or repository on the Hub.
        required: function that returns the names of the parameters of a model that the weights must contain.
        options: arguments of `from_pretrained`.

    Raises:
        UnavailableError: the weights are missing or cannot be read.
        UserError: the weights lack a required parameter, or it has another shape.
    """
    report = logging.getLogger("transformers.modeling_utils")
    # The report would list a new head as a problem. A filter hides it, because with an explicit level of WARNING or
    # higher, transformers lists all layers as "not sharded".
    report.addFilter(_is_error)
    try:
        model, info = model_class.from_pretrained(source, **options, output_loading_info=True)
    except (OSError, SafetensorError) as error:
        raise UnavailableError(
            f"the weights of {source} cannot be read: {error}. Copy or download the model again"
        ) from error
    finally:
        report.removeFilter(_is_error)
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if required is not None and (lost := sorted(new & set(required(model)))):
        raise UserError(
            f"the weights of {source} are not complete: {len(lost)} parameters of its {type(model).__name__} are "
            f"missing or have another shape ({', '.join(lost[:3])}{', ...' * (len(lost) > 3)}). Copy or download the "
            "model again"
        )
    if new:
        depth = 2 if hasattr(model, "timm_model") else 1  # timm_model contains backbone and head
        parts = ", ".join(sorted({".".join(name.split(".")[:depth]) for name in new}))
        logger.warning(
            f"Initialized with random weights: {parts}. Train the model before use. All other weights are from "
            f"{source}"
        )
    return model


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def download_teacher(entry: CatalogEntry, local_files_only: bool = False) -> Path:
    """Download the teacher file of a catalog entry, or read it from the Hub cache, and verify its checksum.

    Args:
        entry: catalog entry.
        local_files_only: whether to read the file from the Hub cache without a request to the Hub.

    Returns:
        Path of the file in the Hub cache.

    Raises:
        UnavailableError: the Hub cannot be reached or refuses the request, and its cache does not have the file.
        UserError: the checksum differs from that of the catalog or the Hub.
    """
    try:
        path = Path(hf_hub_download(entry.upstream_repo, entry.teacher_file, local_files_only=local_files_only))
    except LocalEntryNotFoundError as error:
        raise UnavailableError(
            f"the weights of {entry.name} cannot be downloaded: the Hub cannot be reached or refuses the "
            f"request, and its cache does not contain {entry.teacher_file} of {entry.upstream_repo}. Check the "
            "network and try again"
        ) from error.__cause__ or error
    except OSError as error:  # HTTP errors and a full disk
        raise UnavailableError(
            f"the weights of {entry.name} cannot be downloaded: {error}. Check the network and the free disk space"
        ) from error
    # the cache names a large file by the sha256 that the Hub reports
    announced = path.resolve().name if len(path.resolve().name) == 64 else None
    found = file_sha256(path)
    for source, expected in (("the catalog", entry.teacher_sha256), ("the Hub", announced)):
        if expected and found != expected:
            raise UserError(
                f"{path} is not the published {entry.name}: its SHA-256 is {found}, {source} says {expected}. "
                "Delete it and try again. If the error remains, the file on the Hub was replaced. If you trust the "
                "new file, convert it with `surgenet convert`"
            )
    return path


def convert_entry(entry: CatalogEntry, path: Path) -> PreTrainedModel:
    """Convert the teacher file of a catalog entry, and record the name and normalization of the entry.

    Args:
        entry: catalog entry.
        path: teacher file.

    Raises:
        UserError: the file is refused (see `convert_checkpoint`), or has another backbone, activation, or number of
            elements than the entry.
    """
    try:
        model = convert_checkpoint(path, task="backbone", normalization=entry.normalization)
    except UserError as error:
        if entry.is_vit and entry.tensors is None:
            raise UserError(
                f"{error}. The tensors of {entry.name} were not known when this version was written, so it can have "
                f"another layout. Please report what `surgenet inspect {entry.name}` prints"
            ) from error
        raise
    config: Any = model.config
    found: tuple[str | None, str | None]
    if isinstance(config, SurgeNetConfig):
        found = (config.backbone, config.activation)
    else:
        found = (architecture(config, config.pretraining["family"]), None)
    if found != (entry.backbone, entry.activation):
        raise UserError(
            f"{path} contains {found}, expected {(entry.backbone, entry.activation)} for {entry.name}. Delete the "
            "file, and try again"
        )
    if entry.is_vit:
        tensors = to_original_state_dict(model)
        counts = (len(tensors), sum(tensor.numel() for tensor in tensors.values()))
        if entry.tensors and counts != (entry.tensors, entry.elements):
            raise UserError(
                f"{path} contains {counts[0]} tensors of {counts[1]:,} elements, expected {entry.tensors} of "
                f"{entry.elements:,} for {entry.name}. Delete the file, and try again"
            )
        config.image_size = entry.image_size  # DINOv3 files do not contain it
    config.pretraining = {
        **(config.pretraining or {}),
        "name": entry.name,
        "source": f"{entry.upstream_repo}/{entry.teacher_file}",
        "epoch": entry.epochs,
        "normalization_reason": entry.normalization_reason or f"catalog entry of {entry.name}",
    }
    return model
