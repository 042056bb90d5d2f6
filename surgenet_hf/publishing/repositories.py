"""Folder -> Hub: prepared and checked first, uploaded as one commit, and nothing changes when nothing changed."""

import hashlib
import json
import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock
from torch import nn
from transformers import AutoConfig

from .. import (
    __version__,
    configuration_surgenet,
    configuration_surgenet_phase,
    modeling_surgenet,
    modeling_surgenet_phase,
)
from ..checkpoints.catalog import CatalogEntry
from ..checkpoints.reading import check_finite, file_sha256, read_checkpoint
from ..evaluation.results import find_results, read_results_file
from ..image_processing import build_image_processor, load_image_processor
from ..modeling_surgenet import SurgeNetBackbone, SurgeNetModel
from ..models import convert_entry, download_teacher, model_folder
from ..privacy import Sanitizer, check_no_tokens, mask_tokens, neutral_names, sanitize_results
from .cards import REVISION, checkpoint_card, finetuned_card, pretrained_card

logger = logging.getLogger(__name__)

MARKER = ".prepared-by-surgenet_hf"  # in a folder that may be replaced; it is not uploaded
COLLECTION = "SurgeNet"
COLLECTION_DESCRIPTION = "Surgical foundation models, DINO-pretrained on up to 4.7 million frames of surgical video."
# what a repository carries so that trust_remote_code loads it without this package
REMOTE_CODE = {
    "surgenet": (configuration_surgenet, modeling_surgenet),
    "surgenet_phase": (
        configuration_surgenet,
        modeling_surgenet,
        configuration_surgenet_phase,
        modeling_surgenet_phase,
    ),
}
AUTO_MAP = {
    "surgenet": {
        "AutoConfig": "configuration_surgenet.SurgeNetConfig",
        "AutoModel": "modeling_surgenet.SurgeNetModel",
        "AutoBackbone": "modeling_surgenet.SurgeNetBackbone",
        "AutoModelForImageClassification": "modeling_surgenet.SurgeNetForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_surgenet.SurgeNetForSemanticSegmentation",
    },
    "surgenet_phase": {
        "AutoConfig": "configuration_surgenet_phase.SurgeNetPhaseConfig",
        "AutoModel": "modeling_surgenet_phase.SurgeNetForPhaseRecognition",
    },
}
# of the features of source and saved weights, relative to the largest value
TOLERANCE = 1e-5


@dataclass
class Outcome:
    """What became of one repository.

    Attributes:
        repo_id: its id.
        changes: what differs between folder and Hub, e.g. "new README.md"; all files if they were not compared.
        not_compared: why the folder was not compared with the Hub, which a dry run does without.
        commit: id of the commit that was made, if any.
        error: why it failed, without access tokens.
        names: what the published files call the user's videos, data sets and folders, by kind.
    """

    repo_id: str
    changes: list[str] = field(default_factory=list)
    not_compared: str | None = None
    commit: str | None = None
    error: str | None = None
    names: dict[str, list[str]] = field(default_factory=dict)


def prepare_checkpoint(entry: CatalogEntry, repo_id: str, folder: Path) -> None:
    """Fetch, verify, convert, check and write one published checkpoint: all that its repository holds.

    Raises:
        ValueError: the file is not what the catalogue says, or the saved model does not compute what the source does.
        OSError: the Hub cannot be reached, or there is no room.
    """
    source = download_teacher(entry)
    model = convert_entry(entry, source)
    _write_model(model, folder, str(source))
    build_image_processor(entry.statistics, entry.image_size).save_pretrained(folder)
    compare_with_source(entry, source, folder)
    provenance = {
        "upstream file": f"{entry.upstream_repo}/{entry.teacher_file}",
        "its sha256": file_sha256(source),
        "converted by": f"surgenet_hf {__version__}",
        "sha256 of model.safetensors": file_sha256(folder / "model.safetensors"),
    }
    (folder / "README.md").write_text(checkpoint_card(entry, repo_id, provenance), encoding="utf-8")


