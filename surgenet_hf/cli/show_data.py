"""Show samples of a dataset with their labels, to check that it is read correctly.

  surgenet show-data --dataset endoscapes --data_dir endoscapes
  surgenet show-data --dataset endoscapes-cvs --data_dir endoscapes --split validation --output cvs.png

Without --data_dir, the command prints where to get the dataset and which layout is expected.
"""

import inspect
from dataclasses import MISSING, dataclass
from importlib import import_module
from pathlib import Path

from ..data import DATASETS, dataset_names
from ..errors import UserError
from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class ShowArguments:
    """Which samples are shown."""

    dataset: str = option(MISSING, "Name of the dataset.", choices=[*dataset_names()])
    data_dir: str | None = option(None, "Folder of the dataset. Not needed for synthetic data.")
    split: str = option("train", "Split of the samples: train, validation, or test.")
    num_frames: int = option(8, "Number of samples in the figure.")
    seed: int = option(0, "Seed of the random choice of samples. Default: 0.")
    output: str | None = option(None, "Figure file to write (.png, .pdf, ...). Default: outputs/DATASET_SPLIT.png.")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(ShowArguments, prog="surgenet show-data", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)

    from ..checkpointing import check_output_dir
    from ..data import load_data
    from ..data.show import show
    from ..figures import save_figure

    if args.data_dir is None and DATASETS[args.dataset].needs_folder:
        raise UserError(f"--data_dir is missing; give the folder of {args.dataset}\n\n{describe_layout(args.dataset)}")
    data = load_data(args.dataset, args.data_dir)
    output = Path(args.output or f"outputs/{args.dataset}_{args.split}.png")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder, expected a file such as {output / 'samples.png'}")
    check_output_dir(output.parent, "--output: the folder")
    save_figure(show(data, args.split, args.num_frames, args.seed), output)
    print(*data.notes, f"Written: {output}", sep="\n")


def describe_layout(name: str) -> str:
    """Return the documentation of a dataset up to its last table: what it is, where to get it, and its layout."""
    module = import_module(f"surgenet_hf.data.sets.{DATASETS[name].module}")
    paragraphs = inspect.cleandoc(module.__doc__).split("\n\n")
    last = max(number for number, text in enumerate(paragraphs) if text.startswith(" "))
    return "\n\n".join(paragraphs[: last + 1])


if __name__ == "__main__":
    main()
