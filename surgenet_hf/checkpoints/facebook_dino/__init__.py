"""Reading and writing of the full DINO checkpoints of facebookresearch/dino.

The layout is that of main_dino.py: `student`, `teacher`, `optimizer`, `epoch`, `args`, `dino_loss`, and sometimes
`fp16_scaler`. The optimizer identifies its parameters only by position. They are those of the student in the order of
its state dict, without fixed ones, in two groups, decayed and not decayed.
"""

from .reading import DinoCheckpoint, read_dino_checkpoint
from .settings import HEAD_SETTINGS, backbone_config, backbone_sizes, head_settings, read_setting
from .training import DinoTraining, LoadReport, load_dino_checkpoint, save_dino_checkpoint

__all__ = [
    "HEAD_SETTINGS",
    "DinoCheckpoint",
    "DinoTraining",
    "LoadReport",
    "backbone_config",
    "backbone_sizes",
    "head_settings",
    "load_dino_checkpoint",
    "read_dino_checkpoint",
    "read_setting",
    "save_dino_checkpoint",
]
