"""Show samples of a dataset with their labels, to check that it is read correctly.

  surgenet show-data --dataset endoscapes --data_dir endoscapes
  surgenet show-data --dataset endoscapes-cvs --data_dir endoscapes --split validation --output cvs.png

Without the data, `surgenet show-data --dataset NAME` prints where to download it and which layout is expected.
"""

from dataclasses import MISSING, dataclass

from ..data import DATASETS, dataset_names
from ..errors import MissingFileError, UserError
from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class ShowArguments:
    """Which samples are shown."""

    dataset: str = option(MISSING, "Name of the dataset.", choices=[*dataset_names()])
    data_dir: str | None = option(None, "Folder of the dataset; synthetic data needs none.")
    split: str = option("train", "Split of the samples: train, validation, or test.")
    num_frames: int = option(8, "Number of samples.")
    seed: int = option(0, "Seed of the choice of samples.")
    output: str | None = option(None, "File to write. Default: outputs/DATASET_SPLIT.png.")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(ShowArguments, prog="surgenet show-data", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)

    from importlib import import_module

    from ..data import load_data
    from ..data.show import show
    from ..figures import save_figure

    dataset = DATASETS[args.dataset]
    module = import_module(f"surgenet_hf.data.sets.{dataset.module}")
    try:
        data = load_data(args.dataset, args.data_dir)
    except UserError as error:
        if args.data_dir and not isinstance(error, MissingFileError):
            raise  # downloading the data again would not help
        source = getattr(module, "SOURCE", None) or f"see the documentation of {module.__name__}"
        raise UserError(f"{error}\nWhere to download {args.dataset}: {source}") from error
    output = args.output or f"outputs/{args.dataset}_{args.split}.png"
    save_figure(show(data, args.split, args.num_frames, args.seed), output)
    print(*data.notes, f"Written: {output}", sep="\n")


if __name__ == "__main__":
    main()
