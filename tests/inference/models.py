"""Tiny models of all tasks, saved with their image processor."""

from pathlib import Path

from surgenet_hf import SurgeNetForPhaseRecognition, SurgeNetPhaseConfig
from surgenet_hf.image_processing import build_image_processor

PROCESSOR = build_image_processor(image_size=64)


def phase_model(tiny_config, frames_per_second: float) -> SurgeNetForPhaseRecognition:
    config = SurgeNetPhaseConfig(
        backbone_config=tiny_config(), num_layers=3, num_labels=3, frames_per_second=frames_per_second
    )
    return SurgeNetForPhaseRecognition(config)


def save_models(root: Path, models: dict) -> Path:
    """Save each model and `PROCESSOR` in the folder of its name, and return the folder of all."""
    for name, model in models.items():
        model.save_pretrained(root / name)
        PROCESSOR.save_pretrained(root / name)
    return root
