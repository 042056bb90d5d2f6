"""Evaluation of saved models: by name or folder, and a check that a saved model predicts as it did before saving."""

import logging
import os
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from ..checkpointing import check_output_dir
from ..data import SurgicalData
from ..distributed import is_main_process, process_state
from ..errors import UserError
from ..image_processing import load_image_processor
from ..inference.prediction import predict_segmentation
from ..models import load_config, load_model, resolve_model
from ..tasks import TASKS
from .evaluate import evaluate, write_results
from .reporting import write_figures
from .results import read_results_file

logger = logging.getLogger(__name__)


def evaluate_model(
    model_name_or_path: str,
    data: SurgicalData,
    split: str | None = None,
    batch_size: int = 8,
    output_dir: str | os.PathLike | None = None,
    command: str | None = None,
) -> dict:
    """Load a fine-tuned model, evaluate it, and write results.json and figures. All processes must call it.

    Args:
        model_name_or_path: folder of the model, output folder of its training, or repository on the Hub.
        data: dataset of the model's task.
        split: split to evaluate on. None: test if the dataset has one, otherwise validation.
        batch_size: number of frames per forward pass.
        output_dir: folder to write to. None: nothing is written.
        command: command line, recorded in results.json.

    Returns:
        The results, as in results.json.

    Raises:
        UserError: there is no such model, it has no trained head, or it does not fit the data; or the output folder
            cannot be written to.
    """
    if batch_size < 1:
        raise UserError(f"--per_device_eval_batch_size must be at least 1 frame, got {batch_size}")
    source = resolve_model(model_name_or_path)
    architecture = (load_config(source).architectures or ["unknown model"])[0]
    tasks = {task.architecture: (name, task) for name, task in TASKS.items()}
    if architecture not in tasks:
        raise UserError(
            f"{source} holds a {architecture}, which has no trained head to evaluate; expected one of "
            f"{', '.join(tasks)}. Fine-tune it first"
        )
    name, task = tasks[architecture]
    if (name == "semantic-segmentation") != (data.task == "semantic-segmentation"):
        raise UserError(f"{source} is a model for {name}, {data.name} is a dataset for {data.task}")
    if split is None:
        split = data.evaluation_split
        if split != "test":
            logger.info(f"{data.name} has no test split: evaluating on {split}.")
    if output_dir is not None:
        check_output_dir(output_dir)  # before the evaluation, which can take hours
    model = load_model(task.auto_class, source, dtype=torch.float32).to(process_state().device)
    processor = load_image_processor(source)
    evaluation = evaluate(model, processor, data, split, batch_size, recorded_seed(source), command=command)
    if output_dir is not None and is_main_process():
        write_figures(evaluation, model, processor, data, split, output_dir)
        write_results(evaluation.results, Path(output_dir, "results.json"))
    return evaluation.results


def check_saved_model(path: str | os.PathLike, rows: list[dict], class_maps: list[np.ndarray], device="cpu") -> float:
    """Load a saved segmentation model back, by the Auto classes and as a pipeline, and compare its predictions.

    Args:
        path: folder with model and image processor.
        rows, class_maps: what `predict_segmentation` yielded for the model that was saved.

    Returns:
        the smallest share of pixels that agree, over the frames and both ways of loading.

    Raises:
        RuntimeError: less than 99.9 % agree (not all: another batch size can round differently at a tie).
    """
    model = AutoModelForSemanticSegmentation.from_pretrained(path).to(device)
    reloaded = [found for _, found in predict_segmentation(model, AutoImageProcessor.from_pretrained(path), rows)]
    segment = pipeline("image-segmentation", model=str(path), device=device)
    agreement = 1.0
    for row, expected, found in zip(rows, class_maps, reloaded, strict=True):
        piped = np.full_like(expected, 255)
        for part in segment(row["image"]):
            piped[np.asarray(part["mask"]) > 0] = model.config.label2id[part["label"]]
        agreement = min(agreement, (found == expected).mean(), (piped == expected).mean())
    if agreement < 0.999:
        raise RuntimeError(
            f"The model saved in {path} and loaded back agrees with the trained one on only {agreement:.2%} "
            "of a frame's pixels: the files are not what was trained."
        )
    return float(agreement)


def recorded_seed(model_dir: str | os.PathLike) -> int | None:
    """Return the seed of a model's training, recorded in the results.json next to its folder; None if unknown."""
    path = Path(model_dir).parent / "results.json"
    return read_results_file(path).get("seed") if path.is_file() else None
