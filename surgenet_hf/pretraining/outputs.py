"""Outputs of a pretraining run in addition to its checkpoints: k-NN metrics, curves, and the teacher as a model."""

from collections.abc import Callable
from pathlib import Path

from ..evaluation.probes import knn_accuracy
from ..figures import save_figure
from ..figures.pretraining import pretraining_figure
from ..image_processing import build_image_processor
from .dino.method import Backbone
from .export import export_teacher
from .history import History
from .plan import Plan
from .start import Start

KNN_FRAMES = 5000  # maximum per split; more frames hardly change the metrics, but take minutes per epoch


class Outputs:
    """Writer of `history.jsonl`, `model`, `best_model`, and `pretraining.png`.

    Args:
        output_dir: folder of the run.
        plan, start: plan and initial state of the run.
        image_size: image size of the image processor.
        knn_dataset, knn_data: name and data of the labeled dataset for the k-NN metrics, or None.
        write: whether this process writes files. Exactly one process does.
        write_card: function that writes the card of a model folder, see `export_teacher`.
    """

    def __init__(
        self,
        output_dir: Path,
        plan: Plan,
        start: Start,
        image_size: int,
        knn_dataset: str | None = None,
        knn_data=None,
        write: bool = True,
        write_card: Callable[[Path], str] | None = None,
    ):
        self.output_dir, self.plan, self.start = output_dir, plan, start
        self.processor = build_image_processor(start.normalization, image_size)
        self.knn_dataset, self.knn_data = knn_dataset, knn_data
        self.write, self.write_card = write, write_card
        self.history = History(output_dir, start.step, write)

    def finish_epoch(self, teacher: Backbone, step: int) -> dict[str, float]:
        """Measure k-NN metrics, write the teacher as a model folder, and draw the curves.

        All processes must call this function. `best_model` is the teacher with the best k-NN metric so far. It can be
        better than the last teacher, because long training on a small dataset can make the features worse.

        Args:
            teacher: backbone of the teacher.
            step: number of completed steps. With 0, only the k-NN metrics of the start weights are measured.

        Returns:
            The k-NN metrics, or an empty dict without a labeled dataset.
        """
        metrics = {}
        if self.knn_data is not None:
            metrics = knn_accuracy(teacher, self.processor, self.knn_data, max_frames=KNN_FRAMES)
            self.history.add({"step": step, "epoch": self.plan.epochs_after(step), **metrics})
        if self.write and step:
            for name in ["model", "best_model"] if self._is_best(metrics) else ["model"]:
                self._export(teacher, self.output_dir / name, step, metrics)
            if self.history.entries:  # empty if a finished run in another folder was resumed
                figure = pretraining_figure(self.history.entries, self.output_dir.name)
                save_figure(figure, self.output_dir / "pretraining.png", dpi=120)
        return metrics

    def pretraining(self, step: int) -> dict:
        """Return `config.pretraining` of the teacher after a number of steps."""
        return self.plan.describe_pretraining(self.start.pretraining, step, self.start.normalization)

    def _export(self, teacher: Backbone, folder: Path, step: int, metrics: dict[str, float]) -> None:
        recipe = {"total_batch_size": self.plan.total_batch_size, **self.plan.options}
        knn = {"dataset": self.knn_dataset, **metrics} if metrics else None
        export_teacher(teacher, folder, self.pretraining(step), self.processor, recipe, knn, self.write_card)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Return whether the k-NN metrics are the best in the history, which already contains them."""
        if not metrics:
            return False
        (name,) = (name for name in metrics if name != "knn_chance")
        return metrics[name] >= max(entry[name] for entry in self.history.entries if name in entry)
