"""Models of the demo: published models, Hub models by id, the owner's models, and small local models."""

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from demo import DEMO, TRAINED, DemoTraining, demo_folder, untrained
from folders import (
    CONFIG_FILES,
    HUB_ID,
    PUBLISHED,
    Loaded,
    download,
    load_folder,
    load_given,
    load_vit,
    read_config,
    summary,
)
from huggingface_hub import HfApi
from media import Refused, full_disk

from surgenet_hf import fetch_checkpoint
from surgenet_hf.checkpoints.catalog import CATALOG, CatalogEntry
from surgenet_hf.models import model_folder
from surgenet_hf.privacy import mask_tokens


class ModelStore:
    """Cache that loads models and keeps the most recently used ones in memory.

    Args:
        given: folders, Hub ids, or published names of the owner's models. Each is loaded once at the start, so that
            the owner sees its errors, not the first visitor.
        capacity: number of models in memory.

    Raises:
        Refused: one of the `given` models cannot be used.
    """

    def __init__(self, given: list[str] = (), capacity: int = 4):
        self.capacity = capacity
        self._ready: OrderedDict[str, Loaded] = OrderedDict()
        self._lock, self._loading, self._starting = threading.Lock(), threading.Lock(), threading.Lock()
        self._training: DemoTraining | None = None
        self._given: dict[str, tuple[Path, tuple[str, ...], dict]] = {}
        for source in given:
            folder = find_given(source)
            name = folder_name(Path(source))
            while name in self._given or name in DEMO:
                name += "*"
            loaded = load_given(folder, name)
            about = summary(name, loaded.tasks[0], loaded.model.config) | {"tasks": list(loaded.tasks)}
            self._given[name] = folder, loaded.tasks, about
        self._hub = HubProbe()

    @property
    def given(self) -> bool:
        """Return whether the owner provided models."""
        return bool(self._given)

    def hub_problem(self) -> str | None:
        """Return the reason why the Hub cannot be reached, or None if it can."""
        return self._hub.problem()

    def choices(self, *tasks: str, wait: bool = True) -> list[tuple[str, str]]:
        """Return (text in the list, name) of the models for any of these tasks, the default model first.

        The owner's models come first. The published models precede the small local ones only if the Hub can be
        reached.

        Args:
            tasks: keys of `CLASSES`.
            wait: whether to wait for the result of the Hub check. Without waiting, the small local models come before
                the published ones.
        """
        given = [(name, name) for name, (_, can, _) in self._given.items() if set(tasks) & set(can)]
        demo = [(text, name) for name, (text, can, _) in DEMO.items() if set(tasks) & set(can)]
        published = [(entry.name, entry.name) for entry in PUBLISHED] if "features" in tasks else []
        return given + (demo + published if not wait or self.hub_problem() else published + demo)

    def get(self, name: str, tasks: tuple[str, ...], report: Callable[[float, str], None]) -> Loaded:
        """Return the model with this name, loaded if necessary.

        Args:
            name: name of the model, or Hub id.
            tasks: tasks of which the model must support at least one.
            report: function (share, text) that receives the progress.

        Raises:
            Refused: the model does not exist, is for other tasks, or cannot be loaded.
        """
        name = name.strip()
        self._check_tasks(name, self._known_tasks(name), tasks)
        if name == TRAINED:
            self.wait_for_training(report)
        loaded = self._cached(name)
        if loaded is None:
            report(0, "Loading the model")
            with self._loading:  # one model at a time; another thread may have loaded it in the meantime
                loaded = self._cached(name) or self._load(name, report)
                with self._lock:
                    self._ready[name] = loaded
                    while len(self._ready) > self.capacity:
                        self._ready.popitem(last=False)
        self._check_tasks(name, loaded.tasks, tasks)
        return loaded

    def describe(self, name: str) -> dict:
        """Describe a model without loading it. For a model on the Hub, only its configuration is downloaded.

        Raises:
            Refused: the model does not exist or is not valid.
        """
        if name in DEMO:
            text, tasks, note = DEMO[name]
            return {"name": text, "tasks": list(tasks), "pretraining": None, "labels": [], "note": note}
        if name in self._given:
            return self._given[name][2]
        if entry := published(name):
            frames, backbone = f"{entry.pretraining_frames:,}", entry.backbone
            note = f"{entry.name}: a backbone ({backbone}), pretrained without labels on {frames} frames."
            return {
                "name": entry.name,
                "tasks": ["features"],
                "pretraining": entry.name,
                "labels": [],
                "note": note,
                "license": entry.license,
            }
        with tempfile.TemporaryDirectory() as folder:
            download(name, Path(folder), weights=False)
            return summary(name, *read_config(Path(folder), name))

    def start_training(self) -> "DemoTraining":
        """Start the training of the demo model, unless it is running or done."""
        with self._starting:
            if self._training is None or (self._training.error and not self._training.is_alive()):
                self._training = DemoTraining()
                self._training.start()
            return self._training

    def wait_for_training(self, report: Callable[[float, str], None]) -> None:
        """Wait for the training of the demo model, which is started if necessary.

        Args:
            report: function (share, text) that receives the progress.

        Raises:
            Refused: the training failed.
        """
        if (demo_folder() / "config.json").exists():
            return
        training = self.start_training()
        while training.is_alive():
            report(
                training.share, "Training a small model on synthetic scenes (about half a minute, only the first time)"
            )
            training.join(0.3)
        if training.error:
            raise Refused("The demo model could not be trained. Please choose another model.") from training.error

    def _known_tasks(self, name: str) -> tuple[str, ...] | None:
        """Return the tasks of a model, or None if they are unknown before loading."""
        if name in DEMO:
            return DEMO[name][1]
        if name in self._given:
            return self._given[name][1]
        return ("features",) if published(name) else None

    @staticmethod
    def _check_tasks(name: str, can: tuple[str, ...] | None, wanted: tuple[str, ...]) -> None:
        if can is not None and not set(wanted) & set(can):
            raise Refused(
                f"{name} is a model for {' and '.join(can)}, not for {' or '.join(wanted)}. Please choose another "
                "model from the list, or type the Hub id of a model that was fine-tuned for this task."
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
            return load_given(self._given[name][0], name)
        if entry := published(name):
            megabytes = round((entry.elements or 25e6) * 4 / 1e6, -1)  # float32
            report(0, f"Downloading {entry.name} from the Hub (about {megabytes:.0f} MB, only the first time)")
            try:
                with full_disk():
                    folder = fetch_checkpoint(entry.name, local_files_only=self.hub_problem() is not None)
                    if entry.is_vit:
                        return load_vit(folder, entry.name, self.describe(name)["note"])
            except (OSError, ValueError) as error:
                raise Refused(
                    f"{entry.name} could not be loaded from the Hub. Please try again later, or choose the demo model."
                ) from error
            return load_folder(folder, entry.name, self.describe(name)["note"])
        report(0, "Downloading the model from the Hub")
        with tempfile.TemporaryDirectory() as folder:  # visitors' models are not kept on the disk
            download(name, Path(folder))
            return load_folder(Path(folder), name)


class HubProbe:
    """Background check of whether the Hub can be reached.

    Args:
        timeout: maximum duration of a check, in seconds.
        again: time in seconds after which a failed check is repeated.
    """

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
        except Exception as error:  # any kind of error is reported
            self.found = type(error).__name__

    def problem(self) -> str | None:
        """Return the reason why the Hub cannot be reached, or None if it can. This waits for a running check."""
        with self._lock:
            if self.found and not self._asking.is_alive() and time.monotonic() > self.began + self.again:
                self._begin()
        # limited here, because DNS lookups have no timeout
        self._asking.join(max(0, self.began + self.timeout - time.monotonic()))
        return self.found


def published(name: str, entries: tuple[CatalogEntry, ...] = PUBLISHED) -> CatalogEntry | None:
    """Return the catalog entry with exactly this name, or None."""
    return next((entry for entry in entries if entry.name == name), None)


def folder_name(path: Path) -> str:
    """Return the name of a folder on the page, its last informative part. For example, outputs/xl/model is "xl"."""
    parts = path.absolute().parts if path.exists() else path.parts
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def find_given(source: str) -> Path:
    """Return the folder of a model of the owner.

    Args:
        source: folder, published name, or Hub id. A Hub model is downloaded with the owner's token.

    Raises:
        Refused: the model does not exist or cannot be downloaded.
    """
    if Path(source).is_dir():
        return model_folder(Path(source))
    try:
        if published(source, CATALOG):  # also those that are too large for the lists
            return fetch_checkpoint(source)
        if HUB_ID.fullmatch(source):
            patterns = [*CONFIG_FILES, "model*.safetensors", "model.safetensors.index.json"]
            return Path(HfApi().snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise Refused(mask_tokens(f"{source} could not be loaded from the Hub: {error}")) from error
    raise Refused(f"{source} is neither a folder nor a published model nor a Hub id (ORG/NAME)")
