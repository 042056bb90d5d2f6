"""Publishing on the Hub. A repository is prepared in a folder, checked, and uploaded as one commit if it changed."""

import hashlib
import logging
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError

from .._version import __version__
from ..checkpoints.catalog import CatalogEntry
from ..errors import UnavailableError, UserError
from ..privacy import check_no_tokens, mask_tokens
from .cards import REVISION
from .prepare import prepare_checkpoint, prepare_finetuned

logger = logging.getLogger(__name__)

COLLECTION = "SurgeNet"
COLLECTION_DESCRIPTION = "Surgical foundation models, DINO-pretrained on up to 4.7 million frames of surgical video."
MARKER = ".prepared-by-surgenet_hf"  # marks a folder that may be replaced; not uploaded


@dataclass
class Outcome:
    """Result of publishing one repository.

    Attributes:
        repo_id: id of the repository.
        changes: differences between folder and Hub, e.g. "new README.md", or all files if they were not compared.
        not_compared: reason why a dry run did not compare the folder with the Hub.
        commit: id of the commit, or None without a commit.
        error: reason of a failure, without access tokens.
        names: {kind: names of the user's videos, datasets, and folders in the published files}.
    """

    repo_id: str
    changes: list[str] = field(default_factory=list)
    not_compared: str | None = None
    commit: str | None = None
    error: str | None = None
    names: dict[str, list[str]] = field(default_factory=dict)


def check_login() -> str:
    """Return the user name of the token.

    Call this before long work, so that a missing or refused token is reported early.

    Raises:
        UnavailableError: there is no token, the Hub refuses it, or it cannot be reached.
    """
    with _hub_errors("the Hub cannot be reached, or refuses the token"):
        try:
            return HfApi().whoami()["name"]
        except LocalTokenNotFoundError as error:
            raise UnavailableError("an upload needs a token: run `hf auth login`, or set HF_TOKEN") from error


@contextmanager
def _hub_errors(message: str) -> Iterator[None]:
    """Convert errors of Hub requests to UnavailableError.

    All exceptions except `UserError` are converted, because the errors come from several libraries.

    Args:
        message: beginning of the error message.

    Raises:
        UnavailableError: the block raised an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        logger.debug(mask_tokens(traceback.format_exc()))
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        # not `from error`, because a traceback would print the server's response, which can quote the token
        raise UnavailableError(mask_tokens(f"{message}: {error}{cause}")) from None


def publish_checkpoints(
    entries: Iterable[CatalogEntry],
    namespace: str,
    output_dir: Path,
    push: bool = False,
    private: bool = False,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Prepare checkpoints, and optionally upload them and add them to one collection.

    A `UserError` for one checkpoint does not stop the others.

    Args:
        entries: catalog entries of the checkpoints.
        namespace: user or organization on the Hub.
        output_dir: parent folder of the prepared repositories.
        push: whether to upload the checkpoints.
        private: whether new repositories are private.
        report: function that is called with each outcome.

    Returns:
        The outcomes.
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
                with _hub_errors("published, but not added to the collection"):
                    _add_to_collection(namespace, repo_id, private)
            except UnavailableError as error:
                outcome.error = str(error)
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
    onnx: bool = False,
) -> Outcome:
    """Prepare a user's own model, and optionally upload it.

    Args:
        model_dir: folder with the model, or output folder of its run.
        repo_id: ORG/NAME.
        output_dir: parent folder of the prepared repository.
        push: whether to upload the model.
        private: whether a new repository is private.
        publish_video_names: whether to keep the names of the user's own videos, see `prepare_finetuned`.
        onnx: whether to add `onnx/model.onnx`.

    Returns:
        The outcome.
    """
    names: dict[str, list[str]] = {}

    def prepare(folder: Path) -> None:
        names.update(prepare_finetuned(model_dir, repo_id, folder, publish_video_names, onnx))

    outcome = publish_folder(repo_id, output_dir / repo_id.split("/")[-1], prepare, push, private)
    outcome.names = names
    return outcome


def push_model(
    model_dir: str | Path, repo_id: str | None, private: bool | None, name: str, publish_video_names: bool = False
) -> str:
    """Publish the model of a run and return the id of its repository.

    The repository is prepared in the folder `hub`, in the parent folder of `model_dir`.

    Args:
        model_dir: folder with the model, or output folder of its run.
        repo_id: ORG/NAME. None means `name` in the user's own namespace.
        private: whether a new repository is private.
        name: name of the repository if `repo_id` is None.
        publish_video_names: whether to keep the names of the user's own videos, see `prepare_finetuned`.

    Raises:
        UnavailableError: the model was not published.
    """
    repo_id = repo_id or f"{check_login()}/{name}"
    output_dir = Path(model_dir).parent / "hub"
    outcome = publish_finetuned(model_dir, repo_id, output_dir, True, bool(private), publish_video_names)
    if outcome.error:
        options = " --private" * bool(private) + " --publish_video_names" * publish_video_names
        raise UnavailableError(
            f"{repo_id} was not published: {outcome.error}. The model is complete. To try again: surgenet publish "
            f"--model {model_dir} --repo_id {repo_id} --push{options}"
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
    """Prepare the folder of a repository, compare it with the Hub, and optionally upload it.

    An existing folder is only replaced if this function prepared it. A folder that contains an access token is
    rejected before any request. Without `push`, the Hub does not have to be reachable. A `UserError` is returned as
    `Outcome.error`.

    Args:
        repo_id: ORG/NAME.
        folder: folder for the files. After an error, an existing folder is unchanged.
        prepare: function that writes the files to a new folder.
        push: whether to upload the folder.
        private: whether a new repository is private.
        tag: whether to add the tag of this version, which the examples in the cards pin.
        repo_type: "model" or "space".

    Returns:
        The outcome.
    """
    outcome = Outcome(repo_id)
    try:
        with WeakFileLock(_lock_path(folder)):
            _prepare_folder(folder, prepare)
            there = None
            try:
                with _hub_errors("the Hub cannot be reached"):
                    there = list_files(repo_id, repo_type)
            except UnavailableError as error:
                if push:
                    raise
                outcome.not_compared = str(error)
            outcome.changes = find_changes(folder, there)
            if push:
                with _hub_errors("the upload failed"):
                    outcome.commit = _upload(repo_id, folder, bool(outcome.changes), private, tag, repo_type)
    except UserError as error:
        outcome.error = mask_tokens(str(error))
    return outcome


def _lock_path(folder: Path) -> Path:
    """Return the lock file of a folder, which prevents two runs from preparing the folder at the same time."""
    locks = Path(constants.HF_HOME, "surgenet_hf", "locks")
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.lock"


def _prepare_folder(folder: Path, prepare: Callable[[Path], None]) -> None:
    """Write a folder with `prepare`, check it, and replace an existing folder.

    Raises:
        UserError: the existing folder was not prepared by this function, or a file contains an access token.
        UnavailableError: the folder cannot be written to.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        if folder.exists() and not (folder / MARKER).exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} was not prepared by this command; choose another output_dir")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
        prepare(temporary / "repository")
        check_no_tokens(temporary)
        (temporary / "repository" / MARKER).touch()
        if folder.exists():
            shutil.rmtree(folder)
        (temporary / "repository").replace(folder)
    except UserError:
        raise
    except (OSError, SafetensorError) as error:
        raise UnavailableError(f"{folder} cannot be written: {error}. Choose another output_dir") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def list_files(repo_id: str, repo_type: str = "model") -> dict[str, str]:
    """Return {file of a repository: its hash}. The result is empty if the repository does not exist."""
    try:
        tree = HfApi().list_repo_tree(repo_id, recursive=True, repo_type=repo_type)
        return {
            file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in tree if isinstance(file, RepoFile)
        }
    except RepositoryNotFoundError:
        return {}


