"""Frames of an epoch: their order, decoding and cropping in workers, and batches.

A frame has a key (epoch, position, index). The index refers to all frames of all sources, and the position to the
order of the epoch. Its crops are drawn from `rng_for(seed, epoch, position)`. They are the same in any worker or
process, and differ if a frame occurs twice in an epoch.

Workers either make the crops, or only decode the frames and let the device make the crops. In the latter case, a JPEG
is scaled down while it is decoded, which is faster. The box of each crop keeps at least as many pixels as the crop.
"""

import os
import signal
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from multiprocessing import parent_process

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from ...data.images import decode_frame, open_frame
from ...errors import UnavailableError, UserError
from ...rng import rng_for
from ..arguments import CropConfig
from .crops import Crops, crop_frame, draw_crops
from .sources import FrameSource

MAX_TRIES = 100  # consecutive unreadable frames, after which the cause is not the frames

Key = tuple[int, int, int]


class EpochOrder:
    """Order of the frames in an epoch, a function of (seed, epoch).

    Without weights, an epoch is a permutation of all frames. If `frames_per_epoch` differs from their number, epochs
    are consecutive slices of an endless sequence of such permutations. No frame is repeated before all others have
    occurred. With weights, each source has its own sequence. An epoch takes its share of each sequence and shuffles
    them together.

    Args:
        sizes: number of frames of each source. The indices of the second source follow those of the first, and so on.
        weights: shares of the sources, in any unit. They are rounded to whole frames by the largest remainder method.
        seed: seed of the order.
        frames_per_epoch: number of frames in an epoch. Default: all.

    Raises:
        UserError: a source has no frames, or its share of an epoch is less than one frame.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        frames_per_epoch: int | None = None,
    ):
        if not sizes or min(sizes) < 1:
            raise UserError(f"each source needs at least one frame, got {list(sizes)}")
        self.seed = seed
        self._length = frames_per_epoch or sum(sizes)
        self._pools = [sum(sizes)] if weights is None else list(sizes)
        self._shares = [self._length] if weights is None else _largest_remainder(weights, self._length)
        if len(self._pools) != len(self._shares) or min(self._shares) < 1:
            raise UserError(
                f"weights {list(weights)} do not fit sources of {list(sizes)} frames: each source needs a weight, and "
                f"at least one of the {self._length} frames in an epoch; they would get {self._shares}"
            )

    def __len__(self) -> int:
        """Return the number of frames in an epoch."""
        return self._length

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of the frames, int64 (len(self),)."""
        starts = accumulate(self._pools, initial=0)
        parts = [
            start + self._stretch(pool, epoch * share, (epoch + 1) * share)
            for pool, (start, share) in enumerate(zip(starts, self._shares, strict=False))
        ]
        if len(parts) == 1:
            return parts[0]
        # Positions of frames are below len(self), so no other draw uses these indices.
        return rng_for(self.seed, epoch, self._length + len(parts)).permutation(np.concatenate(parts))

    def _stretch(self, pool: int, start: int, stop: int) -> np.ndarray:
        """Return items `start` to `stop` of the endless sequence of permutations of a pool."""
        size = self._pools[pool]
        first = start // size
        rows = [
            rng_for(self.seed, number, self._length + pool).permutation(size)
            for number in range(first, -(-stop // size))
        ]
        return np.concatenate(rows)[start - first * size : stop - first * size]


class FrameSampler(Sampler[list[Key]]):
    """Sampler of the batches of one process.

    A step takes `batch_size * world_size` frames of the order. This process gets `batch_size` of them, from
    `rank * batch_size` on. Frames at the end of an epoch that are too few for a whole step are omitted. Each epoch has
    a different order and omits different frames.

    Args:
        order: order of the frames in each epoch.
        batch_size: number of frames of this process in a step.
        rank, world_size: index of this process, and number of processes.

    Raises:
        UserError: an epoch has fewer frames than one step.
    """

    def __init__(self, order: EpochOrder, batch_size: int, rank: int = 0, world_size: int = 1):
        self.num_steps = len(order) // (batch_size * world_size)
        if self.num_steps == 0:
            raise UserError(
                f"an epoch has {len(order)} frames, but one step of {world_size} processes takes {batch_size} x "
                f"{world_size}: lower the batch size"
            )
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set the epoch, and the step in it, at which the next iteration begins."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return self.num_steps - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start_step = self.epoch, self.start_step
        order = self.order.order(epoch)
        for step in range(start_step, self.num_steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            positions = range(first, first + self.batch_size)
            yield [(epoch, position, int(order[position])) for position in positions]


class FrameDataset(Dataset):
    """Samples by key. See `build_sample`.

    A frame that cannot be decoded is replaced by the next frame of its shard.

    Args:
        sources: sources whose frames are numbered consecutively.
        crop_config: number, sizes, and scales of the crops.
        seed: seed of the crops.
        on_device: whether crops are made on the device.
    """

    def __init__(self, sources: Sequence[FrameSource], crop_config: CropConfig, seed: int, on_device: bool = False):
        self.sources, self.crop_config, self.seed, self.on_device = list(sources), crop_config, seed, on_device
        self._starts = list(accumulate(map(len, self.sources), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, key: Key) -> dict:
        epoch, position, index = key
        number = bisect_right(self._starts, index) - 1
        source, index = self.sources[number], index - self._starts[number]
        shard = source.shard_of(index)
        indices = (shard[(index - shard.start + i) % len(shard)] for i in range(min(len(shard), MAX_TRIES)))
        frames = ((partial(source.frame_name, i), partial(source.read, i)) for i in indices)
        return build_sample(frames, self.crop_config, (self.seed, epoch, position), self.on_device)


def build_sample(
    frames: Iterable[tuple[Callable[[], str], Callable[[], bytes]]],
    config: CropConfig,
    draw: tuple[int, int, int],
    on_device: bool,
) -> dict:
    """Build the sample of the first frame that can be decoded.

    Args:
        frames: two functions for the requested frame and for each of its substitutes. The first returns the name of
            the frame, the second its bytes.
        config: number, sizes, and scales of the crops.
        draw: (seed, epoch, index) of the random draws.
        on_device: whether crops are made on the device.

    Returns:
        "crops": N uint8 tensors (3, size, size). If `on_device`: `Crops.to_array()`, (N, 16), in pixels of "image".
        "image": uint8 (H, W, 3), only if `on_device`.
        "unreadable": names of frames that could not be decoded.

    Raises:
        UnavailableError: none of the frames can be decoded.
    """
    unreadable: list[str] = []
    reason = None
    for name, read in frames:
        try:
            image = _undamaged(_open, read)
            crops = draw_crops(image.size, config, rng_for(*draw))
            if on_device:
                scale = reduce_decoding(image, crops, config)
                crops = crops._replace(boxes=crops.boxes / scale)
            # Like the original code, ignore the orientation tag.
            image = _undamaged(decode_frame, image, False)
        except _DamagedError as error:
            unreadable.append(name())
            reason = error
            continue
        if on_device:
            return {"image": np.asarray(image), "crops": crops.to_array(), "unreadable": unreadable}
        return {"crops": crop_frame(image, crops, config), "unreadable": unreadable}
    raise UnavailableError(
        f"{len(unreadable)} consecutive frames cannot be decoded, from {unreadable[0]} to {unreadable[-1]} "
        f"({reason}): check that the disk is mounted, or replace or remove this folder or file"
    )


def reduce_decoding(image: Image.Image, crops: Crops, config: CropConfig) -> int:
    """Set the scale at which a JPEG is decoded to the smallest of 1/1, 1/2, 1/4, and 1/8 that suffices for each crop.

    Each box then still has at least as many pixels as its crop on both sides. Other formats are decoded at full size,
    and so are frames with a box smaller than its crop.

    Returns:
        Divisor of the sides of the image and of the boxes. The sides of the image are rounded up.
    """
    sides = crops.boxes[:, 2:] - crops.boxes[:, :2]
    most = (sides / np.array(config.sizes)[:, None]).min()
    scale = max(s for s in (1, 2, 4, 8) if s <= max(most, 1))
    if scale == 1 or image.format != "JPEG":
        return 1
    image.draft(None, (image.width // scale, image.height // scale))
    return scale


def collate(samples: list[dict]) -> dict:
    """Combine samples to a batch.

    Returns:
        "crops": N uint8 tensors (B, 3, size, size). If the device makes the crops: float32 (B, N, 16).
        "pixels", "sizes": only if the device makes the crops, see `unpack_images`. One tensor for all frames requires
            only one transfer through shared memory and to the device.
        "unreadable": names of frames that could not be decoded.
    """
    unreadable = [name for sample in samples for name in sample["unreadable"]]
    crops = [sample["crops"] for sample in samples]
    if "image" not in samples[0]:
        return {"crops": [torch.stack(same) for same in zip(*crops, strict=True)], "unreadable": unreadable}
    images = [sample["image"] for sample in samples]
    return {
        "pixels": torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])),
        "sizes": [image.shape[:2] for image in images],
        "crops": torch.from_numpy(np.stack(crops)),
        "unreadable": unreadable,
    }


def unpack_images(pixels: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Return the frames of a batch as B uint8 views (3, H, W) of `pixels`, on any device.

    Args:
        pixels: uint8 (n,), the pixels of all frames.
        sizes: (H, W) of each frame.
    """
    parts = pixels.split([3 * height * width for height, width in sizes])
    return [part.view(*size, 3).permute(2, 0, 1) for part, size in zip(parts, sizes, strict=True)]


class BatchLoader(DataLoader):
    """Loader of the batches of one process.

    Accelerate must not prepare it, because the sampler already returns only this process's part. Workers persist over
    all epochs and hold two batches each in shared memory. They stop only on a SIGTERM from the training process. Job
    schedulers send SIGTERM to all processes, but the training process needs its workers to finish the step.
    """

    def __init__(self, dataset: Dataset, num_workers: int = 0, pin_memory: bool = False, **options):
        super().__init__(
            dataset,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=collate,
            persistent_workers=num_workers > 0,
            worker_init_fn=_obey_parent_alone,
            # Without it, a loader draws from torch's global generator, and a resumed run would draw other numbers.
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Iterator[dict]:
        if not _SIGNALS_WAIT or not self.num_workers:
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # workers inherit the blocked signal
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SIGNALS_WAIT = hasattr(signal, "sigwaitinfo")  # only on Linux


def _obey_parent_alone(worker: int) -> None:
    if _SIGNALS_WAIT:
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent_process().pid:
        pass
    os._exit(0)


class _DamagedError(Exception):
    """A frame that cannot be read or decoded."""


def _open(read: Callable[[], bytes]) -> Image.Image:
    return open_frame(read())


def _undamaged(function: Callable, *args):
    """Call a function that only reads or decodes a file, and raise `_DamagedError` if it fails."""
    try:
        return function(*args)
    except (OSError, ValueError) as error:  # from the disk, or from `data.images` about the content
        raise _DamagedError(str(error)) from error


def _largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    exact = np.array(weights, np.float64) / np.sum(weights) * total
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares.tolist()
