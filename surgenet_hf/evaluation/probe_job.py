"""k-NN and linear probes: evaluation of frozen features on a labeled dataset, in the format of `evaluate`.

- k-NN is the weighted k-NN of DINO, see `surgenet_hf.evaluation.probes`. Each frame gets the weighted mean of the
  targets of its nearest neighbors in the train split.
- The linear probe is logistic regression with an L2 penalty and L-BFGS of scikit-learn: multinomial with one label per
  frame, and one regression per label with several. Features are standardized with the mean and standard deviation of
  the training frames, as the batch normalization without parameters does in the linear probing of MAE (He et al., CVPR
  2022, appendix A). The inverse strength C of the penalty is one of 12 values from 1e-6 to 1e5. The validation split
  selects it, and the regression is fitted to the train split only. Range and iterations are those of DINOv2's logistic
  regression (`dinov2/eval/log_regression.py`), which tries 45 values and does not standardize.

The labels of a segmentation frame are the classes that its mask shows. A probe predicts which classes are present in
the frame, and the results name the dataset "NAME-presence". They are not Dice. For dense linear probing, fine-tune
with a linear head and a frozen backbone.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from ..checkpointing import check_output_dir
from ..data import SurgicalData
from ..data.base import MULTI
from ..data.fraction import take_fraction, training_videos
from ..distributed import is_main_process, process_state
from ..errors import UserError
from ..leakage import leakage_report, record_finetuning
from ..tasks import Scores, multi_label_metric, phase_metric, selection_metric
from .evaluate import build_results, training_record, write_results
from .frozen_features import load_frozen, split_features
from .probe_arguments import METHODS, ProbeArguments
from .probes import LabeledEmbeddings, vote
from .reporting import write_figures

logger = logging.getLogger(__name__)

REGULARIZATIONS = tuple(10.0**power for power in range(-6, 6))  # C of scikit-learn
ITERATIONS = 1000  # of L-BFGS
PRESENCE = "-presence"


def probe_model(
    args: ProbeArguments,
    data: SurgicalData,
    train_fraction: float = 1.0,
    command: str | None = None,
    on_start: Callable[[], None] | None = None,
) -> dict:
    """Probe the frozen features of a model, and write results.json and figures. All processes must call it.

    Args:
        args: options, with the model. Without an output folder, no results are written, and features are only written
            if there is a folder for them.
        data: labeled dataset with a train split.
        train_fraction: fraction of the training videos, see `surgenet_hf.data.fraction`.
        command: command line, recorded in results.json.
        on_start: function that the main process calls before the features are computed, if there is an output folder.

    Returns:
        The results, as in results.json.

    Raises:
        UserError: the model does not exist or does not allow the pooling, a split is missing, or all evaluated frames
            show the same classes. Also raised if a folder cannot be written to.
    """
    split = args.split or data.evaluation_split
    data.split(split)
    data.split("train")
    if args.selects and "validation" not in data.splits:
        raise UserError(
            f"{data.name!r} has no validation split to select the regularization of the linear probe: give "
            "--regularization, or choose a --split_protocol with validation videos"
        )
    chosen = take_fraction(data, train_fraction, args.seed)
    backbone = load_frozen(args.model_name_or_path, args.pooling, args.image_size)
    output_dir, features_dir = args.output_dir, args.features_dir
    if output_dir is not None:
        check_output_dir(output_dir)  # fail before the features are computed
        features_dir = features_dir or str(Path(output_dir, "features"))
        if on_start is not None and is_main_process():
            on_start()
    features = {
        name: split_features(backbone, data, name, args.per_device_eval_batch_size, features_dir)
        for name in dict.fromkeys(["train", *(["validation"] if args.selects else []), split])
    }
    shown = data
    if data.task == "semantic-segmentation":
        shown = presence(data, features[split])
        kept = [data.labels.index(label) for label in shown.labels]
        features = {name: replace(found, targets=found.targets[:, kept]) for name, found in features.items()}
    train = _of_videos(features["train"], training_videos(chosen))
    if args.method == "knn":
        details: dict = {"k": args.k, "temperature": args.temperature}
        predicted = _vote(train, features[split], args.k, args.temperature)
    else:
        details, predicted = _linear(shown, train, features, split, args.regularization)

    config = copy.deepcopy(backbone.config)
    record_finetuning(config, chosen, args.selects)
    described = {
        "name": backbone.name,
        "type": config.model_type,
        "parameters": sum(parameter.numel() for parameter in backbone.model.parameters()),
        "pretraining": getattr(config, "pretraining", None) or "unknown",
    }
    evaluation = build_results(
        score_targets(shown, predicted, features[split]),
        described,
        shown,
        split,
        backbone.processor.size,
        leakage_report(config, data, split),
        args.seed,
        training_record(chosen, METHODS[args.method], pooling=args.pooling, **details),
        command=command,
    )
    if output_dir is not None and is_main_process():
        write_figures(evaluation, None, None, shown, split, output_dir)
        write_results(evaluation.results, Path(output_dir, "results.json"))
    return evaluation.results


def presence(data: SurgicalData, features: LabeledEmbeddings) -> SurgicalData:
    """Describe a segmentation dataset as multi-label classification of the classes that a frame shows.

    Classes that all evaluated frames show, usually the background, are excluded: their average precision is always 1.

    Args:
        data: segmentation dataset.
        features: features of the evaluated split, whose targets have all classes.

    Raises:
        UserError: all evaluated frames show the same classes.
    """
    positive = features.targets >= 0.5
    everywhere = positive.all(0)
    if not (positive.any(0) & ~everywhere).any():
        raise UserError(f"all evaluated frames of {data.name!r} show the same classes: choose another dataset")
    notes = ["The labels are the classes that the mask of a frame shows."]
    if excluded := [data.labels[i] for i in everywhere.nonzero().ravel().tolist()]:
        notes.append(f"Excluded, because all evaluated frames show them: {', '.join(excluded)}.")
    kept = (~everywhere).nonzero().ravel().tolist()
    return replace(
        data,
        name=data.name + PRESENCE,
        task="image-classification",
        labels=tuple(data.labels[i] for i in kept),
        colors=tuple(data.colors[i] for i in kept if i < len(data.colors)),
        background_id=None,
        problem_type=MULTI,
        notes=(*data.notes, *notes),
    )


def score_targets(data: SurgicalData, predicted: np.ndarray, features: LabeledEmbeddings) -> Scores:
    """Compute the metrics of a task from predictions, as the evaluation of a model does.

    Args:
        data: dataset for frame classification or phase recognition.
        predicted: scores (N, num_labels) from 0 to 1.
        features: targets and videos of the N frames, with the frames of a video in temporal order.
    """
    targets = features.targets.numpy()
    if not data.is_single_label:
        metric = multi_label_metric(data)
        metric.add(predicted, targets, features.videos.tolist())
        return Scores(metric)
    found = Scores(phase_metric(data))
    for video in dict.fromkeys(features.videos.tolist()):
        rows = features.videos == video
        found.truths[video], found.predictions[video] = targets[rows].argmax(1), predicted[rows].argmax(1)
        found.metric.add(found.predictions[video], found.truths[video], video)
    return found


def _of_videos(features: LabeledEmbeddings, videos: list[str]) -> LabeledEmbeddings:
    rows = np.isin(features.videos, videos)
    return LabeledEmbeddings(features.embeddings[rows], features.targets[rows], features.videos[rows])


def _vote(train: LabeledEmbeddings, queries: LabeledEmbeddings, k: int, temperature: float) -> np.ndarray:
    device = process_state().device
    train, queries = (
        LabeledEmbeddings(found.embeddings.to(device), found.targets.to(device), found.videos)
        for found in (train, queries)
    )
    return vote(train, queries, k, temperature).cpu().numpy()


def _linear(
    data: SurgicalData,
    train: LabeledEmbeddings,
    features: dict[str, LabeledEmbeddings],
    split: str,
    regularization: float | None,
) -> tuple[dict, np.ndarray]:
    """Fit the linear probe. Return its settings for the results, and the scores (N, num_labels) of the split."""
    scaler = StandardScaler().fit(_array(train))
    inputs, targets = scaler.transform(_array(train)), train.targets.numpy()
    names = {split} if regularization is not None else {split, "validation"}
    queries = {name: scaler.transform(_array(features[name])) for name in names}
    details: dict = {"regularization": regularization, "selected_on": None, "selection_metric": None}
    if regularization is None:
        metric = selection_metric(data)
        values, fitted = [], []
        quiet = not is_main_process()
        for value in tqdm(REGULARIZATIONS, desc="Logistic regression", unit="fit", leave=False, disable=quiet):
            fitted.append(_fit(inputs, targets, data.is_single_label, value))
            predicted = fitted[-1].predict(queries["validation"])
            values.append(score_targets(data, predicted, features["validation"]).metric.compute()[metric])
        if np.isnan(values).all():
            raise UserError(
                f"no validation frame of {data.name!r} has a positive label, so no regularization can be selected: "
                "give --regularization"
            )
        best = int(np.nanargmax(values))  # the strongest of equally good penalties
        probe = fitted[best]
        details = {
            "regularization": REGULARIZATIONS[best],
            "selected_on": "validation",
            "selection_metric": metric,
        }
        logger.info(f"C = {REGULARIZATIONS[best]:g} selected: {metric} {values[best]:.3f} on the validation split")
    else:
        probe = _fit(inputs, targets, data.is_single_label, regularization)
    if not probe.converged:
        logger.warning(f"The logistic regression did not converge in {ITERATIONS} iterations")
    return details, probe.predict(queries[split])


@dataclass
class LinearProbe:
    """Fitted logistic regressions.

    Attributes:
        predict: function: standardized features (N, C) -> scores (N, num_labels) from 0 to 1.
        converged: whether all regressions converged.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    converged: bool


