"""What the three fine-tuning commands share: parse, train and evaluate, print, and upload."""

from pathlib import Path

from ..finetuning.arguments import OPTIONS
from .arguments import ArgumentParser


def run_finetuning(name: str, task: str, doc: str, argv: list[str] | None) -> None:
    """Parse a command line, run it, print the results, and upload the model if requested.

    Trainer itself never uploads: it is done at the end, with the package's own card.

    Args:
        name: command, e.g. "finetune-phase".
        task: name of the task in `finetuning.arguments.OPTIONS`.
        doc: docstring of the command, shown by `--help`.
        argv: command line without the program. None: that of the process.
    """
    parser = ArgumentParser(OPTIONS[task], prog=f"surgenet {name}", description=doc)
    options = parser.parse_args_into_dataclasses(argv)
    training_args = options[-1]
    push, training_args.push_to_hub = training_args.push_to_hub, False
    if push:
        from ..publishing.upload import check_login, push_model

        check_login()  # a missing token shows now, not after training

    from .. import finetuning
    from ..distributed import is_main_process
    from ..evaluation.reporting import summary

    output_dir = Path(training_args.output_dir)
    command, on_start = parser.command_line(), lambda: parser.save_resolved(output_dir)
    results = finetuning.finetune(task, *options, command=command, on_start=on_start)
    if not is_main_process():
        return
    if results is not None:
        print(summary(results))
    print(f"Written to {output_dir}: model, run.yaml" + ", results.json, figures" * (results is not None))
    if push:
        repo_id = push_model(
            output_dir / "model",
            training_args.hub_model_id,
            training_args.hub_private_repo,
            output_dir.name,
            training_args.publish_video_names,
        )
        print(f"Published {repo_id}")