def prepare_finetuned(
    model_dir: str | Path, repo_id: str, folder: Path, publish_video_names: bool = False
) -> dict[str, list[str]]:
    """Write all that the repository of a user's own SurgeNet model holds, fine-tuned or pretrained.

    Paths are cut to their last component. The user's own videos get neutral names, unless `publish_video_names`; see
    `surgenet_hf.privacy`.

    Returns:
        the names that are published, see `Outcome`.

    Raises:
        FileNotFoundError, ValueError: `model_dir` is no folder with a SurgeNet model, its weights are not finite, its
            results.json is damaged, or it has no image processor and the config does not record the normalization.
    """
    model_dir = model_folder(Path(model_dir))
    for name in ("config.json", "model.safetensors"):
        if not (model_dir / name).is_file():
            raise FileNotFoundError(f"{model_dir} holds no {name}; save model and image processor there first")
    config = AutoConfig.from_pretrained(model_dir)
    modules = REMOTE_CODE.get(config.model_type, ())
    classes = {name: cls for module in modules for name, cls in vars(module).items() if isinstance(cls, type)}
    architecture = (config.architectures or [None])[0]
    if architecture not in classes:
        raise ValueError(f"{model_dir} holds a {config.model_type} ({architecture}), not a SurgeNet model")
    _write_model(classes[architecture].from_pretrained(model_dir), folder, str(model_dir))
    load_image_processor(model_dir).save_pretrained(folder)
    provenance = {
        "published by": f"surgenet_hf {__version__}",
        "sha256 of model.safetensors": file_sha256(folder / "model.safetensors"),
    }
    path = find_results(model_dir)
    results = read_results_file(path) if path else None
    names = {} if results is None or publish_video_names else neutral_names(results)
    if results is not None:
        results = sanitize_results(results, repo_id, names)
        text = json.dumps(results, indent=2, ensure_ascii=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    _sanitize_settings(folder, names)
    card = pretrained_card if architecture == "SurgeNetModel" else finetuned_card
    (folder / "README.md").write_text(card(folder, repo_id, provenance), encoding="utf-8")
    return published_names(folder, results)


def published_names(folder: Path, results: dict | None) -> dict[str, list[str]]:
    """List what a prepared model and its results call videos, data sets and folders, for the user to look through."""
    pretraining = AutoConfig.from_pretrained(folder).pretraining or {}
    names = {"pretraining": [pretraining.get("name", "unknown")]}
    if results is not None:
        data = results["data"]
        names |= {"data set": [data["name"]], "videos": data["videos"], "notes": data["notes"]}
        names["command"] = [results["command"]] if "command" in results else []
    return {kind: found for kind, found in names.items() if found}


def _sanitize_settings(folder: Path, names: Mapping[str, str]) -> None:
    """Cut the paths in config and image processor; replace names of videos in what the config says of pretraining."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plain, named = Sanitizer({}), Sanitizer(names)

    def clean(settings: dict) -> dict:
        cleaned = {}
        for key, item in settings.items():
            if key in ("id2label", "label2id"):  # a class may be called "clip/cut"
                cleaned[key] = item
            elif key == "finetuning" and item:
                protocols = {run.get("split_protocol") for run in item}  # "32/8/40 (...)" is no path
                cleaned[key] = Sanitizer({}, protocols).value(item)
            elif isinstance(item, dict) and key != "pretraining":
                cleaned[key] = clean(item)
            else:
                cleaned[key] = (named if key == "pretraining" else plain).value(item)
        return cleaned

    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    for name, settings in (("config.json", config), ("preprocessor_config.json", processor)):
        text = json.dumps(clean(settings), indent=2, sort_keys=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def compare_with_source(entry: CatalogEntry, source: Path, folder: Path) -> None:
    """Check that what was saved computes what the source does in timm's own network, by timm's own key mapping.

    Raises:
        ValueError: a stage's features differ by more than `TOLERANCE` of the largest value.
    """
    reference = timm_reference(entry, source)
    backbone = SurgeNetBackbone.from_pretrained(folder, out_indices=[1, 2, 3, 4]).eval()
    base = SurgeNetModel.from_pretrained(folder).eval()
    pixel_values = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        final, expected = reference.forward_intermediates(pixel_values)
        found = [*backbone(pixel_values).feature_maps, base(pixel_values).pooler_output]
        expected = [*expected, reference.forward_head(final)]
    for name, ours, theirs in zip(
        ("stage 1", "stage 2", "stage 3", "stage 4", "embedding"), found, expected, strict=True
    ):
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not error <= TOLERANCE:
            raise ValueError(f"{entry.name}: {name} of the saved model is {error:.1e} off the source weights")


def timm_reference(entry: CatalogEntry, source: Path) -> nn.Module:
    """timm's network of the entry's family, without classes, strictly loaded from the source file."""
    options = {"mlp_act": nn.ReLU, "act1_layer": nn.ReLU} if entry.activation == "relu" else {}
    network = timm.create_model(entry.backbone, num_classes=0, **options)
    tensors = {
        name: tensor for name, tensor in read_checkpoint(source).tensors.items() if not name.startswith("head.")
    }
    family = sys.modules[type(network).__module__]
    network.load_state_dict(family.checkpoint_filter_fn(tensors, network), strict=True)
    return network.eval()


def check_login() -> None:
    """That the Hub knows the user shows before the work, not after it.

    Raises:
        OSError: there is no token, the Hub refuses it, or it cannot be reached.
    """
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise OSError("an upload needs a token: run `hf auth login`, or set HF_TOKEN") from error
    except Exception as error:  # of any kind: those of the network are the HTTP library's own
        # not `from error`: a traceback would print the answer of the server, which may quote the token
        raise OSError(mask_tokens(f"the Hub cannot be reached, or refuses the token: {error}")) from None


def publish_checkpoints(
    entries: Iterable[CatalogEntry],
    namespace: str,
    output_dir: Path,
    push: bool = False,
    private: bool = False,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Prepare checkpoints in `output_dir` and, with `push`, upload them and gather them in one collection.

    One that fails does not stop the others: its outcome says why. `report` is called with each as it is done.
    """
    outcomes = []
    for entry in entries:
        repo_id = f"{namespace}/{entry.repo_name}"
        outcome = publish_folder(
            repo_id,
            output_dir / entry.repo_name,
            lambda folder, entry=entry, repo_id=repo_id: prepare_checkpoint(entry, repo_id, folder),
            push,
            private,
            tag=True,
        )
        if push and outcome.error is None:
            try:
                add_to_collection(namespace, repo_id, private)
            except Exception as error:  # of any kind: it is reported
                outcome.error = mask_tokens(f"published, but not added to the collection: {error}")
        report(outcome)
        outcomes.append(outcome)
    return outcomes


def publish_finetuned(
    model_dir: str | Path,
    repo_id: str,
    output_dir: Path,
    push: bool = False,
    private: bool = False,
    publish_video_names: bool = False,
) -> Outcome:
    """Prepare a user's own fine-tuned model in `output_dir` and, with `push`, upload it.

    Args:
        publish_video_names: keep the names of the user's own videos, see `prepare_finetuned`.
    """
    names: dict[str, list[str]] = {}

    def prepare(folder: Path) -> None:
        names.update(prepare_finetuned(model_dir, repo_id, folder, publish_video_names))

    outcome = publish_folder(repo_id, output_dir / repo_id.split("/")[-1], prepare, push, private)
    outcome.names = names
    return outcome


def push_model(
    model_dir: str | Path, repo_id: str | None, private: bool | None, name: str, publish_video_names: bool = False
) -> str:
    """Publish the model that a run has made, and prepare its repository beside it, in `hub`; returns the id.

    Args:
        model_dir: as `prepare_finetuned` takes it.
        repo_id: ORG/NAME; None: `name` in the user's own namespace.
        publish_video_names: keep the names of the user's own videos, see `prepare_finetuned`.

    Raises:
        OSError: it was not published, with the reason and what to do.
    """
    repo_id = repo_id or f"{HfApi().whoami()['name']}/{name}"
    output_dir = Path(model_dir).parent / "hub"
    outcome = publish_finetuned(model_dir, repo_id, output_dir, True, bool(private), publish_video_names)
    if outcome.error:
        options = " --private" * bool(private) + " --publish_video_names" * publish_video_names
        raise OSError(
            f"{repo_id} was not published: {outcome.error}. The model is whole; to try again: python scripts/"
            f"publish_checkpoints.py --model {model_dir} --repo_id {repo_id} --push{options}"
        )
    return repo_id


def publish_folder(
    repo_id: str,
    folder: Path,
    prepare: Callable[[Path], None],
    push: bool = False,
    private: bool = False,
    tag: bool = False,
    repo_type: str = "model",
) -> Outcome:
    """Write a repository's folder by `prepare`, whole or not at all, compare it with the Hub and, with `push`, upload.

    A folder that was not prepared here is not replaced, and one with an access token in it is refused before the Hub
    is asked. Without `push`, the Hub need not be reachable. Nothing is raised: the outcome says what went wrong.
    """
    outcome = Outcome(repo_id)
    try:
        with WeakFileLock(_lock_path(folder)):
            _prepare_folder(folder, prepare)
            try:
                there = list_files(repo_id, repo_type)
            except Exception as error:  # those of the connection are the HTTP library's own
                if push:
                    raise
                there, outcome.not_compared = None, mask_tokens(f"the Hub cannot be reached ({error})")
            outcome.changes, operations = find_changes(folder, there)
            if push:
                outcome.commit = upload(repo_id, operations, private, tag, repo_type)
    except Exception as error:  # of any kind: it is reported, and the next checkpoint has its turn
        logger.debug(mask_tokens(f"{repo_id} failed: {traceback.format_exc()}"))
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        outcome.error = mask_tokens(f"{type(error).__name__}: {error}{cause}")
    return outcome


def _lock_path(folder: Path) -> Path:
    """Return the lock of a folder: two runs at once must not prepare it in the same place."""
    locks = Path(constants.HF_HOME, "surgenet_hf", "locks")
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.lock"


def _prepare_folder(folder: Path, prepare: Callable[[Path], None]) -> None:
    """Write a folder by `prepare`, check it, and put it in place of an earlier one."""
    if folder.exists() and not (folder / MARKER).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} was not prepared by this script; choose another output_dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
    try:
        prepare(temporary / "repository")
        check_no_tokens(temporary)
        (temporary / "repository" / MARKER).touch()
        if folder.exists():
            shutil.rmtree(folder)
        (temporary / "repository").replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def list_files(repo_id: str, repo_type: str = "model") -> dict[str, str]:
    """List the files of a repository with their hashes; none if there is no such repository."""
    try:
        tree = HfApi().list_repo_tree(repo_id, recursive=True, repo_type=repo_type)
        return {
            file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in tree if isinstance(file, RepoFile)
        }
    except RepositoryNotFoundError:
        return {}