def _fit(inputs: np.ndarray, targets: np.ndarray, is_single_label: bool, regularization: float) -> LinearProbe:
    """Fit one multinomial regression, or one regression per label. Targets below 0.5 are negative."""
    num_labels = targets.shape[1]
    goals = [targets.argmax(1)] if is_single_label else [(column >= 0.5).astype(int) for column in targets.T]
    models = [
        LogisticRegression(C=regularization, max_iter=ITERATIONS) if len(set(goal.tolist())) > 1 else None
        for goal in goals
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported for the selected regularization
        for model, goal in zip(models, goals, strict=True):
            if model is not None:
                model.fit(inputs, goal)

    def predict(queries: np.ndarray) -> np.ndarray:
        scores = np.zeros((len(queries), num_labels))
        for label, (model, goal) in enumerate(zip(models, goals, strict=True)):
            classes = [goal[0]] if model is None else model.classes_  # with one class in training, it is certain
            shares = np.ones((len(queries), 1)) if model is None else model.predict_proba(queries)
            if is_single_label:
                scores[:, classes] = shares
            else:
                scores[:, label] = shares[:, list(classes).index(1)] if 1 in classes else 0.0
        return scores.clip(0, 1)

    return LinearProbe(predict, all(model is None or model.n_iter_.max() < ITERATIONS for model in models))


def _array(features: LabeledEmbeddings) -> np.ndarray:
    return features.embeddings.numpy().astype(np.float64)
