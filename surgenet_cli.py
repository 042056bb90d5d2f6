"""Entry point of the `surgenet` command.

It is outside of the package because importing `surgenet_hf` imports torch and transformers, which takes seconds. The
list of commands, the version, and unknown commands need neither.
"""

import difflib
import importlib
import sys
from importlib.metadata import version

# name of the command, also of its module in `surgenet_hf.cli`: what it does
COMMANDS = {
    "quickstart": "Fine-tune and evaluate a segmentation model, offline on synthetic frames by default.",
    "finetune-segmentation": "Fine-tune and evaluate a model for semantic segmentation.",
    "finetune-classification": "Fine-tune and evaluate a model for frame classification, e.g. CVS or tools.",
    "finetune-phase": "Fine-tune and evaluate a model for phase recognition, in two stages.",
    "evaluate": "Evaluate a fine-tuned model on a split of a dataset.",
    "probe": "Evaluate frozen features on a labeled dataset by k-NN or a linear probe.",
    "predict": "Predict on images and videos: masks, labels, phases, or embeddings.",
    "protocol": "Train and evaluate models on datasets under one protocol, and report the results.",
    "compare": "Compare models from their results files.",
    "plot-embeddings": "Plot a t-SNE of frame embeddings, and dense features as colors.",
    "show-data": "Show the size, classes, and samples of a dataset.",
    "convert": "Convert a weight file to a model folder.",
    "inspect": "Print what a weight file contains.",
    "export": "Export a model to ONNX or torch.export, compared with the original.",
    "publish": "Upload converted checkpoints or a fine-tuned model to the Hub.",
    "prepare-frames": "Extract frames of videos and pack them into shards for pretraining.",
    "pretrain": "Pretrain a backbone with DINO.",
    "demo": "Start the Gradio demo.",
    "push-space": "Upload the Gradio demo as a Space.",
    "env": "Print the versions of the software and the devices of this machine, for bug reports.",
}


def main(argv: list[str] | None = None) -> None:
    """Run `surgenet COMMAND [OPTIONS]`."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
    elif argv[0] == "--version":
        print(f"surgenet_hf {version('surgenet_hf')}")
    elif argv[0] not in COMMANDS:
        near = [name for name in COMMANDS if name.startswith(argv[0])] or difflib.get_close_matches(argv[0], COMMANDS)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        print(
            f"surgenet: error: unknown command {argv[0]!r}.{hint} `surgenet --help` lists the commands.",
            file=sys.stderr,
        )
        sys.exit(2)
    else:
        sys.argv[0] = f"surgenet {argv[0]}"
        importlib.import_module(f"surgenet_hf.cli.{argv[0].replace('-', '_')}").main(argv[1:])


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: surgenet COMMAND [OPTIONS]",
            "",
            "SurgeNet surgical foundation models: fine-tune, evaluate, compare, convert, publish, and pretrain.",
            "",
            *lines,
            "",
            "`surgenet COMMAND --help` lists the options of a command, `surgenet --version` prints the version.",
        ]
    )


if __name__ == "__main__":
    main()
