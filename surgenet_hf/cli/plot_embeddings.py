"""Plot the features of a backbone: t-SNE of frame embeddings, and dense features as colors.

  surgenet plot-embeddings --model_name_or_path SurgeNetXL --dataset endoscapes cholecseg8k \\
      --data_dir endoscapes cholecseg8k --color_by dataset --output_dir outputs/embeddings
  surgenet plot-embeddings --model_name_or_path outputs/quickstart/model --dataset synthetic --color_by video

Plot the saved embeddings of an earlier call again, without the model and the data:

  surgenet plot-embeddings --embeddings outputs/embeddings/embeddings.npz --color_by video

The embedding of a frame is the pooled embedding of the model. Segmentation models have no pooled embedding. Instead,
the spatial mean of the last feature map is used, without the norm. embeddings.npz contains the embedding, dataset,
split, video, frame number, and file name of each frame.
"""

from dataclasses import dataclass

from ..data import dataset_names
from ..errors import UserError
from ..options import option
from .arguments import ArgumentParser, command

GROUPS = {"dataset": "dataset", "video": "video", "phase": "phase"}


@dataclass
class EmbeddingArguments:
    """Which frames are embedded, by which model, and how they are plotted."""

    model_name_or_path: str | None = option(
        None, "Model: a published checkpoint by name, a Hub repository, or a folder."
    )
    dataset: list[str] = option([], f"Names of the datasets: {', '.join(dataset_names())}.")
    data_dir: list[str] = option([], "Folders of the datasets, in the same order. Not needed for synthetic data.")
    color_by: str = option(
        "dataset", "Property of the frames that the colors in the t-SNE plot show.", choices=[*GROUPS]
    )
    output_dir: str = option("outputs/embeddings", "Folder for the figures, embeddings.npz, and run.yaml.")
    max_frames: int = option(500, "Maximum number of frames of each dataset, evenly spread over its splits.")
    per_device_eval_batch_size: int = option(8, "Number of frames per forward pass.")
    bf16: bool = option(False, "Whether to compute in bfloat16.")
    embeddings: str | None = option(
        None, "File embeddings.npz of an earlier call, to plot it again without the model."
    )
    seed: int = option(0, "Seed of the t-SNE. Default: 0.")

    def __post_init__(self):
        if (self.embeddings is None) == (self.model_name_or_path is None):
            raise UserError("give either --model_name_or_path and --dataset, or --embeddings")
        if self.model_name_or_path and not self.dataset:
            raise UserError("--dataset is missing")
        if self.data_dir and len(self.data_dir) != len(self.dataset):
            raise UserError(
                f"--dataset has {len(self.dataset)} values, but --data_dir has {len(self.data_dir)}; give one folder "
                "for each dataset"
            )
        for name in ("max_frames", "per_device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(EmbeddingArguments, prog="surgenet plot-embeddings", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)

    from ..checkpointing import check_output_dir
    from ..figures import feature_figure, save_both, scatter_figure, tsne
    from ..inference.embeddings import POOLED, embed_datasets, read_embeddings, save_embeddings

    output_dir = check_output_dir(args.output_dir)
    if args.embeddings:
        saved = read_embeddings(args.embeddings)
    else:
        saved = embed_datasets(
            args.model_name_or_path,
            args.dataset,
            args.data_dir,
            args.max_frames,
            args.per_device_eval_batch_size,
            args.bf16,
            needs_phases=args.color_by == "phase",
        )
    groups = saved[args.color_by]
    if not all(groups):
        raise UserError(f"not all frames have a {args.color_by}: choose another --color_by")
    if args.color_by == "video" and len(set(saved["dataset"])) > 1:  # datasets may use the same names for videos
        groups = [" ".join(names) for names in zip(saved["dataset"], groups, strict=True)]
    coordinates = tsne(saved["embeddings"], seed=args.seed)
    parser.save_resolved(output_dir)
    written = [] if args.embeddings else [save_embeddings(saved, output_dir / "embeddings.npz")]
    model = str(saved["model"])
    title = f"{model}: embeddings of {len(groups):,} frames"
    if (kind := str(saved.get("embedding", POOLED))) != POOLED:
        title += f"\n({kind})"
        print(f"The model has no pooled embedding. Used instead: {kind}")
    written += save_both(scatter_figure(coordinates, groups, title, GROUPS[args.color_by]), output_dir / "tsne")
    count = len(saved["drawn"])
    frames, features = ([saved[f"{kind}{i}"] for i in range(count)] for kind in ("frame", "features"))
    titles = [f"{saved['dataset'][i]}, {saved['video'][i]}" for i in saved["drawn"]]
    written += save_both(feature_figure(frames, features, titles, f"{model}: dense features"), output_dir / "features")
    print("Written\n" + "\n".join(f"  {path}" for path in written))


if __name__ == "__main__":
    main()
