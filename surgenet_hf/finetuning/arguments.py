"""Options of the fine-tuning commands. Importing this module loads no training code."""

from dataclasses import asdict, dataclass

import torch
from transformers import TrainingArguments

from ..configuration_surgenet import BACKBONES
from ..configuration_surgical import POOLINGS
from ..data import dataset_names
from ..data.fraction import check_fraction
from ..errors import UserError
from ..options import option
from ..privacy import NO_TOKEN

TASK_METRIC = "task"  # placeholder for the metric of the task; Trainer would replace None by the loss
AUGMENTATIONS = ("none", "light", "strong")
LOSSES = ("cross_entropy", "cross_entropy+dice")
SEGMENTATION_HEADS = ("fpn", "linear", "upernet", "mask2former", "eomt")
_DATASETS = (
    f"Segmentation: {', '.join(dataset_names('semantic-segmentation'))}. Frame classification: "
    f"{', '.join(dataset_names('image-classification'))}. Phases: {', '.join(dataset_names('phase-recognition'))}."
)


@dataclass
class ModelArguments:
    """Model to train, and options of its training."""

    model_name_or_path: str | None = option(
        None, "Model to start from: a published checkpoint by name, timm/NAME, a Hub repository, or a folder."
    )
    backbone: str | None = option(
        None,
        f"Backbone with random weights to start from, instead of --model_name_or_path: {', '.join(BACKBONES)}, tiny "
        "(a small caformer_s18), timm/NAME, or a folder with the config.json of a model.",
    )
    image_size: int | None = option(
        None,
        "Height and width in pixels to which frames are resized. Default: 256 for SurgeNet, the authors' value for "
        "segmentation; for other models the size of their image processor.",
    )
    augmentation: str = option("light", "Strength of the augmentation of the training frames.", choices=AUGMENTATIONS)
    freeze_backbone: bool = option(False, "Whether to train only the head.")
    layer_decay: float = option(
        1.0,
        "Factor in (0, 1] that multiplies the learning rate from each block to the previous one. "
        "1: the same learning rate for all blocks.",
    )
    fast_gradients: bool = option(
        False, "Whether to train on a CPU with faster operations. The results differ by rounding."
    )
    class_weights: str = option(
        "none",
        "Weights of the classes in the loss. balanced: proportional to 1 / frequency.",
        choices=["none", "balanced"],
    )
    early_stopping_patience: int | None = option(
        None, "Number of evaluations without improvement after which training stops. Default: no early stopping."
    )
    eval_split: str | None = option(
        None, "Split for the reported metrics. Default: test if the dataset has it, otherwise validation."
    )

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.backbone is None):
            raise UserError("give either --model_name_or_path or --backbone")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image_size must be at least 1 pixel, got {self.image_size}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer_decay must be in (0, 1], got {self.layer_decay}")

    def options(self) -> dict:
        """Return the options of `finetune` of the frame tasks."""
        names = ("augmentation", "layer_decay", "early_stopping_patience", "fast_gradients")
        return {name: getattr(self, name) for name in names}


@dataclass
class DataArguments:
    """Dataset to train or evaluate a model on."""

    dataset: str = option("", f"Name of the dataset. {_DATASETS}")
    data_dir: str | None = option(None, "Folder of the dataset. Not needed for synthetic data.")
    split_protocol: str | None = option(
        None, "Split protocol, for datasets with several protocols, e.g. 40/8/32 for cholec80-phase."
    )
    background_class: str | None = option(
        None, "Name of the background class of the dataset `folder`. Default: all classes are foreground."
    )

    def __post_init__(self):
        if not self.dataset:
            raise UserError("--dataset is missing")

    def options(self) -> dict:
        """Return the options of the loader of the dataset."""
        options = {"split_protocol": self.split_protocol, "background_class": self.background_class}
        return {name: value for name, value in options.items() if value}


@dataclass
class TrainDataArguments(DataArguments):
    """Dataset to train on."""

    train_fraction: float = option(
        1.0,
        "Fraction of the labeled videos of the train split to train on, rounded up to whole videos. The seed draws "
        "them. The validation and test splits stay complete.",
    )

    def __post_init__(self):
        super().__post_init__()
        check_fraction(self.train_fraction)


