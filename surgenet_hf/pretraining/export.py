"""Export of the teacher as a model folder, after every epoch."""

import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from transformers import SegformerImageProcessor
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from ..atomic import sync_folder
from ..checkpoints.reading import check_finite
from ..errors import UnavailableError
from .dino.method import Backbone

WEIGHTS = "model.safetensors"


def export_teacher(
    backbone: Backbone,
    folder: str | os.PathLike,
    pretraining: dict,
    processor: SegformerImageProcessor,
    recipe: dict | None = None,
    knn: dict | None = None,
    write_card: Callable[[Path], str] | None = None,
) -> None:
    """Write backbone, image processor, and card to a folder.

    The folder may exist, and other processes may read it. Each file is replaced atomically. During the replacement,
    the folder contains files of two epochs, and still loads. Only the weights and their description change, not the
    names or shapes of parameters. The weights are replaced last, so a folder with weights is complete. Only one of
    several processes may call this function.

    Args:
        backbone: backbone of the teacher. Its `config.pretraining` is set to `pretraining`, recipe, and k-NN metrics.
        folder: the model folder.
        pretraining: see `plan.describe_pretraining`.
        processor: the image processor.
        recipe: settings of the training, for the card.
        knn: k-NN metrics and their dataset, for the card.
        write_card: function that returns the card of a model folder. None: no card is written.

    Raises:
        UserError: the weights are not finite.
        UnavailableError: the files cannot be written. Files that could not be replaced are unchanged.
    """
    check_finite(backbone.state_dict(), "the teacher")
    folder = Path(folder)
    card = {"recipe": recipe, "knn": knn}  # stored in the config, because publishing the model writes the card again
    backbone.config.pretraining = pretraining | {key: value for key, value in card.items() if value}
    # Next to the folder, so that both are on the same file system. A killed run leaves at most one such folder.
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = temporary / folder.name  # the card contains this name
        with _no_progress_bar():
            backbone.save_pretrained(written)
        processor.save_pretrained(written)
        if write_card is not None:
            (written / "README.md").write_text(write_card(written), encoding="utf-8")
        sync_folder(written)
        for path in sorted(written.iterdir(), key=lambda path: path.name == WEIGHTS):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise UnavailableError(
            f"{folder} could not be written ({error}): free some space and resume the run"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _no_progress_bar():
    """Hide the progress bar of `save_pretrained`, which would disrupt that of the run."""
    enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bar()
