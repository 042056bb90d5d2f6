"""What the three fine-tuning commands share: parse, train and evaluate, print, and upload."""

from collections.abc import Callable
from pathlib import Path

from .arguments import ArgumentParser


def run_finetuning(name: str, dataclasses: tuple[type, ...], doc: str, argv: list[str] | None, run: Callable) -> None:
    """Parse a command line, run it, print the results, and upload the model if requested.

    Trainer itself never uploads: it is done at the end, with the package's own card.

    Args:
        name: command, e.g. "finetune-phase".
        dataclasses: options. The last one is a `TrainingArguments`.
        doc: docstring of the command, shown by `--help`.
        argv: command line without the program. None: that of the process.
        run: function that imports the training code and runs it with (*options, command).
    """
    parser = ArgumentParser(dataclasses, prog=f"surgenet {name}", description=doc)
    options = parser.parse_args_into_dataclasses(argv)
    training_args = options[-1]
    push, training_args.push_to_hub = training_args.push_to_hub, False
    if push:
        from ..publishing.upload import check_login

        check_login()  # a missing token shows now, not after training
    results = run(*options, command=parser.command_line())

    from ..distributed import is_main_process
    from ..evaluation.reporting import summary

    if not is_main_process():
        return
    output_dir = Path(training_args.output_dir)
    parser.save_resolved(output_dir)
    print(summary(results), f"Written to {output_dir}: model, results.json, run.yaml, figures", sep="\n")
    if push:
        from ..publishing.upload import push_model

        names = training_args.publish_video_names
        private = training_args.hub_private_repo
        repo_id = push_model(output_dir / "model", training_args.hub_model_id, private, output_dir.name, names)
        print(f"Published {repo_id}")