def find_changes(folder: Path, there: Mapping[str, str] | None) -> list[str]:
    """List the changes of an upload, e.g. "new README.md".

    Args:
        folder: folder with the prepared files.
        there: {file on the Hub: its hash}, or None if it is unknown.
    """
    new = "prepared" if there is None else "new"
    there = there or {}
    changes = []
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    paths.pop(MARKER, None)
    for name, path in sorted(paths.items()):
        content = path.read_bytes()
        git_blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if there.get(name) not in (git_blob, hashlib.sha256(content).hexdigest()):
            changes.append(f"{'changed' if name in there else new} {name}")
    return changes + [f"deleted {name}" for name in sorted(there.keys() - paths.keys() - {".gitattributes"})]


def _upload(repo_id: str, folder: Path, is_changed: bool, private: bool, tag: bool, repo_type: str) -> str | None:
    """Upload a changed folder, and add the tag.

    Returns:
        The id of the commit, or None if nothing changed.

    Raises:
        UserError: the tag already exists for other content.
    """
    api = HfApi()
    space_sdk = "gradio" if repo_type == "space" else None
    api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk)
    tagged = not tag or any(ref.name == REVISION for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags)
    if is_changed and tag and tagged:
        raise UserError(
            f"the tag {REVISION} of {repo_id} marks other content, and the examples in the card pin it: raise the "
            "package's version"
        )
    commit = None
    if is_changed:
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type=repo_type,
            commit_message=f"Upload with surgenet_hf {__version__}",
            ignore_patterns=MARKER,
            delete_patterns="*",  # delete files that are not in the folder
        ).oid
    if not tagged:
        api.create_tag(repo_id, tag=REVISION, repo_type=repo_type)
    return commit


def _add_to_collection(namespace: str, repo_id: str, private: bool) -> None:
    """Add a repository to the collection of a namespace, which is created if it does not exist."""
    api = HfApi()
    collection = api.create_collection(
        COLLECTION, namespace=namespace, description=COLLECTION_DESCRIPTION, private=private, exists_ok=True
    )
    api.add_collection_item(collection.slug, repo_id, item_type="model", exists_ok=True)
