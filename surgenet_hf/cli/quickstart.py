"""Fine-tune a segmentation model, evaluate it, save it, and draw its predictions: a first run in a few minutes.

On synthetic surgical frames, offline:

  surgenet quickstart

On real laparoscopic frames (Endoscapes2023 as downloaded), with a full-size backbone from random weights:

  surgenet quickstart --dataset endoscapes --data_dir data/endoscapes --backbone caformer_s18 \\
      --image_size 224 --max_steps 600 --per_device_train_batch_size 8 --bf16 --output_dir outputs/endoscapes

On your own frames (D/images, D/masks, and optionally D/classes.txt), from a converted checkpoint:

  surgenet quickstart --dataset folder --data_dir D --model_name_or_path outputs/surgenetxl
"""

import queue
import threading
from dataclasses import dataclass
from pathlib import Path

from ..configuration_surgenet import BACKBONES, SurgeNetConfig
from ..errors import UnavailableError, UserError
from ..options import option
from .arguments import ArgumentParser, command

DEFAULT_MODEL = "SurgeNetXL"


@dataclass
class QuickstartArguments:
    """What is trained, on which data, and for how long."""

    output_dir: str = option(
        "outputs/quickstart", "Folder for the model, results.json, run.yaml, and segmentation.png."
    )
    dataset: str = option("synthetic", "Name of the dataset.", choices=["synthetic", "endoscapes", "folder"])
    data_dir: str | None = option(None, "Folder of the dataset. Not needed for synthetic data.")
    model_name_or_path: str | None = option(
        None,
        "Model to start from: a published checkpoint by name, a Hub repository, or a folder. Default: "
        f"{DEFAULT_MODEL}, or a small, randomly initialized model if the Hub cannot be reached.",
    )
    backbone: str | None = option(
        None,
        "Backbone with random weights to start from, instead of --model_name_or_path.",
        choices=[*BACKBONES, "tiny"],
    )
    max_steps: int = option(150, "Number of training steps.")
    per_device_train_batch_size: int = option(8, "Number of frames per step and device.")
    learning_rate: float | None = option(
        None,
        "Peak learning rate of AdamW, with cosine decay. Default: 1e-4, the authors' value for "
        "segmentation; 1e-3 from random weights.",
    )
    image_size: int = option(128, "Height and width in pixels to which frames are resized.")
    bf16: bool = option(False, "Whether to train under bfloat16 autocast, which is faster if supported.")
    seed: int = option(0, "Seed of the initial weights, the order of the frames, and the augmentation. Default: 0.")

    def __post_init__(self):
        if self.model_name_or_path and self.backbone:
            raise UserError("--model_name_or_path and --backbone exclude each other")
        if Path(self.output_dir).is_file():
            raise UserError(f"--output_dir {self.output_dir} is a file, expected a folder")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(QuickstartArguments, prog="surgenet quickstart", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)

    from transformers import set_seed

    from ..checkpointing import lock_run
    from ..data import load_data
    from ..evaluation.evaluate import evaluate, majority_class_baseline, training_record, write_results
    from ..evaluation.reporting import comparison_table, draw_segmentation
    from ..evaluation.results import FINE_TUNING
    from ..evaluation.saved_model import check_saved_model
    from ..figures import save_figure
    from ..finetuning.segmentation import build_model, finetune
    from ..finetuning.trainer import trained_model

    output_dir = Path(args.output_dir)
    data = load_data(args.dataset, args.data_dir)
    print(*data.notes, sep="\n")
    source = choose_source(args)
    set_seed(args.seed)
    model, processor = build_model(source, data, args.image_size)
    args.learning_rate = args.learning_rate or (1e-3 if isinstance(source, SurgeNetConfig) else 1e-4)
    parser.resolved |= vars(args)
    training_args = training_arguments(args)
    with lock_run(output_dir):
        parser.save_resolved(output_dir)
        baseline = majority_class_baseline(data)
        model.to(training_args.device)
        before = evaluate(model, processor, data).results["metrics"]
        model = trained_model(finetune(model, processor, data, training_args))
        training = training_record(data, FINE_TUNING)
        results = evaluate(
            model, processor, data, seed=args.seed, training=training, command=parser.command_line()
        ).results
        results["comparisons"] = {"majority_class": baseline, "before_training": before}

        model_dir, picture = output_dir / "model", output_dir / "segmentation.png"
        model.save_pretrained(model_dir)
        processor.save_pretrained(model_dir)
        results["model"]["name"] = str(model_dir)
        write_results(results, output_dir / "results.json")

        dice = results["metrics"]["video_dice"]
        figure, rows, class_maps = draw_segmentation(model, processor, data, "validation", dice)
        agreement = check_saved_model(model_dir, rows, class_maps, model.device)
        save_figure(figure, picture)

    print(f"\n{data.name}, validation split: {results['data']['frames']} frames, in %")
    print(comparison_table({"majority class": baseline, "before": before, "after": results["metrics"]}))
    print(f"""
The saved model was loaded with AutoModelForSemanticSegmentation and with pipeline("image-segmentation"); both agree
with the trained model on {agreement:.2%} of the pixels.

Written
  {model_dir}    model and image processor
  {output_dir / "results.json"}    all metrics
  {picture}    frames, labels, and predictions

Next
  python -c "import surgenet_hf; from transformers import pipeline; \
print(pipeline('image-segmentation', '{model_dir}')('YOUR_FRAME.jpg'))"
  surgenet quickstart --dataset folder --data_dir YOUR_FOLDER --model_name_or_path {model_dir}""")


def training_arguments(args: QuickstartArguments):
    """Return the arguments of Trainer."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.05,
        logging_steps=max(1, args.max_steps // 10),
        save_strategy="no",
        bf16=args.bf16,
        use_cpu=not torch.accelerator.is_available(),  # otherwise Trainer refuses bf16 there
        seed=args.seed,
        dataloader_pin_memory=False,
    )


def choose_source(args: QuickstartArguments) -> str | SurgeNetConfig:
    """Resolve what to start from: what the user named, otherwise SurgeNetXL, otherwise a small random model.

    The choice is set in the arguments, to be saved.
    """
    from ..checkpoints.catalog import find_entry
    from ..models import TINY, fetch_checkpoint, resolve_model

    if args.model_name_or_path:
        return resolve_model(args.model_name_or_path)
    if args.backbone:
        config = resolve_model(None, args.backbone)
        config.drop_path_rate = 0.0 if args.backbone == "tiny" else 0.1
        return config
    problem = probe_hub(find_entry(DEFAULT_MODEL).upstream_repo)
    try:
        folder = str(fetch_checkpoint(DEFAULT_MODEL, local_files_only=problem is not None))
        args.model_name_or_path = DEFAULT_MODEL
        return folder
    except UnavailableError:
        if problem is None:
            raise
    print(f"{DEFAULT_MODEL} could not be downloaded ({problem}); using a small, randomly initialized model.")
    args.backbone = "tiny"
    return SurgeNetConfig(**TINY)


def probe_hub(name: str, timeout: float = 3.0) -> str | None:
    """Return None if the Hub has the model; otherwise, within `timeout` seconds, the reason why not."""
    from huggingface_hub import HfApi

    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask():
        try:
            HfApi().model_info(name, timeout=timeout)
            answer.put(None)
        except Exception as error:  # any kind: it is reported to the user
            answer.put(type(error).__name__)

    # in a thread, because resolving a host name has no timeout
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return f"no answer within {timeout:g} s"


if __name__ == "__main__":
    main()