@dataclass
class SurgeNetTrainingArguments(TrainingArguments):
    """TrainingArguments with different defaults.

    The defaults are AdamW, a cosine schedule, evaluation and a checkpoint after each epoch, and the best weights at
    the end.
    """

    output_dir: str = option("", "Folder for checkpoints, the model, results, and figures.")
    learning_rate: float = option(1e-4, "Peak learning rate of AdamW. 1e-4 is the authors' value for segmentation.")
    lr_scheduler_type: str = option(
        "cosine", "Learning rate schedule. cosine is the authors' schedule for segmentation."
    )
    weight_decay: float = option(0.01, "Weight decay. Default: 0.01, as in AdamW of PyTorch.")
    num_train_epochs: float = option(30.0, "Number of epochs. The authors' number is not published.")
    per_device_train_batch_size: int = option(16, "Number of frames per step and device.")
    eval_strategy: str = option(
        "epoch", "When to run the evaluation that selects the checkpoint: no, steps, or epoch."
    )
    save_strategy: str = option("epoch", "When to save a checkpoint. Use the same value as for eval_strategy.")
    save_total_limit: int | None = option(
        2,
        "Number of checkpoints to keep. The last two are always kept, and for each of them the checkpoint that was "
        "the best when it was saved.",
    )
    load_best_model_at_end: bool = option(True, "Whether to end with the weights of the best checkpoint.")
    metric_for_best_model: str | None = option(
        TASK_METRIC, "Metric that selects the checkpoint. task: the main metric of the task."
    )
    remove_unused_columns: bool = option(False, "Not used: frames have no extra columns.")
    restore_callback_states_from_checkpoint: bool = option(
        True, "Whether a resumed run also restores the state of early stopping."
    )
    resume_from_checkpoint: str | None = option(
        None, "Checkpoint to resume from: true for the last one in output_dir, or the folder of a checkpoint."
    )
    logging_steps: float = option(10, "Number of steps between log entries.")
    publish_video_names: bool = option(
        False,
        "Whether --push_to_hub publishes the names of your own videos. By default, neutral names replace them.",
    )

    def __post_init__(self):
        if self.hub_token is not None:
            raise UserError(f"hub_token is set: {NO_TOKEN}")
        if not self.output_dir:
            raise UserError("--output_dir is missing")
        for name, least in (("per_device_train_batch_size", 1), ("per_device_eval_batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if not self.learning_rate >= 0:
            raise UserError(f"--learning_rate must not be negative, got {self.learning_rate}")
        if self.use_cpu is False and not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Trainer rejects bf16 on the CPU
        try:
            super().__post_init__()
        except (ImportError, ValueError) as error:  # options that exclude each other, or that this machine lacks
            raise UserError(str(error)) from error


@dataclass
class SegmentationArguments:
    """Options of segmentation."""

    loss: str = option("cross_entropy", "Loss function. cross_entropy is the authors' loss.", choices=LOSSES)
    head: str | None = option(
        None,
        "New segmentation head on a backbone of another family. Default: the head of the model if it has one, "
        "otherwise fpn.",
        choices=SEGMENTATION_HEADS,
    )


@dataclass
class ClassificationArguments:
    """Options of frame classification."""

    pooling: str | None = option(
        None,
        "Pooling of a new linear head on a backbone of another family. cls: class token. mean: mean over the patches. "
        "topk: mean of the 10 largest activations of each channel. Default: the head of the model if it has one, "
        "otherwise cls, or mean without a class token.",
        choices=POOLINGS,
    )


@dataclass
class PhaseArguments:
    """Options of stage 2 of phase recognition. Stage 1 takes the other options.

    Learning rate, its constant schedule, weight decay, and loss are those of the authors' code (SurgPhaseBench).
    """

    skip_stage1: bool = option(
        False, "Whether to skip stage 1, because --model_name_or_path is already a frame classifier of the phases."
    )
    tcn_learning_rate: float = option(7e-4, "Constant learning rate of stage 2. 7e-4 is the authors' value.")
    tcn_epochs: int = option(
        200, "Number of epochs of stage 2. 200 is the value in the authors' paper; their code uses 150."
    )
    tcn_early_stopping_patience: int | None = option(
        20,
        "Number of epochs without improvement after which stage 2 stops. Has no effect with --eval_strategy no.",
    )


@dataclass
class PhaseTrainingArguments(SurgeNetTrainingArguments):
    """Training arguments of stage 1 of phase recognition."""

    learning_rate: float = option(1e-5, "Peak learning rate of stage 1. 1e-5 is the authors' value.")
    lr_scheduler_type: str = option("cosine", "Learning rate schedule of stage 1.")
    weight_decay: float = option(1e-5, "Weight decay of stage 1. 1e-5 is the authors' value.")
    num_train_epochs: float = option(
        30.0, "Number of epochs of stage 1. The authors train up to 100 epochs with a patience of 10."
    )
    per_device_train_batch_size: int = option(
        64, "Number of frames per step and device in stage 1. 64 is the authors' value."
    )


# Argument dataclasses of each task, in the order of the arguments of `run`.
OPTIONS = {
    "semantic-segmentation": (ModelArguments, TrainDataArguments, SegmentationArguments, SurgeNetTrainingArguments),
    "image-classification": (ModelArguments, TrainDataArguments, ClassificationArguments, SurgeNetTrainingArguments),
    "phase-recognition": (ModelArguments, TrainDataArguments, PhaseArguments, PhaseTrainingArguments),
}
# Options of TrainingArguments that determine the weights and the selected checkpoint.
RECORDED = tuple(
    """
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay optim optim_args adam_beta1
    adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps per_device_train_batch_size
    gradient_accumulation_steps world_size dataloader_drop_last ignore_data_skip seed data_seed bf16 fp16
    eval_strategy eval_steps load_best_model_at_end metric_for_best_model greater_is_better
    """.split()
)
# Our options that are not compared. The weights come from the checkpoint, the data is compared by its contents, and
# the evaluated split does not influence training.
NOT_RECORDED = ("model_name_or_path", "backbone", "dataset", "data_dir", "train_fraction", "eval_split")


def recorded_options(training_args: TrainingArguments, *others) -> dict:
    """Return {name: value} of the options that a resumed run must have in common with the original one.

    Args:
        training_args: the training arguments.
        others: argument dataclasses of the task.
    """
    own = {
        name: value for arguments in others for name, value in asdict(arguments).items() if name not in NOT_RECORDED
    }
    return {**own, **{name: getattr(training_args, name) for name in RECORDED}}
