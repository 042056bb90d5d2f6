"""Steps that the fine-tuning runs of all tasks share: load the data, build the model, evaluate, and save."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, Trainer, TrainingArguments

from ..checkpointing import RECORD, RESUME, compare_records, list_checkpoints, lock_run, resume_point
from ..configuration_surgenet import SurgeNetConfig
from ..data import DATASETS, SurgicalData, load_data
from ..data.fraction import take_fraction
from ..data.identity import data_identity
from ..distributed import wait_for_everyone
from ..errors import UserError
from ..evaluation.evaluate import evaluate, training_record, write_results
from ..evaluation.reporting import write_figures
from ..evaluation.results import FINE_TUNING, FROZEN, read_results_file
from ..models import is_surgenet, resolve_model
from ..tasks import TASKS
from .arguments import ModelArguments, TrainDataArguments, recorded_options
from .trainer import NEW, freeze_backbone, trained_model

logger = logging.getLogger(__name__)


@contextmanager
def output_folder(training_args: TrainingArguments, on_start: Callable[[], None] | None) -> Iterator[None]:
    """Lock the output folder of a run during the context.

    Args:
        training_args: arguments with the output folder.
        on_start: function that the main process calls once the run owns its folder, or None.
    """
    is_main = training_args.process_index == 0
    with lock_run(training_args.output_dir, is_main):
        if on_start is not None and is_main:
            on_start()
        yield


def load_training_data(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    training_args: TrainingArguments,
    tasks: tuple[str, ...],
    data: SurgicalData | None = None,
) -> SurgicalData:
    """Load a dataset, log its notes, and keep the requested fraction of the training videos.

    Args:
        model_args: arguments with the split of the reported metrics.
        data_args: name and folder of the dataset, and the fraction of its training videos.
        training_args: `eval_strategy` determines whether validation videos are needed. `data_seed`, or else `seed`,
            draws the training videos.
        tasks: names of the tasks whose datasets are accepted.
        data: the dataset itself, instead of its name and folder.

    Raises:
        UserError: the dataset is for another task, has no split for the reported metrics, or has no validation videos
            to select the checkpoint. Also raised if the output folder contains an earlier run.
    """
    resume_point(Path(training_args.output_dir), training_args.resume_from_checkpoint)
    known = data or DATASETS.get(data_args.dataset)
    if known is not None and known.task not in tasks:
        raise UserError(f"{data_args.dataset} is a dataset for {known.task}: use surgenet {TASKS[known.task].command}")
    if data is None:
        data = load_data(data_args.dataset, data_args.data_dir, **data_args.options())
    for note in data.notes:
        logger.info(note)
    if model_args.eval_split is not None:
        data.split(model_args.eval_split)
    if "validation" not in data.splits and training_args.eval_strategy != "no":
        raise UserError(
            f"{data.name} has no validation videos in the split protocol {data.split_protocol}, so no "
            "checkpoint can be selected. Choose a --split_protocol with validation videos (for Cholec80: 32/8/40 or "
            "40/8/32; for SAR-RARP50: 27/13/10), or keep the last checkpoint with --eval_strategy no "
            "--load_best_model_at_end false"
        )
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed  # as in Trainer
    return take_fraction(data, data_args.train_fraction, seed)


def prepare(build_model: Callable, model_args: ModelArguments, data: SurgicalData) -> tuple[Any, Any]:
    """Build the model and the image processor of a run with one stage.

    Args:
        build_model: function of the module of the task.
        model_args: arguments with the model to start from.
        data: dataset that determines the classes.

    Returns:
        (model, image processor).

    Raises:
        UserError: the model does not exist or is not suitable.
    """
    model, processor = build_model(start_model(model_args), data, model_args.image_size)
    model_args.image_size = processor.size["height"]
    if model_args.layer_decay < 1 and not is_surgenet(model.config):
        raise UserError(f"--layer_decay is for SurgeNet backbones, not for {model.config.model_type}; omit it")
    if model_args.freeze_backbone:
        freeze_backbone(model)
    return model, processor


def start_model(args: ModelArguments) -> str | PreTrainedConfig:
    """Return the model to start from, see `resolve_model`.

    Full-size networks with random weights are trained with drop path.
    """
    source = resolve_model(args.model_name_or_path, args.backbone)
    if isinstance(source, SurgeNetConfig) and args.backbone != "tiny":
        source.drop_path_rate = 0.1
    return source


def run_record(model, data: SurgicalData, training_args: TrainingArguments, *others, **facts) -> dict:
    """Return {name: value} of model, data, and options, which a resumed run must have in common.

    Args:
        model: model before training.
        data: dataset that it is trained on.
        training_args: the training arguments.
        others: argument dataclasses of the task.
        facts: additional values.
    """
    config: PreTrainedConfig = model.config
    values = {k: v for k, v in config.to_diff_dict().items() if k not in ("transformers_version", "_name_or_path")}
    return {
        **recorded_options(training_args, *others),
        **{f"data.{split}": identity for split, identity in data_identity(data).items()},
        **{f"model.{name}": value for name, value in values.items()},
        **facts,
    }


def evaluate_and_save(
    trainer: Trainer,
    processor,
    data: SurgicalData,
    split: str | None,
    output_dir: str | None = None,
    command: str | None = None,
    is_frozen: bool = False,
) -> dict | None:
    """Save the model, evaluate it, and write model/, results.json, and figures. All processes must call this function.

    Args:
        trainer: Trainer after training.
        processor: image processor of the model.
        data: dataset to evaluate on.
        split: split to evaluate on. None: test if the dataset has one, otherwise validation. Without either, the model
            is only saved.
        output_dir: folder to write to. Default: that of the checkpoints.
        command: command line of the run, recorded in results.json.
        is_frozen: whether only the head was trained, recorded in results.json.

    Returns:
        The results, as in results.json. None without a split to evaluate on.
    """
    args, model = trainer.args, trained_model(trainer)
    folder = Path(output_dir or args.output_dir)
    if args.process_index == 0:
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
    split = split or next((name for name in ("test", "validation") if name in data.splits), None)
    if split is None:
        logger.warning(f"Not evaluated: {data.name} has neither a test nor a validation split.")
        wait_for_everyone()
        return None
    evaluation = evaluate(
        model,
        processor,
        data,
        split,
        args.per_device_eval_batch_size,
        seed=args.seed,
        training=training_record(data, FROZEN if is_frozen else FINE_TUNING),
        command=command,
    )
    if args.process_index == 0:
        evaluation.results["model"]["name"] = str(folder / "model")
        write_figures(evaluation, model, processor, data, split, folder)
        write_results(evaluation.results, folder / "results.json")
    wait_for_everyone()
    return evaluation.results


def stage_arguments(
    args: TrainingArguments, output_dir: str, results_dir: str | None = None, **changes
) -> TrainingArguments:
    """Return the arguments of one stage of a run with several stages. A stage is resumed only if it has a checkpoint.

    Args:
        args: arguments of the run.
        output_dir: folder for the checkpoints of the stage.
        results_dir: folder for its model, results, and figures. Default: `output_dir`.
        changes: other arguments of the stage.

    Raises:
        UserError: an earlier run started this stage, and resuming was not requested.
    """
    args = copy.deepcopy(args)
    args.output_dir = output_dir
    for name, value in changes.items():
        setattr(args, name, value)
    results_dir = results_dir or output_dir
    if finished(results_dir) and args.resume_from_checkpoint is None:
        raise UserError(f"{results_dir} is from an earlier run: {RESUME}")
    if not list_checkpoints(Path(output_dir)):
        args.resume_from_checkpoint = None
    resume_point(Path(output_dir), args.resume_from_checkpoint)
    return args


def finished(output_dir: str) -> bool:
    """Return whether a run has written its results to a folder, which is its last action."""
    return Path(output_dir, "results.json").is_file()


def finished_results(training_args: TrainingArguments, record: dict, record_dir: str | None = None) -> dict | None:
    """Return the results of a finished run that is resumed, otherwise None.

    Args:
        training_args: arguments with the output folder and whether to resume.
        record: record of the current run, see `run_record`.
        record_dir: folder with the record of the finished run. Default: the output folder.

    Raises:
        UserError: the finished run had other options or data.
    """
    output_dir = training_args.output_dir
    if str(training_args.resume_from_checkpoint).lower() != "true" or not finished(output_dir):
        return None
    check_same_run(record_dir or output_dir, record)
    logger.info(f"The run in {output_dir} has already finished.")
    return read_results_file(Path(output_dir, "results.json"))


def check_same_run(output_dir: str, record: dict) -> None:
    """Check that a finished stage had the current options and data.

    Raises:
        UserError: the options or data differ, or the stage has no record of them.
    """
    path = Path(output_dir, RECORD)
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    compare_records(recorded, record, Path(output_dir), f"Give the same options and data, or {NEW}")
