"""The teacher of a running pretraining as a model that anyone can load, again after every epoch."""

import os
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import SegformerImageProcessor
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from ..atomic import sync_folder
from ..checkpoints.catalog import RANDOM_WEIGHTS, pretraining_name
from ..checkpoints.reading import check_finite
from ..modeling_surgenet import SurgeNetModel
from ..publishing.cards import pretrained_card

FILES = ("config.json", "preprocessor_config.json", "README.md", "model.safetensors")  # in the order of replacement


def describe_pretraining(
    base: dict | None, data: Sequence[str], epoch: int, frames: int, statistics: str = "surgenet"
) -> dict:
    """`config.pretraining` of a teacher: what it stands on stays known, and what it saw is added.

    Args:
        base: the same of the start weights, `{"name": RANDOM_WEIGHTS}` of random ones; None: unknown.
        data: names of the data sets.
        epoch: number of epochs done.
        frames: how many frames there are; of streams, in an epoch.
        statistics: of the images, "surgenet" or "imagenet".

    Returns:
        `name`, which tells base and data (`checkpoints.catalog.leakage_note` reads it), `method`, `base` (None of
        random weights), `data`, `epoch`, `frames` and `statistics`.

    Raises:
        ValueError: no data set.
    """
    if not data:
        raise ValueError("the name of at least one data set is needed: what the weights have seen must be known")
    base = {"name": "unknown"} | (base or {})
    return {
        "name": pretraining_name(base["name"], data),
        "method": "DINO",
        "base": None if base["name"] == RANDOM_WEIGHTS else base,
        "data": list(data),
        "epoch": epoch,
        "frames": frames,
        "normalization": statistics,
    }


def export_teacher(
    backbone: SurgeNetModel,
    folder: str | os.PathLike,
    pretraining: dict,
    processor: SegformerImageProcessor,
    recipe: dict | None = None,
    knn: dict | None = None,
) -> None:
    """Write backbone, image processor and card to a folder that others may be reading, and that may exist.

    Each file is replaced as a whole. Between two replacements the folder mixes the files of two epochs, which loads
    all the same: only the weights and what is said of them change, never names or shapes. The weights are
    replaced last, so a folder that holds weights is complete. In a run of several processes one of them calls this.

    Args:
        backbone: the teacher's; its config gets `pretraining`.
        pretraining: of `describe_pretraining`.
        processor: the image processor that goes with it.
        recipe: settings of the training, for the card.
        knn: what k-NN gave and on which data, for the card.

    Raises:
        ValueError: the weights are not finite.
        OSError: the files cannot be written; what could not be replaced is as before.
    """
    check_finite(backbone.state_dict(), "the teacher")
    folder = Path(folder)
    card = {"recipe": recipe, "knn": knn}  # kept in the config: a card is written again when the model is published
    backbone.config.pretraining = pretraining | {key: value for key, value in card.items() if value}
    folder.mkdir(parents=True, exist_ok=True)
    # beside the folder: on the same file system, and a run that was killed leaves one at most
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        written = temporary / folder.name  # which the card calls it by
        with _no_progress_bar():
            backbone.save_pretrained(written)
        processor.save_pretrained(written)
        (written / "README.md").write_text(pretrained_card(written), encoding="utf-8")
        sync_folder(written)
        for name in FILES:
            os.replace(written / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _no_progress_bar():
    """Without the bar of `save_pretrained`, which would tear that of the run."""
    enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bar()
