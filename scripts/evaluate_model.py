"""Evaluate a saved model on any split of a data set: results.json with intervals, and figures.

python scripts/evaluate_model.py --model_name_or_path outputs/endoscapes/model --dataset endoscapes --data_dir D \
    --split validation --output_dir outputs/endoscapes/validation
torchrun --nproc_per_node 2 scripts/evaluate_model.py ...   # the same figures
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

import surgenet_hf  # noqa: F401  (makes the Auto classes know our models)
from surgenet_hf.cli.arguments import BACKGROUND_HELP, ArgumentParser
from surgenet_hf.data import NAMES, load_data, registered
from surgenet_hf.evaluation.evaluate import evaluate, recorded_seed, write_results
from surgenet_hf.evaluation.reporting import summary, write_figures
from surgenet_hf.image_processing import load_image_processor
from surgenet_hf.models import resolve_model
from surgenet_hf.privacy import mask_tokens

TASKS = {
    "SurgeNetForSemanticSegmentation": (AutoModelForSemanticSegmentation, ("semantic-segmentation",)),
    "SurgeNetForImageClassification": (AutoModelForImageClassification, ("image-classification", "phase-recognition")),
    "SurgeNetForPhaseRecognition": (AutoModel, ("image-classification", "phase-recognition")),
}


@dataclass
class EvaluationArguments:
    model_name_or_path: str = field(
        metadata={
            "help": "A fine-tuned model: its folder, the output folder of its training, or a repository on the Hub."
        }
    )
    dataset: str = field(metadata={"help": f"Name of the data set. {NAMES}"})
    output_dir: str = field(metadata={"help": "Folder for results.json and figures."})
    data_dir: str | None = field(default=None, metadata={"help": "Where the data set lies."})
    data_split: str | None = field(
        default=None, metadata={"help": "Split protocol, for data sets that have several; as in training."}
    )
    background_class: str | None = field(default=None, metadata={"help": BACKGROUND_HELP})
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Frames at a time."})


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(EvaluationArguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    state = PartialState(cpu=not torch.accelerator.is_available())
    try:
        args.model_name_or_path = resolve_model(args.model_name_or_path)
        config = AutoConfig.from_pretrained(args.model_name_or_path)
        architecture = (config.architectures or ["unknown model"])[0]
        if architecture not in TASKS:
            raise ValueError(
                f"{args.model_name_or_path} holds a {architecture}, which has no trained head to evaluate; it must be "
                f"one of {', '.join(TASKS)}: fine-tune it first"
            )
        auto, tasks = TASKS[architecture]
        if (task := registered(args.dataset).task) not in tasks:
            raise ValueError(f"a {architecture} cannot be evaluated on {args.dataset}, which is for {task}")
        options = {"split_protocol": args.data_split, "background_class": args.background_class}
        data = load_data(args.dataset, args.data_dir, **{name: value for name, value in options.items() if value})
        model = auto.from_pretrained(args.model_name_or_path, dtype=torch.float32).to(state.device)
        processor = load_image_processor(args.model_name_or_path)
        seed = recorded_seed(args.model_name_or_path)
        evaluation = evaluate(model, processor, data, args.split, args.per_device_eval_batch_size, seed)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend: the message is enough
        sys.exit(mask_tokens(f"error ({args.model_name_or_path} on {args.dataset}): {error}"))
    if state.is_main_process:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        write_figures(evaluation, model, processor, data, args.split, args.output_dir)
        write_results(evaluation.results, Path(args.output_dir, "results.json"))
        print(summary(evaluation.results))


if __name__ == "__main__":
    main()
