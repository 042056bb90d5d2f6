"""Python API of the main jobs.

The functions run the same code as the commands, with Python values instead of command-line options. Each function is
available as `surgenet_hf.NAME`. Options without a parameter of their own are passed by name. They are the options of
`transformers.TrainingArguments` and those that `surgenet COMMAND --help` lists.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import closing

from .data import SurgicalData, load_data
from .errors import UserError
from .options import OptionParser

logger = logging.getLogger(__name__)

NO_PUSH = "push_to_hub is not an option of the Python API: run `surgenet publish` on the output folder afterwards"


def finetune_segmentation(
    model: str | None = None,
    dataset=None,
    data_dir: str | os.PathLike | None = None,
    output_dir: str | os.PathLike | None = None,
    labels: list[str] | None = None,
    **training_arguments,
) -> dict:
    """Fine-tune a model for semantic segmentation and evaluate it, like `surgenet finetune-segmentation`.

    Example:
        >>> results = surgenet_hf.finetune_segmentation(
        ...     model="SurgeNetXL", dataset="endoscapes", data_dir="endoscapes", output_dir="outputs/endoscapes"
        ... )
        >>> results["metrics"]["video_dice"]

    Args:
        model: name of a published checkpoint, timm/NAME, Hub repository, or folder. None requires `backbone` and
            starts from random weights.
        dataset: name of a dataset, or your own data as {"train": ..., "validation": ...}. The values are
            `datasets.Dataset` or torch datasets, see `surgenet_hf.data.custom.from_datasets`.
        data_dir: folder of a dataset that is given by name.
        output_dir: folder for checkpoints, model/, results.json, and figures.
        labels: class names of your own data, if the data does not include them.
        training_arguments: further options, e.g. num_train_epochs, learning_rate, bf16, image_size, loss, backbone.

    Returns:
        The results, as in results.json (see `surgenet_hf.evaluation.evaluate`).

    Raises:
        UserError: an option is unknown, or the data, model, or output folder is not usable.
    """
    return _finetune("semantic-segmentation", model, dataset, data_dir, output_dir, labels, training_arguments)


def finetune_classification(
    model: str | None = None,
    dataset=None,
    data_dir: str | os.PathLike | None = None,
    output_dir: str | os.PathLike | None = None,
    labels: list[str] | None = None,
    **training_arguments,
) -> dict:
    """Fine-tune a frame classifier and evaluate it, like `surgenet finetune-classification`.

    See `finetune_segmentation` for the arguments, results, and errors. Each row of your own data has "labels" or
    "label". The value is a class id, or a vector of targets from 0 to 1 for multi-label classification.
    """
    return _finetune("image-classification", model, dataset, data_dir, output_dir, labels, training_arguments)


def finetune_phase(
    model: str | None = None,
    dataset=None,
    data_dir: str | os.PathLike | None = None,
    output_dir: str | os.PathLike | None = None,
    labels: list[str] | None = None,
    **training_arguments,
) -> dict:
    """Fine-tune a model for phase recognition in two stages and evaluate it, like `surgenet finetune-phase`.

    See `finetune_segmentation` for the arguments, results, and errors. Each row of your own data has "label", "video",
    and "frame". The frames of a video are in temporal order.
    """
    return _finetune("phase-recognition", model, dataset, data_dir, output_dir, labels, training_arguments)


def evaluate(
    model: str,
    dataset,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    output_dir: str | os.PathLike | None = None,
    batch_size: int = 8,
    labels: list[str] | None = None,
    task: str | None = None,
    runtime: str | None = None,
    precision: str = "float32",
    compile: bool = False,
    calibration=None,
    **options,
) -> dict:
    """Evaluate a fine-tuned model, like `surgenet evaluate`.

    Args:
        model: folder of the model, output folder of its training, or Hub repository.
        dataset: name of a dataset, or your own data as in `finetune_segmentation`.
        data_dir: folder of a dataset that is given by name.
        split: split to evaluate on. Default: test if the dataset has it, otherwise validation.
        output_dir: folder for results.json and figures. None writes no files.
        batch_size: number of frames per forward pass.
        labels: class names of your own data, if the data does not include them.
        task: task of your own data: "semantic-segmentation", "image-classification", or "phase-recognition".
        runtime: library that runs the network, "torch" (default), "onnxruntime", or "openvino".
        precision: precision of the computation, "float32", "bf16", "fp16", or "int8".
        compile: whether to compile the network with `torch.compile`.
        calibration: frames for the quantization to int8, as the source of `predict`.
        options: options of the dataset, e.g. split_protocol; of your own data also background_class.

    Returns:
        The results, as in results.json.

    Raises:
        UserError: an option, dataset, or split is unknown, or the model does not fit the data.
    """
    from .evaluation.saved_model import evaluate_model
    from .inference.settings import RuntimeArguments

    arguments = RuntimeArguments(runtime, precision, compile, calibration)
    if isinstance(dataset, str):
        data = load_data(dataset, data_dir, **options)
    elif task is None and not isinstance(dataset, SurgicalData):
        raise UserError("task is missing: give the task of your own data, e.g. task='semantic-segmentation'")
    else:
        data = _own_data(dataset, task, labels=labels, data_dir=data_dir, **options)
    return evaluate_model(model, data, split, batch_size, output_dir, runtime=arguments)


def probe(
    model: str,
    dataset,
    data_dir: str | os.PathLike | None = None,
    output_dir: str | os.PathLike | None = None,
    labels: list[str] | None = None,
    task: str | None = None,
    **options,
) -> dict:
    """Evaluate the frozen features of a backbone by k-NN or logistic regression, like `surgenet probe`.

    Example:
        >>> results = surgenet_hf.probe("timm/resnet50.a1_in1k", "endoscapes-cvs", "endoscapes", method="linear")
        >>> results["metrics"]["mean_average_precision"]

    Args:
        model: name of a published checkpoint, timm/NAME, Hub repository, or folder, with or without a head.
        dataset: name of a dataset, or your own data as in `finetune_segmentation`.
        data_dir: folder of a dataset that is given by name.
        output_dir: folder for results.json, figures, and the features. None writes no results.
        labels: class names of your own data, if the data does not include them.
        task: task of your own data: "semantic-segmentation", "image-classification", or "phase-recognition".
        options: further options of `surgenet probe`, e.g. method, pooling, k, train_fraction, seed, split, or
            features_dir.

    Returns:
        The results, as in results.json.

    Raises:
        UserError: an option, dataset, or split is unknown, or the model or data does not allow the probe.
    """
    from .evaluation.probe_arguments import ProbeArguments
    from .evaluation.probe_job import probe_model
    from .finetuning.arguments import TrainDataArguments

    data = None
    if isinstance(dataset, str):
        if labels is not None:
            raise UserError(f"labels are for your own data only; the class names of {dataset} are known. Omit labels")
    else:
        if task is None and not isinstance(dataset, SurgicalData):
            raise UserError("task is missing: give the task of your own data, e.g. task='semantic-segmentation'")
        chosen = {name: options[name] for name in ("split_protocol", "background_class") if name in options}
        data = _own_data(dataset, task, labels=labels, data_dir=data_dir, **chosen)
    given = {
        "model_name_or_path": model,
        "dataset": dataset if data is None else data.name,
        "data_dir": None if data_dir is None else str(data_dir),
        "output_dir": None if output_dir is None else str(output_dir),
    }
    parser = OptionParser((ProbeArguments, TrainDataArguments))
    args, data_args = parser.parse_options({**given, **options})
    if data is None:
        data = load_data(data_args.dataset, data_args.data_dir, **data_args.options())
    return probe_model(args, data, data_args.train_fraction, on_start=lambda: parser.save_resolved(args.output_dir))


def predict(
    model: str,
    source,
    task: str | None = None,
    fps: float | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    runtime: str | None = None,
    precision: str = "float32",
    compile: bool = False,
    calibration=None,
    live_timeout: float = 30.0,
    dense: bool = False,
) -> Iterator[dict]:
    """Predict on images and videos, like `surgenet predict`, without writing files.

    The model is loaded and the input is checked at once. Frames are read and predicted while the iterator is used.
    Files that cannot be read are skipped with a warning in the log.

    Example:
        >>> for row in surgenet_hf.predict("outputs/endoscapes", "video.mp4", fps=5):
        ...     print(row["seconds"], row["pixels"]["gallbladder"])

    Args:
        model: folder of the model, output folder of its training, Hub repository, or published checkpoint.
        source: image, video, folder, or glob pattern, a list of these, or a `datasets.Dataset` or `DatasetDict` with
            the column "image". Files are sorted by name. Also a dataset on the Hub ("hf://datasets/OWNER/NAME"), or
            live input ("tcp://HOST:PORT", "rtsp://...", "/dev/video0").
        task: "embeddings", or None for the task of the model.
        fps: frames per second of video, 0 for every frame. Of live input, the most frames per second. Default: the
            rate at which a phase model was trained, otherwise 1.
        batch_size: number of frames per forward pass.
        num_workers: number of threads that read and preprocess frames. Default: 2 to 8.
        runtime: library that runs the network, "torch", "onnxruntime", or "openvino". Default: "torch", or the fastest
            one with precision "auto".
        precision: precision of the computation, "float32", "bf16", "fp16", "int8", or "auto". "auto" is the fastest
            one within tolerance on the first frames, which are read at once.
        compile: whether to compile the network with `torch.compile`.
        calibration: frames for the quantization to int8, like `source`.
        live_timeout: seconds without a picture after which live input ends.
        dense: whether embeddings include the feature map.

    Returns:
        An iterator of rows. Each has "file", "video", "frame" (number of the picture in the video, or number at the
        end of an image's name, or None), "seconds" (None for images), and "image" (PIL RGB). In addition:

        - segmentation: "mask" with class ids uint8 (H, W), and "pixels" {class: number of pixels}
        - classification: "score" {label: score from 0 to 1}, and "label" if each frame has exactly one
        - phase recognition: "phase", and "score" {phase: score from 0 to 1}; of live input also "repeated", whether
          the row repeats the last picture
        - embeddings: "embedding" float32 (C,), and with `dense` "features" float32 (C, h, w)

    Raises:
        UserError: the model or the input does not exist, or the input does not fit the model.
    """
    from .inference.job import check_batch_size, check_sources, choose_rate
    from .inference.live import LiveReader, find_live, live_rows
    from .inference.selection import BATCHES, Runtimes, apply_live, check_live_precision, read_images
    from .inference.settings import AUTO, RuntimeArguments, check_arguments
    from .inference.sources import divide, find_sources
    from .tasks import load_predictor

    check_batch_size(batch_size, num_workers)
    arguments = RuntimeArguments(runtime, precision, compile, calibration)
    check_arguments(arguments)
    live = None
    if address := find_live(source):
        check_live_precision(arguments)
        live = LiveReader(address, live_timeout)
    predictor = load_predictor(model, task, dense)
    rate = choose_rate(predictor, fps)
    if live is not None:
        apply_live(predictor, arguments)
        return live_rows(predictor, live, rate)
    sources = find_sources(source, rate)
    check_sources(predictor, sources)
    runtimes = Runtimes(predictor, arguments, batch_size)
    first = read_images(sources, rate, BATCHES * batch_size) if runtimes.needs_frames else []
    runtimes.apply(runtimes.choose(first) if precision == AUTO else arguments.setting, first)
    return _rows(predictor, divide(sources), rate, batch_size, num_workers)


def _rows(predictor, jobs, rate: float | None, batch_size: int, num_workers: int | None) -> Iterator[dict]:
    from .inference.predictors import predict_parts

    with closing(predict_parts(predictor, jobs, rate, batch_size, num_workers)) as found:
        for each in found:
            for report in each.reports:
                logger.log(logging.WARNING if report.is_error else logging.INFO, f"{report.file}: {report.message}")
            yield from each.rows


def pretrain(
    output_dir: str | os.PathLike,
    dataset: str | list[str] | None = None,
    data_dir: str | os.PathLike | list[str] | None = None,
    model: str | None = None,
    **options,
) -> dict:
    """Pretrain a backbone with DINO, like `surgenet pretrain`.

    Args:
        output_dir: folder for checkpoints, model/, the log, and figures.
        dataset: source of frames, or a list of sources: "folder", "shards", "parquet", or a dataset on the Hub.
        data_dir: folder of the source, or a list with one folder per source.
        model: initial weights, as the name of a published checkpoint, Hub repository, or folder. None starts from
            random weights.
        options: further options of `surgenet pretrain`, e.g. epochs, per_device_train_batch_size, preset, bf16.

    Returns:
        {"model": folder of the teacher, "best_model": folder of the best teacher by k-NN or None, "history": log}.

    Raises:
        UserError: an option is unknown, or the data, model, or output folder is not usable.
        TrainingStopped: training collapsed or diverged, or there are too many unreadable frames.
    """
    from .pretraining.arguments import CropConfig, DinoConfig, FrameArguments, PretrainingArguments, implied_defaults
    from .pretraining.run import pretrain as run
    from .publishing.cards import pretrained_card

    if options.get("push_to_hub"):
        raise UserError(NO_PUSH)
    given = {"output_dir": str(output_dir), "model_name_or_path": model, **options}
    given |= {"dataset": _listed(dataset)} | ({"data_dir": _listed(data_dir)} if data_dir else {})
    chosen = (options.get(name) for name in ("resume_from_checkpoint", "extend_epochs"))
    defaults, resume = implied_defaults(str(output_dir), options.get("preset", "surgenet"), *chosen)
    parser = OptionParser((PretrainingArguments, FrameArguments, CropConfig, DinoConfig))
    parser.set_defaults(**defaults)
    args, frame_args, crop_config, dino = parser.parse_options(given)
    return run(
        args,
        frame_args,
        crop_config,
        dino,
        resume,
        write_card=pretrained_card,
        on_start=lambda: parser.save_resolved(args.output_dir),
    )


def _finetune(
    task: str,
    model: str | None,
    dataset,
    data_dir: str | os.PathLike | None,
    output_dir: str | os.PathLike | None,
    labels: list[str] | None,
    options: dict,
) -> dict:
    from . import finetuning
    from .finetuning.arguments import OPTIONS

    if dataset is None or output_dir is None:
        raise UserError(f"{'dataset' if dataset is None else 'output_dir'} is missing")
    if options.get("push_to_hub"):
        raise UserError(NO_PUSH)
    data = None
    if not isinstance(dataset, str):
        chosen = {name: options[name] for name in ("split_protocol", "background_class") if name in options}
        data = _own_data(dataset, task, labels=labels, data_dir=data_dir, **chosen)
    elif labels is not None:
        raise UserError(f"labels are for your own data only; the class names of {dataset} are known. Omit labels")
    given = {
        "model_name_or_path": model,
        "dataset": dataset if data is None else data.name,
        "data_dir": None if data_dir is None else str(data_dir),
        "output_dir": str(output_dir),
    }
    parser = OptionParser(OPTIONS[task])
    arguments = parser.parse_options({**given, **options})
    return finetuning.finetune(task, *arguments, data=data, on_start=lambda: parser.save_resolved(output_dir))


def _own_data(dataset, task: str | None, **options) -> SurgicalData:
    """Convert the user's own data, and reject options that would have no effect."""
    options = {name: value for name, value in options.items() if value is not None}
    known: tuple[str, ...] = ("labels", "split_protocol", "background_class", "frames_per_second")
    if isinstance(dataset, SurgicalData):
        known = ()
    if unused := sorted(options.keys() - set(known)):
        raise UserError(f"{', '.join(unused)} has no effect on the given dataset: omit it")
    if isinstance(dataset, SurgicalData):
        return dataset
    from .data.custom import from_datasets

    assert task is not None  # `evaluate` has checked it
    return from_datasets(dataset, task, **options)


def _listed(value) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
