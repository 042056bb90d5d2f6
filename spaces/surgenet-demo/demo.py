"""Small local models, so that every tab works without a network. Results state when they come from such a model."""

import logging
import tempfile
import threading
from pathlib import Path

import torch
from folders import Loaded, tasks_of
from huggingface_hub import cached_assets_path, constants
from transformers import TrainerCallback, TrainingArguments

from surgenet_hf import SurgeNetConfig, SurgeNetForImageClassification, SurgeNetForPhaseRecognition, __version__
from surgenet_hf.checkpoints.conversion import save_converted
from surgenet_hf.configuration_surgenet_phase import SurgeNetPhaseConfig
from surgenet_hf.data import load_data
from surgenet_hf.data.sets import endoscapes_cvs
from surgenet_hf.data.sets.synthetic_phases import PHASES
from surgenet_hf.errors import UserError
from surgenet_hf.finetuning.segmentation import build_model, finetune
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.models import TINY

logger = logging.getLogger(__name__)
TRAINED, CVS, STEPS, FRAMES = "demo", "demo-cvs", "demo-phase-frames", "demo-phases"
DEMO = {  # {name: (text in the list of models, tasks, note on results)}
    TRAINED: (
        "Demo model, trained on synthetic scenes",
        ("segmentation", "features"),
        "A small model, trained for seconds on synthetic scenes. Its predictions on real frames are meaningless.",
    ),
    CVS: (
        "Demo model, untrained: critical view of safety",
        ("classification",),
        "An untrained model with random weights. Its predictions are meaningless; it only shows how the page works.",
    ),
    STEPS: (
        "Demo model, untrained: phase of a frame",
        ("classification",),
        "An untrained model with random weights. Its predictions are meaningless; it only shows how the page works.",
    ),
    FRAMES: (
        "Demo model, untrained: phases",
        ("phases",),
        "An untrained model with random weights. Its predictions are meaningless; it only shows how the page works.",
    ),
}
DEMO_VERSION = 1  # part of the folder name; increase it when the training changes
DEMO_STEPS = 80


class DemoTraining(threading.Thread):
    """Thread that trains the small segmentation model on drawn scenes and writes its folder atomically.

    Attributes:
        share: completed share of the training, from 0 to 1.
        error: exception that ended the training, or None.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.share, self.error = 0.0, None

    def run(self) -> None:
        try:
            if not (demo_folder() / "config.json").exists():
                self._train()
        except Exception as error:  # reported to the threads that wait for this one
            logger.exception("the demo model could not be trained")
            self.error = error

    def _train(self) -> None:
        training = self

        class Report(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                training.share = state.global_step / state.max_steps

        data = load_data("synthetic")
        model, processor = build_model(SurgeNetConfig(**TINY), data, 128)
        with tempfile.TemporaryDirectory() as scratch:
            arguments = TrainingArguments(
                output_dir=scratch,
                max_steps=DEMO_STEPS,
                per_device_train_batch_size=8,
                learning_rate=2e-3,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                weight_decay=0.05,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            )
            finetune(model, processor, data, arguments, callbacks=[Report()])
        try:
            save_converted(model, processor, demo_folder())
        except UserError:
            if not (demo_folder() / "config.json").exists():  # no error if another process has written the same model
                raise


def demo_folder() -> Path:
    """Return the folder of the small segmentation model in the Hub cache."""
    version = f"segmentation-{DEMO_VERSION}-{__version__}"
    return cached_assets_path("surgenet_hf", namespace="demo", subfolder=version, assets_dir=constants.HF_ASSETS_CACHE)


def untrained(name: str) -> Loaded:
    """Build a small untrained model. Its random weights are always the same."""
    labels, kind = {
        CVS: (endoscapes_cvs.LABELS, "multi_label_classification"),
        STEPS: (PHASES, "single_label_classification"),
        FRAMES: (PHASES, None),
    }[name]
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == FRAMES:
            small = {"num_stages": 1, "num_layers": 6, "num_feature_maps": 32}
            config = SurgeNetPhaseConfig(backbone_config=SurgeNetConfig(**TINY), **small, **named)
            model = SurgeNetForPhaseRecognition(config)
        else:
            config = SurgeNetConfig(**TINY, **named, problem_type=kind)
            model = SurgeNetForImageClassification(config)
    tasks = tasks_of("phases" if name == FRAMES else "classification")
    return Loaded(name, tasks, model.eval(), build_image_processor(image_size=128), DEMO[name][2])
