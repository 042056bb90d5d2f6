"""Detection of evaluation videos that trained a model, selected its checkpoint, or were in its pretraining.

A model's config records its fine-tuning in `config.finetuning`. For a phase model, the record is in
`config.backbone_config.finetuning`. The record is a list with one dict per training dataset:

    dataset             its name in `surgenet_hf.data`, or "unknown" for training without a record
    split_protocol      assignment of videos to splits
    train_videos        ids of the videos that trained the model
    selection_videos    ids of the videos of the split that selected the checkpoint; empty if there is no such split
    salt                id of the salt of the video hashes; only for the user's own videos

The id of a public video is "<namespace>:<video>". Datasets made from the same videos share a namespace. For example,
"cholec80:video12" is video12 of Cholec80, video12 of CholecSeg8k, and VID12 of CholecT50. The id of a user's own video
is "own:<hash>" (see `surgenet_hf.privacy.video_hashes`), so that config.json can be published.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .checkpoints.catalog import known_videos, leakage_note
from .privacy import video_hashes

UNKNOWN = "unknown"
OWN = "own"
_UNRECORDED = "the training videos of this model are unknown (not recorded)"
# {part of a dataset's name before the first hyphen: namespace of its videos}, if the two differ
_NAMESPACES = {"cholecseg8k": "cholec80", "cholect50": "cholec80"}
_OVERLAPPING = {"cholec80", "endoscapes"}  # CAMMA's camma_dataset_overlaps lists the shared videos


@dataclass(frozen=True)
class Leakage:
    """Overlap of the videos of an evaluation with the training data of the model.

    Attributes:
        note: sentence without a final period, for results files. None if the model is known to have seen none of the
            videos.
        trained: names of the videos that fine-tuned the model.
        selected: names of the videos that selected its checkpoint.
    """

    note: str | None
    trained: tuple[str, ...]
    selected: tuple[str, ...]


def start_record(config) -> None:
    """Set an empty record if the weights are known not to be fine-tuned: random weights, or a model without a head.

    Args:
        config: config of a new model, or config loaded by `from_pretrained`.
    """
    if getattr(config, "finetuning", None) is None and _has_no_head(config):
        config.finetuning = []


def record_finetuning(config, data, selects_checkpoint: bool) -> None:
    """Add the data of a fine-tuning to the record in a model's config. The same data is added only once.

    Args:
        config: config of the model before training.
        data: `SurgicalData`.
        selects_checkpoint: whether metrics on the validation split select the checkpoint.
    """
    config = _backbone(config)
    start_record(config)
    earlier = getattr(config, "finetuning", None)
    if earlier is None:
        earlier = [{"dataset": UNKNOWN, "train_videos": [], "selection_videos": []}]
    entry = {
        "dataset": data.name,
        "split_protocol": data.split_protocol,
        "train_videos": _ids_of_split(data, "train"),
        "selection_videos": _ids_of_split(data, "validation") if selects_checkpoint else [],
    }
    if not data.videos_are_public:
        entry["salt"] = _salt_id()
    config.finetuning = [*earlier, *([] if entry in earlier else [entry])]


def describe_finetuning(config) -> list[str]:
    """Describe the record of a model for model cards, as sentences without a final period."""
    record = getattr(_backbone(config), "finetuning", None)
    if record is None:
        return [_UNRECORDED]
    return [
        _UNRECORDED
        if entry["dataset"] == UNKNOWN
        else f"Fine-tuned on {len(entry['train_videos'])} videos of {entry['dataset']} (split protocol: "
        f"{entry['split_protocol']}); {len(entry['selection_videos'])} videos were used to select the checkpoint"
        for entry in record
    ]


def leakage_report(config, data, split: str) -> Leakage:
    """Report the overlap of an evaluation split with the training data of a model.

    Args:
        config: config of the model, of any family.
        data: `SurgicalData`.
        split: name of the evaluation split.
    """
    videos = _videos(data, split)
    record = getattr(_backbone(config), "finetuning", None)
    ids = _video_ids(data, videos) if record else {}

    def seen(key: str) -> tuple[str, ...]:
        recorded = {video for entry in record or () for video in entry[key]}
        return tuple(video for video in videos if ids.get(video) in recorded)

    trained, selected = seen("train_videos"), seen("selection_videos")
    notes = []
    for found, what in ((trained, "were used to train this model"), (selected, "were used to select its checkpoint")):
        if found:
            # the note may be published, so it does not name the user's own videos
            names = ", ".join(found[:3]) + ", ..." * (len(found) > 3) if data.videos_are_public else "matched by name"
            notes.append(f"{len(found)} of {len(videos)} videos {what} ({names})")
    if selected:
        notes[-1] += ", so the result is optimistic"
    if not _is_synthetic(data.name):
        notes += [_UNRECORDED] if record is None else _unknown_overlaps(record, data)
    pretraining = getattr(config, "pretraining", None) or {}
    notes.append(leakage_note(pretraining.get("name"), data.name, known_videos(data.name, videos)) or "")
    note = "; ".join(dict.fromkeys(note for note in notes if note))
    return Leakage(note or None, trained, selected)


def _unknown_overlaps(record: list[dict], data) -> list[str]:
    """Return notes on the entries of a record whose overlap with the data is unknown."""
    notes = []
    for entry in record:
        namespaces = {_namespace(entry["dataset"]), _namespace(data.name)}
        own = {"salt" in entry, not data.videos_are_public}
        if entry["dataset"] == UNKNOWN:
            notes.append(_UNRECORDED)
        elif _is_synthetic(entry["dataset"]):
            continue
        elif own == {True} and entry["salt"] != _salt_id():
            notes.append(
                f"it is unknown whether its fine-tuning on {entry['dataset']} included these videos (their hashes "
                "have another salt)"
            )
        elif own == {True, False} or namespaces == _OVERLAPPING:
            notes.append(f"it is unknown whether its fine-tuning on {entry['dataset']} included these videos")
    return notes


def _videos(data, split: str) -> list[str]:
    rows = data.splits[split]
    if hasattr(rows, "select_columns"):  # a `datasets.Dataset`, where indexing a row decodes its image
        return list(dict.fromkeys(rows.select_columns(["video"])[:]["video"]))
    return list(dict.fromkeys(row["video"] for row in rows))


def _ids_of_split(data, split: str) -> list[str]:
    return list(_video_ids(data, _videos(data, split)).values())


def _video_ids(data, videos: Iterable[str]) -> dict[str, str]:
    """Return {name of a video: its id}."""
    if not data.videos_are_public:
        return {video: f"{OWN}:{digest}" for video, digest in video_hashes(videos).items()}
    namespace = _namespace(data.name)
    if namespace != "cholec80":
        return {video: f"{namespace}:{video}" for video in videos}
    return {video: f"{namespace}:video{int(re.search(r'[0-9]+$', video)[0]):02d}" for video in videos}


def _namespace(dataset: str) -> str:
    if _is_synthetic(dataset):
        return dataset  # synthetic datasets do not share videos
    name = dataset.split("-")[0]
    return _NAMESPACES.get(name, name)


def _is_synthetic(dataset: str) -> bool:
    return dataset.startswith("synthetic")


def _salt_id() -> str:
    return video_hashes([""])[""]


def _backbone(config):
    """Return the config that holds the record. For a phase model, this is the config of the backbone."""
    return config.backbone_config if config.model_type == "surgenet_phase" else config


def _has_no_head(config) -> bool:
    architectures = getattr(config, "architectures", None) or []
    return bool(architectures) and not any("For" in name for name in architectures)
