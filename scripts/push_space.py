"""Build the repository of the demo Space and, with --push, upload it.

A Space's build sees its own repository alone, and this package is not on PyPI: so the repository holds, beside the
files of spaces/surgenet-demo, the package itself. Without --push it is built, and what would change is shown.

python scripts/push_space.py --repo_id me/surgenet-demo --output_dir prepared
python scripts/push_space.py --repo_id me/surgenet-demo --push --private
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.publishing.repositories import check_login, publish_folder

ROOT = Path(__file__).parents[1]
SUFFIXES = (".css", ".jpg", ".md", ".mp4", ".png", ".py", ".txt", ".typed")  # of the files of app and package


@dataclass
class SpaceArguments:
    repo_id: str = field(metadata={"help": "ORG/NAME of the Space."})
    push: bool = field(default=False, metadata={"help": "Upload. Without it nothing on the Hub changes."})
    private: bool = field(default=False, metadata={"help": "Make a new Space private."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder to build the Space's own in; left out: a temporary one."}
    )


def prepare_space(folder: Path) -> None:
    """Write all that the Space's repository holds: the app, the package and the licence of both."""
    shutil.copytree(ROOT / "spaces" / "surgenet-demo", folder, ignore=_others)
    shutil.copytree(ROOT / "surgenet_hf", folder / "surgenet_hf", ignore=_others)
    shutil.copy(ROOT / "LICENSE", folder)


def _others(folder: str, names: list[str]) -> set[str]:
    """The names in a folder that do not belong to app or package: caches, settings, what editors leave."""
    ours = {name for name in names if Path(folder, name).is_dir() or Path(name).suffix in SUFFIXES}
    return {name for name in names if name not in ours or name.startswith(".") or name == "__pycache__"}


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(SpaceArguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    try:
        validate_repo_id(args.repo_id)
        if "/" not in args.repo_id:
            raise ValueError(f"--repo_id must be ORG/NAME, got {args.repo_id}")
        if args.push:
            check_login()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.output_dir or temporary, args.repo_id.split("/")[1])
        outcome = publish_folder(args.repo_id, folder, prepare_space, args.push, args.private, repo_type="space")
    if outcome.error:
        sys.exit(f"error: {args.repo_id}: {outcome.error}")
    for change in outcome.changes:
        print(change)
    if args.output_dir:
        print(f"Built {folder}: `python app.py` there starts it")
    if outcome.not_compared:
        print(f"{args.repo_id}: not compared with the files there: {outcome.not_compared}")
    elif not outcome.changes:
        print(f"{args.repo_id}: as on the Hub")
    elif args.push:
        print(f"{args.repo_id}: commit {outcome.commit}")
    else:
        print(f"{args.repo_id}: {len(outcome.changes)} files to change; --push uploads them")


if __name__ == "__main__":
    main()
