"""Build the repository of the demo Space, and upload it with --push.

Without --push, the repository is built and the changes are listed, but nothing is uploaded.

  surgenet push-space --repo_id me/surgenet-demo --output_dir prepared
  surgenet push-space --repo_id me/surgenet-demo --push --private
"""

import tempfile
from dataclasses import MISSING, dataclass
from pathlib import Path

from ..errors import UserError
from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class SpaceArguments:
    """Arguments of `surgenet push-space`."""

    repo_id: str = option(MISSING, "ORG/NAME of the Space.")
    push: bool = option(False, "Whether to upload. Otherwise, the changes are only listed.")
    private: bool = option(False, "Whether a new Space is private.")
    output_dir: str | None = option(
        None, "Folder in which the folder NAME of the Space is built. Default: a temporary folder."
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Build and upload the Space, and print what changed."""
    parser = ArgumentParser(SpaceArguments, prog="surgenet push-space", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from ..publishing.spaces import prepare_space
    from ..publishing.upload import check_login, publish_folder

    try:
        validate_repo_id(args.repo_id)
    except HFValidationError as error:
        parser.error(f"--repo_id: {error}")
    if "/" not in args.repo_id:
        parser.error(f"--repo_id must be ORG/NAME, got {args.repo_id}")
    if args.push:
        check_login()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.output_dir or temporary, args.repo_id.split("/")[1])
        outcome = publish_folder(args.repo_id, folder, prepare_space, args.push, args.private, repo_type="space")
    if outcome.error:
        raise UserError(f"{args.repo_id}: {outcome.error}")
    for change in outcome.changes:
        print(change)
    if args.output_dir:
        print(f"Built {folder}; start it with `python app.py` in this folder")
    if outcome.not_compared:
        print(f"{args.repo_id}: not compared with the Hub: {outcome.not_compared}")
    elif not outcome.changes:
        print(f"{args.repo_id}: unchanged")
    elif args.push:
        print(f"{args.repo_id}: commit {outcome.commit}")
    else:
        print(f"{args.repo_id}: {len(outcome.changes)} files to change; --push uploads them")


if __name__ == "__main__":
    main()
