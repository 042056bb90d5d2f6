"""Prepare, check and publish the SurgeNet checkpoints, or a fine-tuned SurgeNet model of your own, on the Hub.

Without --push everything but the upload is done, and what would change is shown. This works offline too, without the
comparison with the Hub. For a model of your own, the names of videos and data in its files are shown as well. Your own
videos get neutral names, unless --publish_video_names.

python scripts/publish_checkpoints.py --names SurgeNetXL,SurgeNet-Public --output_dir prepared
python scripts/publish_checkpoints.py --names all --push
python scripts/publish_checkpoints.py --model outputs/quickstart/model --repo_id me/my-model --push --private
"""

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from surgenet_hf.checkpoints.catalog import CATALOG, NAMESPACE, find_entry
from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.privacy import mask_tokens
from surgenet_hf.publishing.repositories import Outcome, check_login, publish_checkpoints, publish_finetuned


@dataclass
class PublishingArguments:
    names: str | None = field(default=None, metadata={"help": "Published checkpoints, separated by commas, or all."})
    namespace: str = field(default=NAMESPACE, metadata={"help": "User or organisation that they are published under."})
    model: str | None = field(default=None, metadata={"help": "Instead: folder of your own fine-tuned model."})
    repo_id: str | None = field(default=None, metadata={"help": "ORG/NAME that --model is published as."})
    push: bool = field(default=False, metadata={"help": "Upload. Without it nothing on the Hub changes."})
    private: bool = field(default=False, metadata={"help": "Make new repositories private."})
    publish_video_names: bool = field(
        default=False, metadata={"help": "Publish the real names of your own videos; left out: neutral names."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder to prepare the repositories in; left out: a temporary one."}
    )


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(PublishingArguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    if (args.names is None) == (args.model is None):
        parser.error("give either --names or --model")
    if (args.model is None) != (args.repo_id is None) or (args.repo_id and args.repo_id.count("/") != 1):
        parser.error("--model and --repo_id ORG/NAME go together")
    try:
        names = [entry.name for entry in CATALOG] if args.names == "all" else (args.names or "").split(",")
        entries = [find_entry(name) for name in names if name]
        if args.push:
            check_login()
    except (OSError, ValueError) as error:
        sys.exit(mask_tokens(f"error: {error}"))
    with tempfile.TemporaryDirectory() as temporary:
        output_dir = Path(args.output_dir or temporary)
        if args.model:
            outcomes = [
                publish_finetuned(
                    args.model, args.repo_id, output_dir, args.push, args.private, args.publish_video_names
                )
            ]
            tell(outcomes[0])
            if not args.push:
                tell_names(outcomes[0])
        else:
            outcomes = publish_checkpoints(entries, args.namespace, output_dir, args.push, args.private, report=tell)
    print(f"\n{'repository':<44}{'published' if args.push else 'nothing uploaded; to change'}")
    for outcome in outcomes:
        print(f"{outcome.repo_id:<44}{state(outcome, args.push)}")
    sys.exit(any(outcome.error for outcome in outcomes))


def state(outcome: Outcome, push: bool) -> str:
    if outcome.error:
        return "FAILED"
    if outcome.not_compared:
        return f"{len(outcome.changes)} files prepared, not compared with the Hub"
    if not outcome.changes:
        return "unchanged"
    return f"commit {outcome.commit}" if push else f"{len(outcome.changes)} files"


def tell(outcome: Outcome) -> None:
    print(f"{outcome.repo_id}: {outcome.error or ', '.join(outcome.changes) or 'as on the Hub'}", flush=True)
    if outcome.not_compared:
        print(f"{outcome.repo_id}: not compared with the files there: {outcome.not_compared}", flush=True)


def tell_names(outcome: Outcome) -> None:
    """Print the names in a model's files, which may tell more than the user wants to publish."""
    print("Names that would be published:")
    for kind, names in outcome.names.items():
        print(f"  {kind}: {', '.join(names)}")


if __name__ == "__main__":
    main()
