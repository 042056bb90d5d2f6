"""Draw some frames of a data set with their labels, to see whether it was read as it should be.

python scripts/show_data.py --dataset endoscapes --data_dir endoscapes
python scripts/show_data.py --dataset endoscapes-cvs --data_dir endoscapes --split validation --output cvs.png
"""

import sys
from dataclasses import dataclass, field
from importlib import import_module

from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.data import dataset_names, load_data, registered
from surgenet_hf.data.show import show
from surgenet_hf.figures import save_figure
from surgenet_hf.privacy import mask_tokens


@dataclass
class Arguments:
    dataset: str = field(
        metadata={"help": "The data set.", "choices": dataset_names()},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Where the data set lies; synthetic frames need no place."}
    )
    split: str = field(default="train", metadata={"help": "Which part to draw from: train, validation or test."})
    num_frames: int = field(default=8, metadata={"help": "How many frames to draw."})
    seed: int = field(default=0, metadata={"help": "Another seed, other frames."})
    output: str | None = field(
        default=None, metadata={"help": "The picture to write. Left out: outputs/<dataset>_<split>.png."}
    )


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(Arguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    output = args.output or f"outputs/{args.dataset}_{args.split}.png"
    try:
        data = load_data(args.dataset, args.data_dir)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}\n{where_to_get(args.dataset)}")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(mask_tokens(f"error: {error}" + ("" if args.data_dir else f"\n{where_to_get(args.dataset)}")))
    print(*data.notes, sep="\n")
    try:
        save_figure(show(data, args.split, args.num_frames, args.seed), output)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Written: {output}")


def where_to_get(dataset: str) -> str:
    """One line: where a data set is to be had, or where that is written."""
    module = f"surgenet_hf.data.sets.{registered(dataset).module}"
    source = getattr(import_module(module), "SOURCE", None)
    return f"Where to get {dataset}: {source or f'see the top of {module}'}"


if __name__ == "__main__":
    main()
