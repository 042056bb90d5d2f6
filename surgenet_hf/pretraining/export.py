"""Export of the teacher as a model folder, again after every epoch."""

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
from ..modeling_surgenet import SurgeNetModel

WEIGHTS = "model.safetensors"


def export_teacher(
    backbone: SurgeNetModel,
    folder: str | os.PathLike,
    pretraining: dict,
    processor: SegformerImageProcessor,
    recipe: dict | None = None,
    knn: dict | None = None,
    write_card: Callable[[Path], str] | None = None,
) -> None:
    """Write backbone, image processor, and card to a folder, which may exist and which others may be reading.

    Each file is replaced as a whole. Between two replacements the folder holds files of two epochs, and still loads:
    only the weights and their description change, never names or shapes. The weights are replaced last, so a folder
    with weights is complete. In a run of several processes, one of them calls this.

    Args:
        backbone: backbone of the teacher. Its config gets `pretraining`.
        pretraining: see `plan.describe_pretraining`.
        processor: the image processor.
        recipe: settings of the training, for the card.
        knn: k-NN metrics and their dataset, for the card.
        write_card: returns the card of a model folder. None: no card is written.

    Raises:
        UserError: the weights are not finite.
        UnavailableError: the files cannot be written. Those that could not be replaced are unchanged.
    """
    check_finite(backbone.state_dict(), "the teacher")
    folder = Path(folder)
    card = {"recipe": recipe, "knn": knn}  # kept in the config: a card is written again when the model is published
    backbone.config.pretraining = pretraining | {key: value for key, value in card.items() if value}
    # beside the folder: on the same file system, and a run that was killed leaves one at most
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
    """Hide the progress bar of `save_pretrained`, which would break that of the run."""
    enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bar()
