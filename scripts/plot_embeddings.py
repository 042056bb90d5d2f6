"""Draw what a backbone sees: t-SNE of its embeddings, and its dense features as colours.

python scripts/plot_embeddings.py --model_name_or_path SurgeNetXL --dataset endoscapes cholecseg8k \
    --data_dir endoscapes cholecseg8k --color_by dataset --output_dir outputs/embeddings
python scripts/plot_embeddings.py --model_name_or_path outputs/quickstart/model --dataset synthetic --color_by video

Draw again from what the first call saved, without the model and the data:

python scripts/plot_embeddings.py --embeddings outputs/embeddings/embeddings.npz --color_by video
"""

import sys
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, HfArgumentParser

from surgenet_hf import SurgeNetModel, fetch_checkpoint
from surgenet_hf.data import CLASSIFICATION, SEGMENTATION, load_classification, load_segmentation
from surgenet_hf.data.classification import SINGLE
from surgenet_hf.evaluation import predict
from surgenet_hf.figures import feature_figure, save_both, scatter_figure, tsne

GROUPS = {"dataset": "data set", "video": "video", "phase": "phase"}
MAPS_DRAWN = 4  # frames whose dense features are drawn
MAP_SCALE = 3  # times the processor's size for these: features have a stride of 32 pixels


@dataclass
class Arguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The model: a published checkpoint by its name, a Hub repository, or a folder."},
    )
    dataset: list[str] = field(default_factory=list, metadata={"help": "Names of the data sets."})
    data_dir: list[str] = field(
        default_factory=list, metadata={"help": "Where they lie, in the same order; synthetic data needs no place."}
    )
    color_by: str = field(
        default="dataset", metadata={"help": "What the colours of the t-SNE say.", "choices": [*GROUPS]}
    )
    output_dir: str = field(default="outputs/embeddings", metadata={"help": "Folder for the figures and the .npz."})
    max_frames: int = field(default=500, metadata={"help": "At most so many frames of each data set, evenly spread."})
    embeddings: str | None = field(
        default=None, metadata={"help": "An embeddings.npz of an earlier call: draw it again, without the model."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the t-SNE."})


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    if (args.embeddings is None) == (args.model_name_or_path is None):
        parser.error("give either --model_name_or_path, with --dataset, or --embeddings")
    if args.model_name_or_path and not args.dataset:
        parser.error("--dataset is missing")
    if args.data_dir and len(args.data_dir) != len(args.dataset):
        parser.error(f"{len(args.dataset)} of --dataset, but {len(args.data_dir)} of --data_dir")
    if args.max_frames < 1:
        parser.error("--max_frames must be at least 1")
    output_dir = Path(args.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if args.embeddings:
            saved = read_embeddings(args.embeddings)
        else:
            parts = load_frames(args.dataset, args.data_dir, args.max_frames)
            if args.color_by == "phase" and (without := {data.name for data, *_ in parts if not has_phases(data)}):
                raise ValueError(f"no phases in {', '.join(sorted(without))}: choose another --color_by")
            saved = embed(args.model_name_or_path, parts)
            np.savez_compressed(output_dir / "embeddings.npz", **saved)
        groups = saved[args.color_by]
        if not all(groups):
            raise ValueError(f"not all frames have a {args.color_by}: choose another --color_by")
        if args.color_by == "video" and len(set(saved["dataset"])) > 1:  # data sets may call their videos alike
            groups = [" ".join(names) for names in zip(saved["dataset"], groups, strict=True)]
        coordinates = tsne(saved["embeddings"], seed=args.seed)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend: the message is enough
        sys.exit(f"plot_embeddings.py: error: {error}")

    model = str(saved["model"])
    title = f"{model}: embeddings of {len(groups):,} frames"
    written = [output_dir / "embeddings.npz"] if args.embeddings is None else []
    written += save_both(scatter_figure(coordinates, groups, title, GROUPS[args.color_by]), output_dir / "tsne")
    count = len(saved["drawn"])
    frames, features = ([saved[f"{kind}{i}"] for i in range(count)] for kind in ("frame", "features"))
    titles = [f"{saved['dataset'][i]}, {saved['video'][i]}" for i in saved["drawn"]]
    written += save_both(feature_figure(frames, features, titles, f"{model}: dense features"), output_dir / "features")
    print("Written\n" + "\n".join(f"  {path}" for path in written))


def load_frames(names: list[str], data_dirs: list[str], max_frames: int) -> list[tuple]:
    """Evenly spread frames of each data set, in all its splits, not yet decoded: (data, split, indices)."""
    loaders = dict.fromkeys(CLASSIFICATION, load_classification) | dict.fromkeys(SEGMENTATION, load_segmentation)
    parts = []
    for name, data_dir in zip_longest(names, data_dirs):
        if name not in loaders:
            raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(loaders)}")
        data = loaders[name](name, data_dir)
        chosen = spread(sum(map(len, data.splits.values())), max_frames)
        for split in data.splits.values():
            parts.append((data, split, chosen[chosen < len(split)].tolist()))
            chosen = chosen[chosen >= len(split)] - len(split)
    return parts


def spread(total: int, count: int) -> np.ndarray:
    """`count` of the numbers 0 ... total - 1, evenly spread; all if there are no more."""
    return np.unique(np.linspace(0, total - 1, count).astype(int))


def has_phases(data) -> bool:
    return getattr(data, "problem_type", None) == SINGLE


def embed(name: str, parts: list[tuple]) -> dict[str, np.ndarray]:
    """What embeddings.npz holds.

    embeddings (N, C); dataset, video and phase (N,), where a frame without a phase has an empty one; drawn (M,), the
    numbers of the frames with dense features: frame<i> (H, W, 3) and features<i> (C, h, w); model, its name.
    """
    path = name if "/" in name or Path(name).exists() else fetch_checkpoint(name)
    model = SurgeNetModel.from_pretrained(path)
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    processor = AutoImageProcessor.from_pretrained(path)
    embeddings, groups = [], []
    for data, split, indices in parts:
        for rows, outputs in predict(model, processor, split, indices):
            embeddings.append(outputs.pooler_output.float().cpu().numpy())
            for row in rows:
                phase = data.labels[int(row["labels"])] if has_phases(data) else ""
                groups.append((data.name, row["video"], phase))
    saved = {
        "embeddings": np.concatenate(embeddings),
        **{key: np.array(column) for key, column in zip(GROUPS, zip(*groups, strict=True), strict=True)},
        "model": np.array(model_label(name)),
        "drawn": spread(len(groups), MAPS_DRAWN),
    }
    size = {side: MAP_SCALE * processor.size[side] for side in ("height", "width")}
    processor = AutoImageProcessor.from_pretrained(path, size=size)
    places = [(split, index) for _, split, indices in parts for index in indices]
    for i, number in enumerate(saved["drawn"]):
        split, index = places[number]
        (((row,), outputs),) = predict(model, processor, split, [index])
        saved[f"frame{i}"] = np.asarray(row["image"])
        saved[f"features{i}"] = outputs.last_hidden_state[0].float().cpu().numpy()
    return saved


def read_embeddings(path: str) -> dict[str, np.ndarray]:
    file = np.load(path)
    if missing := {"embeddings", "drawn", "model", *GROUPS}.difference(getattr(file, "files", ())):
        raise ValueError(f"{path} is not of plot_embeddings.py: it lacks {', '.join(sorted(missing))}")
    with file:
        return dict(file)


def model_label(name: str) -> str:
    """The last part of a name or folder that says something: outputs/xl/model is "xl"."""
    parts = Path(name).parts
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


if __name__ == "__main__":
    main()
