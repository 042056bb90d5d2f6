"""Training loop of facebookresearch/dino for `pretraining.py`.

It calls the functions of a checkout in their original order.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from surgenet_hf.errors import UserError
from surgenet_hf.modeling_surgenet import SurgeNetModel
from surgenet_hf.models import resolve_model
from surgenet_hf.pretraining.arguments import CropConfig


class OriginalLoop:
    """Crops, batches, and steps of the original code.

    Args:
        modules: see `original_modules`.
        backbone: backbone of this package, used if there is no checkout of SurgeNet.
        out_dim: number of prototypes of the head.
        crop_config: number, sizes, and scales of the crops.
        device: device of the steps.
    """

    def __init__(
        self,
        modules: dict[str, ModuleType],
        backbone: str,
        out_dim: int,
        crop_config: CropConfig,
        device: torch.device,
    ):
        self.modules, self.backbone, self.out_dim = modules, backbone, out_dim
        self.crop_config, self.device = crop_config, device

    def transform(self) -> Callable:
        """Return the transform from a PIL image to crops."""
        config = self.crop_config
        if (config.global_crops_size, config.local_crops_size) != (224, 96):
            raise UserError(
                "the original's crops have 224 and 96 pixels: omit --global_crops_size and --local_crops_size"
            )
        return self.modules["main_dino"].DataAugmentationDINO(
            config.global_crops_scale, config.local_crops_scale, config.local_crops_number
        )

    def batches(
        self, paths: list[Path], num_frames: int, batch_size: int, num_workers: int
    ) -> Iterator[list[torch.Tensor]]:
        """Yield the crops of shuffled frames in one long epoch, because every short epoch would start new workers."""
        frames = _Frames(paths, self.transform())
        yield from DataLoader(
            frames,
            batch_size,
            sampler=RandomSampler(frames, num_samples=num_frames),
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def step(self, half: bool) -> Callable[[list[torch.Tensor]], None]:
        """Return the body of the original `train_one_epoch`."""
        main_dino, utils = self.modules["main_dino"], self.modules["utils"]

        def network():
            if "metaformer" in self.modules:
                backbone, width = self.modules["metaformer"].caformer_s18(num_classes=0, pretrained="ImageNet"), 512
            else:
                backbone = _Pooled(SurgeNetModel(resolve_model(None, self.backbone)))
                width = backbone.width
            return utils.MultiCropWrapper(backbone, main_dino.DINOHead(width, self.out_dim)).to(self.device)

        student, teacher = network(), network()
        teacher.load_state_dict(student.state_dict())
        teacher.requires_grad_(False)
        num_crops = len(self.crop_config.sizes)
        dino_loss = main_dino.DINOLoss(self.out_dim, num_crops, 0.04, 0.04, 0, 50).to(self.device)
        optimizer = torch.optim.AdamW(utils.get_params_groups(student), lr=1e-5)
        on_gpu = half and self.device.type == "cuda"  # the original code trains in fp16 on GPUs
        scaler = torch.amp.GradScaler(enabled=on_gpu)

        def step(crops: list[torch.Tensor]):
            crops = [crop.to(self.device, non_blocking=True) for crop in crops]
            with torch.autocast(self.device.type, torch.float16 if on_gpu else torch.bfloat16, enabled=half):
                teacher_output = teacher(crops[:2])
                student_output = student(crops)
                loss = dino_loss(student_output, teacher_output, 1)
            loss.item()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            utils.clip_gradients(student, 3.0)
            utils.cancel_gradients_last_layer(1, student, 1)
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                    theirs.data.mul_(0.996).add_((1 - 0.996) * ours.detach().data)

        return step


class _Pooled(nn.Module):
    """Our backbone in the form that the original wrapper expects."""

    def __init__(self, backbone: SurgeNetModel):
        super().__init__()
        self.backbone, self.width = backbone, backbone.config.hidden_sizes[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x).pooler_output


class _Frames(Dataset):
    """Frames, read like in the original ImageFolder."""

    def __init__(self, paths: list[Path], transform: Callable):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        with self.paths[index].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


@contextmanager
def single_process(device: torch.device):
    """Initialize a process group of one process, which the original loss needs to reduce its center."""
    backend = "nccl" if device.type == "cuda" else "gloo"  # gloo would wait for a GPU in each step
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()


@contextmanager
def original_modules(dino_repo: str | None, surgenet_repo: str | None) -> Iterator[dict[str, ModuleType]]:
    """Import `main_dino` and `utils` of facebookresearch/dino, and SurgeNet's `metaformer`.

    Without a checkout, the result is {}.
    """
    folders = {"main_dino": dino_repo, "utils": dino_repo, "metaformer": surgenet_repo}
    before = list(sys.path)
    try:
        sys.path[:0] = [folder for folder in dict.fromkeys(folders.values()) if folder]
        yield {name: importlib.import_module(name) for name, folder in folders.items() if folder}
    finally:
        sys.path[:] = before
