"""What a run leaves beside its checkpoints: k-NN figures, curves, the teacher as a model, the original's format."""

from typing import TYPE_CHECKING

from ..data import CLASSIFICATION, SEGMENTATION, load_classification, load_segmentation
from ..evaluation.probes import knn_accuracy
from ..figures import save_figure
from ..figures.pretraining import pretraining_figure
from ..image_processing import build_image_processor
from ..publishing.upload import push_model
from .export import export_teacher
from .original import save_dino_checkpoint

if TYPE_CHECKING:
    from .run import Pretraining

KNN_FRAMES = 5000  # of each split at most: more change the figure little and cost minutes an epoch


def load_knn_data(name: str | None, data_dir: str | None):
    """The labelled data set that k-NN is measured on, or None.

    Raises:
        FileNotFoundError, ValueError: no such data set, or it is not as it should be.
    """
    if name is None:
        return None
    if name not in {**CLASSIFICATION, **SEGMENTATION}:
        raise ValueError(f"--knn_dataset {name}: expected one of {', '.join([*CLASSIFICATION, *SEGMENTATION])}")
    return (load_classification if name in CLASSIFICATION else load_segmentation)(name, data_dir)


def finish_epoch(run: "Pretraining", done: int) -> None:
    """k-NN of the teacher on the labelled set, the teacher as a model folder, and the curves; all processes call it.

    `best_model` is the teacher that k-NN liked best so far: on small sets, long training can make features worse.

    Args:
        done: number of steps done; 0 gives the figures of the start weights.
    """
    teacher, epochs, found = run.model.teacher.backbone, run.epochs(done), {}
    processor = build_image_processor(run.start.statistics, run.crop_config.global_crops_size)
    if run.knn_data is not None and (epochs % run.args.knn_epochs == 0 or done == run.last_step):
        with run.accelerator.autocast():
            found = knn_accuracy(teacher, processor, run.knn_data, max_frames=KNN_FRAMES)
        run.history.add({"step": done, "epoch": epochs, **found})
        run.accelerator.log(found, step=done)
        if run.is_main:
            run.progress.write(f"epoch {epochs}: " + ", ".join(f"{k} {value:.3f}" for k, value in found.items()))
    if run.is_main and done:
        figures = {"data set": run.args.knn_dataset, **found} if found else None
        for folder in ["model", "best_model"] if found and _is_best(run.history.entries, found) else ["model"]:
            export_teacher(teacher, run.output_dir / folder, run.provenance(done), processor, run.recipe(), figures)
        if run.history.entries:  # else a finished run of another folder
            figure = pretraining_figure(run.history.entries, run.output_dir.name)
            save_figure(figure, run.output_dir / "pretraining.png", dpi=120)


def _is_best(entries: list[dict], found: dict[str, float]) -> bool:
    """Whether the k-NN figure just found is the best of the history, which holds it already."""
    (name,) = (name for name in found if name != "knn_chance")
    return found[name] >= max(entry[name] for entry in entries if name in entry)


def finish_run(run: "Pretraining") -> None:
    """The original's format and the upload, where they are asked for."""
    args = run.args
    if not run.is_main:
        return
    print(f"The teacher is in {run.output_dir / 'model'}")
    if args.export_dino_checkpoint:
        done = max(run.last_step, run.start.step)  # --max_steps may lie behind
        epoch = done // run.steps_per_epoch
        path = run.output_dir / f"checkpoint{epoch:04}.pth"
        optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
        save_dino_checkpoint(path, run.model, optimizer, epoch, run.options, run.provenance(done))
        print(f"In the original's format: {path}")
    if args.push_to_hub:
        model, name = run.output_dir / "model", run.output_dir.name
        repo_id = push_model(model, args.hub_model_id, args.hub_private_repo, name)
        print(f"Published {repo_id}")
