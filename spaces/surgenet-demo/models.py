"""The models of the demo: the published ones, those of the Hub by their id, the owner's, and small ones made here."""

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from demo import DEMO, TRAINED, DemoTraining, demo_folder, untrained
from folders import CONFIG_FILES, HUB_ID, Loaded, download, load_folder, read_config, summary
from huggingface_hub import HfApi
from media import Refused, full_disk

from surgenet_hf import fetch_checkpoint
from surgenet_hf.checkpoints.catalog import CATALOG, find_entry
from surgenet_hf.privacy import mask_tokens


class ModelStore:
    """Loads models once, keeps the last few, and says what may not be loaded.

    Args:
        given: folders, Hub ids or published names that the owner of the demo serves; each is tried at once, so that
            what is wrong with it is told to the owner, not to the first visitor.
        capacity: models that are kept in memory.

    Raises:
        Refused: of what is `given`, one that cannot be served.
    """

    def __init__(self, given: list[str] = (), capacity: int = 4):
        self.capacity = capacity
        self._ready: OrderedDict[str, Loaded] = OrderedDict()
        self._lock, self._loading, self._starting = threading.Lock(), threading.Lock(), threading.Lock()
        self._training: DemoTraining | None = None
        self._given: dict[str, tuple[Path, tuple[str, ...]]] = {}
        for source in given:
            folder = find_given(source)
            name = folder_name(Path(source))
            while name in self._given or name in DEMO:
                name += "*"
            self._given[name] = folder, load_folder(folder, name).tasks
        self._hub = HubProbe()

    @property
    def given(self) -> bool:
        """Whether the owner gave models."""
        return bool(self._given)

    def hub_problem(self) -> str | None:
        """Why the Hub cannot be reached; None if it can."""
        return self._hub.problem()

    def choices(self, *tasks: str, wait: bool = True) -> list[tuple[str, str]]:
        """(what the list says, name) of the models for any of these tasks, the first one to begin with.

        That is the owner's; or else a published one where the Hub can be reached, which takes a moment to find out,
        unless not to `wait` for it.
        """
        given = [(name, name) for name, (_, can) in self._given.items() if set(tasks) & set(can)]
        demo = [(text, name) for name, (text, can, _) in DEMO.items() if set(tasks) & set(can)]
        published = [(entry.name, entry.name) for entry in CATALOG] if "features" in tasks else []
        return given + (demo + published if not wait or self.hub_problem() else published + demo)

    def get(self, name: str, tasks: tuple[str, ...], report: Callable[[float, str], None]) -> Loaded:
        """The model of that name, which must serve one of the tasks; `report(share, what)` is told what goes on.

        Raises:
            Refused: no such model, one for other tasks, or one that may not or cannot be loaded.
        """
        name = name.strip()
        self._check_tasks(name, self._known_tasks(name), tasks)
        if name == TRAINED:
            self.wait_for_training(report)
        loaded = self._cached(name)
        if loaded is None:
            report(0, "Loading the model")
            with self._loading:  # one at a time; who waited may find it there
                loaded = self._cached(name) or self._load(name, report)
                with self._lock:
                    self._ready[name] = loaded
                    while len(self._ready) > self.capacity:
                        self._ready.popitem(last=False)
        self._check_tasks(name, loaded.tasks, tasks)
        return loaded

    def describe(self, name: str) -> dict:
        """What is known of a model without loading it: of one on the Hub, its configuration alone is fetched."""
        if name in DEMO:
            text, tasks, note = DEMO[name]
            return {"name": text, "tasks": list(tasks), "pretraining": None, "labels": [], "note": note}
        if name in self._given:
            folder, _ = self._given[name]
            return summary(name, *read_config(folder, name))
        if entry := published(name):
            frames, backbone = f"{entry.pretraining_frames:,}", entry.backbone
            note = f"{entry.name}: a backbone ({backbone}), pretrained without labels on {frames} frames."
            return {
                "name": entry.name,
                "tasks": ["features"],
                "pretraining": entry.name,
                "labels": [],
                "note": note,
                "licence": entry.licence,
            }
        with tempfile.TemporaryDirectory() as folder:
            download(name, Path(folder), weights=False)
            return summary(name, *read_config(Path(folder), name))

    def start_training(self) -> "DemoTraining":
        """Begin to train the demo model, unless that is under way."""
        with self._starting:
            if self._training is None or (self._training.error and not self._training.is_alive()):
                self._training = DemoTraining()
                self._training.start()
            return self._training

    def wait_for_training(self, report: Callable[[float, str], None]) -> None:
        if (demo_folder() / "config.json").exists():
            return
        training = self.start_training()
        while training.is_alive():
            report(training.share, "Training a small model on drawn scenes: about half a minute, the first time only")
            training.join(0.3)
        if training.error:
            raise Refused("The demo model could not be made. Please choose another model.") from training.error

    def _known_tasks(self, name: str) -> tuple[str, ...] | None:
        """What a model is for, if that is known before it is loaded."""
        if name in DEMO:
            return DEMO[name][1]
        if name in self._given:
            return self._given[name][1]
        return ("features",) if published(name) else None

    @staticmethod
    def _check_tasks(name: str, can: tuple[str, ...] | None, wanted: tuple[str, ...]) -> None:
        if can is not None and not set(wanted) & set(can):
            raise Refused(
                f"{name} is a model for {' and '.join(can)}, not for {' or '.join(wanted)}. Please choose one in the "
                "list, or type the Hub id of a model that was fine-tuned for this."
            )

    def _cached(self, name: str) -> Loaded | None:
        with self._lock:
            if name in self._ready:
                self._ready.move_to_end(name)
            return self._ready.get(name)

    def _load(self, name: str, report: Callable[[float, str], None]) -> Loaded:
        if name == TRAINED:
            return load_folder(demo_folder(), name, DEMO[name][2])
        if name in DEMO:
            return untrained(name)
        if name in self._given:
            return load_folder(self._given[name][0], name)
        if entry := published(name):
            report(0, f"Downloading {entry.name} from the Hub, about 100 MB, the first time only")
            try:
                with full_disk():
                    folder = fetch_checkpoint(entry.name, local_files_only=self.hub_problem() is not None)
            except (OSError, ValueError) as error:
                raise Refused(
                    f"{entry.name} could not be loaded from the Hub. Please try again later, or choose the demo model."
                ) from error
            return load_folder(folder, entry.name, self.describe(name)["note"])
        report(0, "Downloading the model from the Hub")
        with tempfile.TemporaryDirectory() as folder:  # what visitors name leaves nothing on the disk
            download(name, Path(folder))
            return load_folder(Path(folder), name)


