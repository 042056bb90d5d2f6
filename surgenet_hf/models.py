"""Resolve what a user names to a model: published checkpoint, folder, Hub repository, or configuration."""

import logging
from pathlib import Path

from huggingface_hub import cached_assets_path, constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ._version import __version__
from .checkpoints.catalog import CatalogEntry, find_entry
from .checkpoints.conversion import convert_checkpoint, save_converted
from .checkpoints.reading import file_sha256
from .configuration_surgenet import SurgeNetConfig
from .errors import UserError
from .image_processing import build_image_processor
from .modeling_surgenet import SurgeNetModel

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# a small CAFormer, for first runs and demonstrations
TINY = {
    "depths": [1, 1, 2, 1],
    "hidden_sizes": [32, 64, 128, 192],
    "pyramid_channels": 64,
    "segmentation_channels": 64,
}


def load_checkpoint(name: str, model_class=SurgeNetModel, **kwargs):
    """A published model, straight from the authors' repository on the Hub.

    Example:
        >>> model = load_checkpoint("SurgeNetXL")
        >>> model = load_checkpoint("SurgeNetXL", AutoModelForSemanticSegmentation, num_labels=7)

    Args:
        name: of the catalogue, in any spelling.
        model_class: one of our classes or an Auto class; it starts a new head, and says so.
        kwargs: as `from_pretrained` takes them.

    Raises:
        UserError: the path of a file.
        ValueError: an unknown name (the message names the nearest), or a file that is not what the authors published.
        OSError: the Hub cannot be reached, and the file is not in its cache.
    """
    if Path(name).is_file() or Path(name).suffix in WEIGHT_SUFFIXES:
        raise UserError(
            f"{name} is a weight file, expected the name of a published checkpoint such as SurgeNetXL. Convert the "
            f'file with surgenet_hf.convert_checkpoint("{name}", output_dir="FOLDER"), and load the folder with '
            f"{model_class.__name__}.from_pretrained"
        )
    return model_class.from_pretrained(fetch_checkpoint(name), **kwargs)


def fetch_checkpoint(name: str, local_files_only: bool = False) -> Path:
    """The folder with the converted model and its image processor; made on the first call, in the Hub's cache.

    Args:
        name: of the catalogue, in any spelling.
        local_files_only: take the file from the Hub's cache and do not ask the Hub.
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
            save_converted(model, build_image_processor(entry.statistics, entry.image_size), folder)
        except OSError:
            if not (folder / "config.json").exists():  # else another process was faster
                raise
    return folder


def model_folder(path: Path) -> Path:
    """The folder of a model: `path`, or its subfolder `model` if it is the output folder of a run."""
    is_run = not (path / "config.json").is_file() and (path / "model" / "config.json").is_file()
    return path / "model" if is_run else path


def resolve_model(model_name_or_path: str | None, config_name: str | None = None) -> str | SurgeNetConfig:
    """What the training scripts start from: a folder, a Hub repository, or a configuration for random weights.

    Args:
        model_name_or_path: a folder with a model, the output folder of a run, a repository, or the name of a published
            checkpoint, which is fetched.
        config_name: instead of it, a backbone, or "tiny", which is a small CAFormer (`TINY`).

    Raises:
        FileNotFoundError: a path to a folder that is not there.
        ValueError: a path to a weight file, or a name without a slash that is neither a folder nor a published
            checkpoint.
    """
    if config_name == "tiny":
        return SurgeNetConfig(**TINY)
    if config_name:
        return SurgeNetConfig(backbone=config_name)
    name, path = model_name_or_path, Path(model_name_or_path).expanduser()
    if path.is_dir():
        return str(model_folder(path))
    if path.is_file():
        raise ValueError(
            f"{name} is a file; what is needed is a folder with a model: convert the file with "
            f"scripts/convert_checkpoint.py --checkpoint {name} --output_dir FOLDER. To go on with a full DINO "
            "checkpoint where it stopped, give it to scripts/pretrain_dino.py as --resume_from_checkpoint"
        )
    if name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1:  # the Hub knows no such names
        raise FileNotFoundError(f"there is no folder {name}; give one with a model, or ORG/NAME of the Hub")
    return name if "/" in name else str(fetch_checkpoint(name))


def load_model(model_class, source: str | Path, **options):
    """Load a model by `from_pretrained`, with one line about a new head in place of transformers' load report.

    Args:
        model_class: one of our classes, or an Auto class.
        source: a folder, or a repository on the Hub.
        options: of `from_pretrained`.
    """
    report = logging.getLogger("transformers.modeling_utils")
    level = report.level
    report.setLevel(logging.ERROR)  # the report lists a new head among problems
    try:
        model, info = model_class.from_pretrained(source, **options, output_loading_info=True)
    finally:
        report.setLevel(level)
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if new:
        parts = ", ".join(sorted({name.split(".")[0] for name in new}))
        logger.warning(
            f"New in this model, with random weights until it is trained: {parts}. All other weights are those of "
            f"{source}"
        )
    return model


def download_teacher(entry: CatalogEntry, local_files_only: bool = False) -> Path:
    """The teacher file from the Hub or its cache, with the right checksum.

    Raises:
        LocalEntryNotFoundError: the Hub cannot be reached, and the file is not in its cache.
        ValueError: the file has another checksum than the catalogue's, or than the Hub's.
    """
    try:
        path = Path(hf_hub_download(entry.upstream_repo, entry.teacher_file, local_files_only=local_files_only))
    except LocalEntryNotFoundError as error:
        raise LocalEntryNotFoundError(
            f"the weights of {entry.name} cannot be downloaded: the Hub cannot be reached or refuses, and its cache "
            f"does not hold {entry.teacher_file} of {entry.upstream_repo}. Check the network and try again"
        ) from error.__cause__ or error
    # the cache calls a large file by the sha256 that the Hub announced
    announced = path.resolve().name if len(path.resolve().name) == 64 else None
    found = file_sha256(path)
    for source, expected in (("the catalogue", entry.teacher_sha256), ("the Hub", announced)):
        if expected and found != expected:
            raise ValueError(
                f"{path} is not the {entry.name} that was published: its sha256 is {found}, {source} says {expected}. "
                "Delete it and try again; if it is the same then, the file on the Hub was replaced: if you trust it, "
                "convert it with scripts/convert_checkpoint.py"
            )
    return path


def convert_entry(entry: CatalogEntry, path: Path) -> SurgeNetModel:
    """`convert_checkpoint` of a catalogue entry's teacher file, with the entry's name and statistics."""
    model = convert_checkpoint(path, task="backbone", normalization=entry.statistics)
    found = (model.config.backbone, model.config.activation)
    if found != (entry.backbone, entry.activation):
        raise ValueError(f"{path} holds {found}; {entry.name} is {(entry.backbone, entry.activation)}: a wrong file")
    model.config.pretraining |= {
        "name": entry.name,
        "source": f"{entry.upstream_repo}/{entry.teacher_file}",
        "epoch": entry.epochs,
        "statistics_reason": f"catalogue entry of {entry.name}",
    }
    return model
