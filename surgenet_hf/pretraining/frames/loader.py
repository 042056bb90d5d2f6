"""Batches of one process for any range of steps, from frames with random access or from streams."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from ...data.identity import content_digest
from ..arguments import CropConfig, FrameArguments
from .crops import normalize
from .device_crops import crop_batch
from .ordering import BatchLoader, EpochOrder, FrameDataset, FrameSampler, unpack_images
from .sources import open_sources
from .streaming import StreamLoader, open_stream


class PretrainingLoader:
    """Loader of this process's share of the frames.

    Args:
        args: the frames.
        crop_config, seed, on_device: see `FrameDataset`.
        batch_size: number of frames of this process in a step.
        rank, world_size: index of this process, and number of processes.
        num_workers: number of processes that read frames.
        pin_memory: whether batches are in pinned memory.

    Attributes:
        names: names of the datasets.
        num_frames: number of different frames. For streams: frames in an epoch.
        steps_per_epoch: number of whole steps in an epoch.
        description: JSON values that must be the same in a resumed run.

    Raises:
        UserError: there are no frames, or an epoch has fewer frames than a step.
    """

    def __init__(
        self,
        args: FrameArguments,
        crop_config: CropConfig,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        on_device: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        if args.streaming:
            self.dataset = None
            self.sampler = open_stream(
                args, crop_config, seed, batch_size, rank=rank, world_size=world_size, on_device=on_device
            )
            self.loader = StreamLoader(self.sampler, num_workers, pin_memory)
            names, sizes, data = args.dataset, None, args.dataset
            frames_per_epoch = args.frames_per_epoch
        else:
            sources = open_sources(args)
            sizes = [len(source) for source in sources]
            data = [f"{s.identity}, contents {content_digest(s.read, len(s))}" for s in sources]
            names = [source.name for source in sources]
            order = EpochOrder(sizes, args.dataset_weights, seed, args.frames_per_epoch)
            self.dataset = FrameDataset(sources, crop_config, seed, on_device)
            self.sampler = FrameSampler(order, batch_size, rank, world_size)
            self.loader = BatchLoader(self.dataset, num_workers, pin_memory, batch_sampler=self.sampler)
            frames_per_epoch = len(order)
        # The names are written into the model. The full path of a folder could reveal who trained it.
        self.names = [Path(name).resolve().name if Path(name).exists() else name for name in names]
        self.steps_per_epoch = self.sampler.num_steps
        self.num_frames = frames_per_epoch if sizes is None else sum(sizes)
        self.description = {
            "data": data,
            "dataset_split": args.dataset_split,
            "image_column": args.image_column,
            "sizes": sizes,
            "weights": args.dataset_weights,
            "frames_per_epoch": frames_per_epoch,
            "shuffle_buffer": args.shuffle_buffer if args.streaming else None,
        }
        if args.streaming:  # the number of workers determines the order of the frames of a stream
            self.description["dataloader_num_workers"] = num_workers

    def steps(self, start: int, stop: int) -> Iterator[tuple[int, dict]]:
        """Yield the number and batch (see `ordering.collate`) of each step in [start, stop)."""
        while start < stop:
            self.sampler.set_epoch(start // self.steps_per_epoch, start % self.steps_per_epoch)
            for batch in islice(self.loader, stop - start):
                yield start, batch
                start += 1


def split_batch(
    batch: dict, size: int, config: CropConfig, device: torch.device, mean: torch.Tensor, std: torch.Tensor
) -> Iterator[list[torch.Tensor]]:
    """Yield the normalized crops of each forward pass on the device.

    If the workers did not make the crops, this function makes them on the device.

    Args:
        batch: see `ordering.collate`.
        size: number of frames in a forward pass.
        config: number, sizes, and scales of the crops.
        device: device of the results.
        mean, std: mean and standard deviation of the three channels, for values from 0 to 1.

    Yields:
        N float32 tensors (size, 3, h, w), the global crops first.
    """
    on_device = "pixels" in batch
    if on_device:
        images = unpack_images(batch["pixels"].to(device, non_blocking=True), batch["sizes"])
    for start in range(0, len(batch["crops"] if on_device else batch["crops"][0]), size):
        part = slice(start, start + size)
        if on_device:
            crops = crop_batch(images[part], batch["crops"][part], config)
        else:
            crops = [crop[part].to(device, non_blocking=True) for crop in batch["crops"]]
        yield normalize(crops, mean, std)
