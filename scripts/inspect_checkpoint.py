"""Say what a weight file holds, without running code from it.

python scripts/inspect_checkpoint.py SurgeNetXL_checkpoint0050.pth
python scripts/inspect_checkpoint.py SurgeNetXL --json
"""

import argparse
import json
import sys
from pathlib import Path

from surgenet_hf.checkpoints.catalog import find_entry
from surgenet_hf.checkpoints.inspection import inspect_checkpoint
from surgenet_hf.models import download_teacher
from surgenet_hf.privacy import mask_tokens


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file_or_name", help="A weight file, or the name of a published checkpoint to download.")
    parser.add_argument("--network", choices=["teacher", "student"], default="teacher", help="Of a DINO checkpoint.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    args = parser.parse_args(argv)
    path = Path(args.file_or_name)
    try:
        # what looks like a path is one, so that a mistyped file name is not looked up as a checkpoint's name
        if not path.exists() and not path.suffix and len(path.parts) == 1:
            path = download_teacher(find_entry(args.file_or_name))
        description = inspect_checkpoint(path, args.network)
    except (OSError, ValueError) as error:
        sys.exit(mask_tokens(f"error: {error}"))
    if args.json:
        print(json.dumps(description, indent=2))
        return
    for key, value in description.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name:<26}{item}")
        else:
            print(f"{key:<14}{'-' if value in (None, '') else f'{value:,}' if isinstance(value, int) else value}")


if __name__ == "__main__":
    main()
