"""Evaluate a fine-tuned model on a split of a dataset: results.json with intervals, and figures.

  surgenet evaluate --model_name_or_path outputs/endoscapes --dataset endoscapes --data_dir endoscapes \\
      --split validation --output_dir outputs/endoscapes/validation
  torchrun --nproc_per_node 2 -m surgenet_hf.cli.evaluate ...

With several processes, each evaluates a part of the frames. The results are the same as with one process.
"""

from dataclasses import MISSING, dataclass

from ..finetuning.arguments import DataArguments
from ..inference.settings import RuntimeArguments, check_arguments
from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class EvaluationArguments:
    """Which model is evaluated, and where the results go."""

    model_name_or_path: str = option(
        MISSING, "Fine-tuned model: its folder, the output folder of its training, or a Hub repository."
    )
    output_dir: str = option(MISSING, "Folder for results.json, run.yaml, and figures.")
    split: str | None = option(
        None, "Split to evaluate on. Default: test if the dataset has it, otherwise validation."
    )
    per_device_eval_batch_size: int = option(8, "Number of frames per forward pass.")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(
        (EvaluationArguments, DataArguments, RuntimeArguments), prog="surgenet evaluate", description=__doc__
    )
    args, data_args, runtime = parser.parse_args_into_dataclasses(argv)

    from ..data import load_data
    from ..distributed import is_main_process
    from ..evaluation.reporting import summary
    from ..evaluation.saved_model import evaluate_model

    check_arguments(runtime)
    data = load_data(data_args.dataset, data_args.data_dir, **data_args.options())
    results = evaluate_model(
        args.model_name_or_path,
        data,
        args.split,
        args.per_device_eval_batch_size,
        args.output_dir,
        parser.command_line(),
        runtime,
    )
    if is_main_process():
        parser.save_resolved(args.output_dir)
        print(summary(results), f"Written to {args.output_dir}: results.json, run.yaml, figures", sep="\n")


if __name__ == "__main__":
    main()