def find_changes(
    folder: Path, there: Mapping[str, str] | None
) -> tuple[list[str], list[CommitOperationAdd | CommitOperationDelete]]:
    """Find what an upload of `folder` would change: in words, and as operations of one commit.

    Args:
        folder: as prepared.
        there: files on the Hub with their hashes; None if they are not known.
    """
    compared, there = there is not None, there or {}
    words, operations = [], []
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    paths.pop(MARKER, None)
    for name, path in sorted(paths.items()):
        content = path.read_bytes()
        git_blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if there.get(name) not in (git_blob, hashlib.sha256(content).hexdigest()):
            words.append(f"{'changed' if name in there else 'new' if compared else 'prepared'} {name}")
            operations.append(CommitOperationAdd(name, path))
    for name in sorted(there.keys() - paths.keys() - {".gitattributes"}):
        words.append(f"deleted {name}")
        operations.append(CommitOperationDelete(name))
    return words, operations


def upload(
    repo_id: str,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    private: bool,
    tag: bool,
    repo_type: str = "model",
) -> str | None:
    """One commit and, with `tag`, the tag of this version, which the examples of our own cards pin.

    Returns:
        the commit's id, None where there was nothing to do.

    Raises:
        ValueError: the version's tag marks other content already.
    """
    api = HfApi()
    space_sdk = "gradio" if repo_type == "space" else None
    api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk)
    tagged = not tag or any(ref.name == REVISION for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags)
    if operations and tag and tagged:
        raise ValueError(
            f"{repo_id} has the tag {REVISION} on other content, and examples pin it: raise the package's version"
        )
    commit = None
    if operations:
        message = f"Upload with surgenet_hf {__version__}"
        commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type).oid
    if not tagged:
        api.create_tag(repo_id, tag=REVISION, repo_type=repo_type)
    return commit


def add_to_collection(namespace: str, repo_id: str, private: bool) -> None:
    """Put a repository into the namespace's collection, which is made if need be."""
    api = HfApi()
    collection = api.create_collection(
        COLLECTION, namespace=namespace, description=COLLECTION_DESCRIPTION, private=private, exists_ok=True
    )
    api.add_collection_item(collection.slug, repo_id, item_type="model", exists_ok=True)


def _write_model(model, folder: Path, source: str) -> None:
    """Write config with `auto_map`, weights, and the code that `auto_map` points to; `source` is for messages."""
    check_finite(model.state_dict(), source)
    model_type = model.config.model_type
    model.config.auto_map = dict(AUTO_MAP[model_type])
    model.save_pretrained(folder)
    for module in REMOTE_CODE[model_type]:
        shutil.copyfile(module.__file__, folder / Path(module.__file__).name)
