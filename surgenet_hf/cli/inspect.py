"""Print what a weight file contains, without running code from it.

surgenet inspect SurgeNetXL_checkpoint0050.pth
surgenet inspect SurgeNetXL --json
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class InspectArguments:
    """Options of `surgenet inspect`."""

    network: str = option(
        "teacher",
        "Network of a full DINO checkpoint to describe. Default: teacher, which the authors publish.",
        choices=["teacher", "student"],
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Print the description of a weight file."""
    parser = ArgumentParser(InspectArguments, prog="surgenet inspect", description=__doc__)
    parser.add_argument("file_or_name", help="Weight file, or name of a published checkpoint, which is downloaded.")
    # not a field, whose option would take a file name after it for its value
    parser.add_argument("--json", action="store_true", help="Whether to print JSON instead of a table.")
    options = vars(parser.parse_args(argv))
    from ..checkpoints.catalog import find_entry
    from ..checkpoints.inspection import inspect_checkpoint
    from ..models import download_teacher

    path = Path(options["file_or_name"])
    # a mistyped file name is not looked up as the name of a checkpoint
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        path = download_teacher(
            find_entry(options["file_or_name"], "To inspect your own model, give the path of its weight file")
        )
    description = inspect_checkpoint(path, options["network"])
    if options["json"]:
        print(json.dumps(description, indent=2))
        return
    for key, value in description.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name:<26}{item}")
        else:
            print(f"{key:<16}{'-' if value in (None, '') else f'{value:,}' if isinstance(value, int) else value}")


if __name__ == "__main__":
    main()
