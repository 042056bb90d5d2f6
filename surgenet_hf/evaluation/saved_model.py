"""Evaluation of saved models, and a check that a saved model gives the same predictions as before saving."""

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
from ..inference.embeddings import model_label
from ..inference.prediction import predict_segmentation
from ..inference.predictors import Predictor
from ..inference.selection import BATCHES, Runtimes
from ..inference.settings import AUTO, RuntimeArguments, Setting, check_arguments
from ..models import load_config, load_model, resolve_model
from ..tasks import TASKS, find_task
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
    runtime: RuntimeArguments | None = None,
) -> dict:
    """Load a fine-tuned model, evaluate it, and write results.json and figures. All processes must call it.

    Args:
        model_name_or_path: folder of the model, output folder of its training, or repository on the Hub.
        data: dataset of the model's task.
        split: split to evaluate on. Default: test if the dataset has it, otherwise validation.
        batch_size: number of frames per forward pass.
        output_dir: output folder. None writes no files.
        command: command line, recorded in results.json.
        runtime: runtime and precision. The default is float32 in PyTorch.

    Returns:
        The results, as in results.json.

    Raises:
        UserError: the model does not exist, has no trained head, or does not fit the data, the output folder cannot
            be written to, or the machine does not support the runtime and precision.
    """
    if batch_size < 1:
        raise UserError(f"--per_device_eval_batch_size must be at least 1 frame, got {batch_size}")
    arguments = runtime or RuntimeArguments()
    if arguments.precision == AUTO:
        raise UserError(
            "--precision auto is not for evaluations, because a reported number needs a fixed setting, and auto "
            "depends on the machine; choose a --precision, for example the one that predict chose"
        )
    check_arguments(arguments)
    source = resolve_model(model_name_or_path)
    config = load_config(source)
    found = find_task(config)
    if found is None:
        architecture = (config.architectures or ["unknown model"])[0]
        raise UserError(
            f"{source} contains a {architecture}, which has no trained head to evaluate; expected a model for "
            f"{', '.join(TASKS)}. Fine-tune it first"
        )
    name, auto_class = found
    if (name == "semantic-segmentation") != (data.task == "semantic-segmentation"):
        raise UserError(
            f"{source} is a model for {name}, but {data.name} is a dataset for {data.task}; choose a dataset for "
            f"{name}"
        )
    if split is None:
        split = data.evaluation_split
        if split != "test":
            logger.info(f"{data.name} has no test split: evaluating on {split}.")
    if output_dir is not None:
        check_output_dir(output_dir)  # fail before the evaluation, which can take hours
    model = load_model(auto_class, source, lambda model: model.state_dict(), dtype=torch.float32)
    model.to(process_state().device)
    processor = load_image_processor(source)
    predictor = Predictor(name, model, processor, model_label(model_name_or_path))
    runtimes = Runtimes(predictor, arguments, batch_size)
    rows = data.split(split)
    first = range(min(BATCHES * batch_size, len(rows))) if runtimes.needs_frames else ()
    runtimes.apply(arguments.setting, [rows[i]["image"] for i in first])
    seed, training = recorded_training(source)
    evaluation = evaluate(
        predictor.model, processor, data, split, batch_size, seed, command=command, training=training
    )
    if arguments.setting != Setting():
        evaluation.results["inference"] = vars(arguments.setting) | (
            {"calibration_frames": runtimes.calibration_frames} if arguments.precision == "int8" else {}
        )
    model = predictor.model
    if output_dir is not None and is_main_process():
        write_figures(evaluation, model, processor, data, split, output_dir)
        write_results(evaluation.results, Path(output_dir, "results.json"))
    return evaluation.results


def check_saved_model(path: str | os.PathLike, rows: list[dict], class_maps: list[np.ndarray], device="cpu") -> float:
    """Load a saved segmentation model with the Auto classes and as a pipeline, and compare its predictions.

    Args:
        path: folder with the model and image processor.
        rows: rows that `predict_segmentation` yielded before saving.
        class_maps: class maps that `predict_segmentation` yielded before saving.
        device: device for the predictions.

    Returns:
        The minimum share of pixels that agree, over the frames and both ways of loading.

    Raises:
        RuntimeError: less than 99.9 % of the pixels agree. The limit is below 100 %, because another batch size can
            round differently at a tie.
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
            f"The model loaded from {path} agrees with the trained model on only {agreement:.2%} of the pixels of a "
            "frame: the saved files differ from the trained model."
        )
    return float(agreement)


def recorded_training(model_dir: str | os.PathLike) -> tuple[int | None, dict | None]:
    """Return seed and `training` of a model from the results.json next to its folder. None stands for unknown."""
    path = Path(model_dir).parent / "results.json"
    recorded = read_results_file(path) if path.is_file() else {}
    return recorded.get("seed"), recorded.get("training")
