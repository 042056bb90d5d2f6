"""Upload published checkpoints, or a fine-tuned or pretrained SurgeNet model of your own, to the Hub.

Without --push, the repositories are prepared and the changes are listed, but nothing is uploaded. This also works
offline, but without the comparison with the Hub. For your own model, the names of videos and datasets in its files are
listed. Neutral names replace the names of your own videos, unless you give --publish_video_names.

  surgenet publish --names SurgeNetXL,SurgeNet-Public --output_dir prepared
  surgenet publish --names all --push
  surgenet publish --model outputs/quickstart/model --repo_id me/my-model --push --private
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.catalog import CATALOG, NAMESPACE, find_entry
from ..options import option
from .arguments import ArgumentParser, command

if TYPE_CHECKING:
    from ..publishing.upload import Outcome


@dataclass
class PublishArguments:
    """Arguments of `surgenet publish`."""

    names: str | None = option(None, "Names of published checkpoints, separated by commas, or `all`.")
    namespace: str = option(
        NAMESPACE,
        f"User or organization of the repositories of --names. Default: {NAMESPACE}, the maintainers' namespace.",
    )
    model: str | None = option(None, "Folder of your own model, or output folder of its run, instead of --names.")
    repo_id: str | None = option(None, "ORG/NAME of the repository of --model.")
    push: bool = option(False, "Whether to upload. Otherwise, the changes are only listed.")
    private: bool = option(False, "Whether new repositories are private.")
    publish_video_names: bool = option(
        False, "Whether to publish the names of your own videos. Otherwise, neutral names replace them."
    )
    onnx: bool = option(False, "Whether to add onnx/model.onnx to the repository of --model.")
    output_dir: str | None = option(None, "Folder for the prepared repositories. Default: a temporary folder.")


@command
def main(argv: list[str] | None = None) -> None:
    """Prepare and upload repositories, and print a table; the exit code is 1 if one failed."""
    parser = ArgumentParser(PublishArguments, prog="surgenet publish", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    if (args.names is None) == (args.model is None):
        parser.error("give either --names or --model")
    if (args.model is None) != (args.repo_id is None) or (args.repo_id and args.repo_id.count("/") != 1):
        parser.error("give --model and --repo_id ORG/NAME together")
    if args.onnx and not args.model:
        parser.error("--onnx is for --model; export a published checkpoint with surgenet export --task embeddings")
    names = [entry.name for entry in CATALOG] if args.names == "all" else (args.names or "").split(",")
    entries = [find_entry(name, "Publish your own model with --model and --repo_id") for name in names if name]
    from ..publishing.upload import check_login, publish_checkpoints, publish_finetuned

    if args.push:
        check_login()
    with tempfile.TemporaryDirectory() as temporary:
        output_dir = Path(args.output_dir or temporary)
        if args.model:
            outcome = publish_finetuned(
                args.model, args.repo_id, output_dir, args.push, args.private, args.publish_video_names, args.onnx
            )
            print_outcome(outcome)
            if not args.push:
                print_names(outcome)
            outcomes = [outcome]
        else:
            outcomes = publish_checkpoints(
                entries, args.namespace, output_dir, args.push, args.private, report=print_outcome
            )
    print(f"\n{'repository':<44}{'published' if args.push else 'changes (nothing was uploaded)'}")
    for outcome in outcomes:
        print(f"{outcome.repo_id:<44}{summarize(outcome, args.push)}")
    sys.exit(any(outcome.error for outcome in outcomes))


def summarize(outcome: "Outcome", push: bool) -> str:
    """Return the cell of an outcome in the table."""
    if outcome.error:
        return "FAILED"
    if outcome.not_compared:
        return f"{len(outcome.changes)} files prepared, not compared with the Hub"
    if not outcome.changes:
        return "unchanged"
    return f"commit {outcome.commit}" if push else f"{len(outcome.changes)} files"


def print_outcome(outcome: "Outcome") -> None:
    """Print the changes of a repository, or its error."""
    print(f"{outcome.repo_id}: {outcome.error or ', '.join(outcome.changes) or 'unchanged'}", flush=True)
    if outcome.not_compared:
        print(f"{outcome.repo_id}: not compared with the Hub: {outcome.not_compared}", flush=True)


def print_names(outcome: "Outcome") -> None:
    """Print the names in the files of a model, which may reveal more than the user wants to publish."""
    print("Names that would be published:")
    for kind, names in outcome.names.items():
        print(f"  {kind}: {', '.join(names)}")


if __name__ == "__main__":
    main()