class HubProbe:
    """Asks the Hub in the background whether it is there; and while it is not, `again` after so many seconds."""

    def __init__(self, timeout: float = 3.0, again: float = 300.0):
        self.timeout, self.again, self.found, self._lock = timeout, again, "no answer", threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.began = time.monotonic()
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()

    def _ask(self) -> None:
        try:
            HfApi(token=False).model_info(CATALOG[0].upstream_repo, timeout=self.timeout)
            self.found = None
        except Exception as error:  # of any kind: it is told
            self.found = type(error).__name__

    def problem(self) -> str | None:
        with self._lock:
            if self.found and not self._asking.is_alive() and time.monotonic() > self.began + self.again:
                self._begin()
        # no longer than the time-out: the resolver that turns names into addresses knows none
        self._asking.join(max(0, self.began + self.timeout - time.monotonic()))
        return self.found


def published(name: str):
    """The catalogue's entry of exactly this name, or None."""
    return find_entry(name) if name in {entry.name for entry in CATALOG} else None


def folder_name(path: Path) -> str:
    """What a folder is called on the page: its last part that says something, outputs/xl/model is "xl"."""
    parts = path.absolute().parts if path.exists() else path.parts
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def find_given(source: str) -> Path:
    """The folder of a model that the owner named: a folder, a published name, or a Hub id (with the owner's token)."""
    if Path(source).is_dir():
        return Path(source)
    try:
        if published(source):
            return fetch_checkpoint(source)
        if HUB_ID.fullmatch(source):
            patterns = [*CONFIG_FILES, "model*.safetensors", "model.safetensors.index.json"]
            return Path(HfApi().snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise Refused(mask_tokens(f"{source} could not be loaded from the Hub: {error}")) from error
    raise Refused(f"{source} is neither a folder nor a published model nor a Hub id (ORG/NAME)")
