"""Fine-tune a SurgeNet for semantic segmentation, evaluate it, save it and draw what it sees: the first run.

On surgical-looking frames that it makes itself, offline, in a few minutes on two cores:

    python scripts/quickstart.py

On real laparoscopic frames (Endoscapes2023 as downloaded), with a full-size backbone that starts from random weights:

    python scripts/quickstart.py --dataset endoscapes --data_dir data/endoscapes --config_name caformer_s18 \
        --image_size 224 --max_steps 600 --per_device_train_batch_size 8 --bf16 --output_dir outputs/endoscapes

On your own frames (D/images, D/masks and, if you like, D/classes.txt), from a converted checkpoint:

    python scripts/quickstart.py --dataset folder --data_dir D --model_name_or_path outputs/surgenetxl
"""

import queue
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import TrainingArguments, set_seed

from surgenet_hf import SurgeNetConfig
from surgenet_hf.checkpoints.catalog import find_entry
from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.data import load_data
from surgenet_hf.evaluation.evaluate import check_saved_model, evaluate, majority_class_baseline, write_results
from surgenet_hf.evaluation.reporting import comparison_table, draw_segmentation
from surgenet_hf.figures import save_figure
from surgenet_hf.finetuning.segmentation import build_model, finetune
from surgenet_hf.finetuning.training import running, trained_model
from surgenet_hf.models import TINY, fetch_checkpoint, resolve_model
from surgenet_hf.privacy import mask_tokens

DEFAULT_MODEL = "SurgeNetXL"


@dataclass
class Arguments:
    output_dir: str = field(
        default="outputs/quickstart", metadata={"help": "Folder for the model, results.json and the picture."}
    )
    dataset: str = field(
        default="synthetic",
        metadata={"help": "The data set.", "choices": ["synthetic", "endoscapes", "folder"]},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Where the data set lies; synthetic frames need no place."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Model to start from: a name on the Hub, a local folder, or a published checkpoint by its name. "
            f"Left out: {DEFAULT_MODEL}, or, where the Hub cannot be reached, a small SurgeNet with random weights."
        },
    )
    config_name: str | None = field(
        default=None,
        metadata={
            "help": "Instead of a model to start from: a full-size backbone with random weights.",
            "choices": ["caformer_s18", "convnextv2_tiny", "pvt_v2_b2"],
        },
    )
    max_steps: int = field(default=150, metadata={"help": "Training steps."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Frames per step and device."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of AdamW, with cosine decay. Left out: 1e-4, the SurgeNet authors' for "
            "segmentation, or 1e-3 from random weights."
        },
    )
    image_size: int = field(default=128, metadata={"help": "Height and width, in pixels, that frames are resized to."})
    bf16: bool = field(
        default=False, metadata={"help": "Train under bfloat16 autocast: much faster where the processor has it."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of initial weights, order and augmentation."})


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(Arguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(argv)
    if args.model_name_or_path and args.config_name:
        parser.error("--model_name_or_path and --config_name exclude each other: start from weights or from none.")
    output_dir = Path(args.output_dir)
    if output_dir.is_file():
        parser.error(f"--output_dir {output_dir} is a file: name a folder.")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        data = load_data(args.dataset, args.data_dir)
        print(*data.notes, sep="\n")
        source = choose_source(args)
        set_seed(args.seed)
        model, processor = build_model(source, data, args.image_size)
    except (OSError, ValueError) as error:  # what the user can mend: the message is enough
        sys.exit(mask_tokens(f"quickstart.py: error: {error}"))

    training_args = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        learning_rate=args.learning_rate or (1e-3 if isinstance(source, SurgeNetConfig) else 1e-4),
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.05,
        logging_steps=max(1, args.max_steps // 10),
        save_strategy="no",
        bf16=args.bf16,
        use_cpu=not torch.accelerator.is_available(),  # else Trainer refuses bf16 there
        seed=args.seed,
        dataloader_pin_memory=False,
    )
    with running(training_args):
        baseline = majority_class_baseline(data)
        model.to(training_args.device)
        before = evaluate(model, processor, data).results["metrics"]
        model = trained_model(finetune(model, processor, data, training_args))
        results = evaluate(model, processor, data).results
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
Loaded back, AutoModelForSemanticSegmentation and pipeline("image-segmentation") agree with it on {agreement:.2%}.

Written
  {model_dir}    the model and its image processor
  {output_dir / "results.json"}    all figures
  {picture}    frame, reference and prediction side by side

Next
  python -c "import surgenet_hf; from transformers import pipeline; \
print(pipeline('image-segmentation', '{model_dir}')('YOUR_FRAME.jpg'))"
  python scripts/quickstart.py --dataset folder --data_dir YOUR_FOLDER --model_name_or_path {model_dir}""")


def choose_source(args: Arguments) -> str | SurgeNetConfig:
    """What to start from: what the user named, else SurgeNetXL, else (said in one line) a small random SurgeNet."""
    if args.model_name_or_path:
        return resolve_model(args.model_name_or_path)
    if args.config_name:
        return SurgeNetConfig(backbone=args.config_name, drop_path_rate=0.1)
    problem = probe_hub(find_entry(DEFAULT_MODEL).upstream_repo)
    try:
        return str(fetch_checkpoint(DEFAULT_MODEL, local_files_only=problem is not None))
    except LocalEntryNotFoundError:
        if problem is None:
            raise
    print(f"{DEFAULT_MODEL} cannot be had from the Hub ({problem}): going on with a small SurgeNet of random weights.")
    return SurgeNetConfig(**TINY)


def probe_hub(name: str, timeout: float = 3.0) -> str | None:
    """None if the Hub has the model; otherwise, within `timeout` seconds, why not."""
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask():
        try:
            HfApi().model_info(name, timeout=timeout)
            answer.put(None)
        except Exception as error:  # of any kind: it is told to the user
            answer.put(type(error).__name__)

    # in a thread, for the resolver that turns names into addresses knows no timeout
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return f"no answer within {timeout:g} s"


if __name__ == "__main__":
    main()
