"""Draw what a backbone sees: t-SNE of its embeddings, and its dense features as colors.

The embedding of a frame is the pooled embedding of the model. Segmentation models have none: theirs is the spatial
mean of the last feature map, without the norm. embeddings.npz holds the embeddings with data set, split, video, frame
number and file name of each frame.

python scripts/plot_embeddings.py --model_name_or_path SurgeNetXL --dataset endoscapes cholecseg8k \
    --data_dir endoscapes cholecseg8k --color_by dataset --output_dir outputs/embeddings
python scripts/plot_embeddings.py --model_name_or_path outputs/quickstart/model --dataset synthetic --color_by video

Draw again from what the first call saved, without the model and the data:

python scripts/plot_embeddings.py --embeddings outputs/embeddings/embeddings.npz --color_by video
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from surgenet_hf.atomic import atomic_write
from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.data import NAMES
from surgenet_hf.figures import feature_figure, save_both, scatter_figure, tsne
from surgenet_hf.image_processing import load_image_processor
from surgenet_hf.inference.embeddings import POOLED, embed_frames, has_phases, load_backbone, load_frames
from surgenet_hf.models import resolve_model
from surgenet_hf.privacy import mask_tokens

GROUPS = {"dataset": "data set", "video": "video", "phase": "phase"}


@dataclass
class Arguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The model: a published checkpoint by its name, a Hub repository, or a folder."},
    )
    dataset: list[str] = field(default_factory=list, metadata={"help": f"Names of the data sets. {NAMES}"})
    data_dir: list[str] = field(
        default_factory=list, metadata={"help": "Where they lie, in the same order; synthetic data needs no place."}
    )
    color_by: str = field(
        default="dataset", metadata={"help": "What the colours of the t-SNE say.", "choices": [*GROUPS]}
    )
    output_dir: str = field(default="outputs/embeddings", metadata={"help": "Folder for the figures and the .npz."})
    max_frames: int = field(default=500, metadata={"help": "At most so many frames of each data set, evenly spread."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Frames at a time."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    embeddings: str | None = field(
        default=None, metadata={"help": "An embeddings.npz of an earlier call: draw it again, without the model."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the t-SNE."})


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(Arguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    if (args.embeddings is None) == (args.model_name_or_path is None):
        parser.error("give either --model_name_or_path, with --dataset, or --embeddings")
    if args.model_name_or_path and not args.dataset:
        parser.error("--dataset is missing")
    if args.data_dir and len(args.data_dir) != len(args.dataset):
        parser.error(f"{len(args.dataset)} of --dataset, but {len(args.data_dir)} of --data_dir")
    if args.max_frames < 1:
        parser.error("--max_frames must be at least 1")
    if args.per_device_eval_batch_size < 1:
        parser.error("--per_device_eval_batch_size must be at least 1")
    output_dir = Path(args.output_dir)
    try:
        if args.embeddings:
            saved = read_embeddings(args.embeddings)
        else:
            parts = load_frames(args.dataset, args.data_dir, args.max_frames)
            if args.color_by == "phase" and (without := {data.name for data, *_ in parts if not has_phases(data)}):
                raise ValueError(f"no phases in {', '.join(sorted(without))}: choose another --color_by")
            saved = embed(args.model_name_or_path, parts, args.per_device_eval_batch_size, args.bf16)
        groups = saved[args.color_by]
        if not all(groups):
            raise ValueError(f"not all frames have a {args.color_by}: choose another --color_by")
        if args.color_by == "video" and len(set(saved["dataset"])) > 1:  # data sets may call their videos alike
            groups = [" ".join(names) for names in zip(saved["dataset"], groups, strict=True)]
        coordinates = tsne(saved["embeddings"], seed=args.seed)
        if not args.embeddings:
            with atomic_write(output_dir / "embeddings.npz") as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **saved)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend: the message is enough
        sys.exit(mask_tokens(f"plot_embeddings.py: error: {error}"))

    model = str(saved["model"])
    title = f"{model}: embeddings of {len(groups):,} frames"
    if (kind := str(saved.get("embedding", POOLED))) != POOLED:
        title += f"\n({kind})"
        print(f"The model has no pooled embedding. Used instead: {kind}")
    written = [output_dir / "embeddings.npz"] if args.embeddings is None else []
    written += save_both(scatter_figure(coordinates, groups, title, GROUPS[args.color_by]), output_dir / "tsne")
    count = len(saved["drawn"])
    frames, features = ([saved[f"{kind}{i}"] for i in range(count)] for kind in ("frame", "features"))
    titles = [f"{saved['dataset'][i]}, {saved['video'][i]}" for i in saved["drawn"]]
    written += save_both(feature_figure(frames, features, titles, f"{model}: dense features"), output_dir / "features")
    print("Written\n" + "\n".join(f"  {path}" for path in written))


def embed(name: str, parts: list[tuple], batch_size: int = 8, bf16: bool = False) -> dict[str, np.ndarray]:
    """Compute what embeddings.npz holds: see `embed_frames`; the name of the model, and the kind of its embedding."""
    path = resolve_model(name)
    model, kind = load_backbone(path, torch.bfloat16 if bf16 else torch.float32)
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    found = embed_frames(model, load_image_processor(path), parts, batch_size)
    return found | {"model": np.array(model_label(name)), "embedding": np.array(kind)}


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
