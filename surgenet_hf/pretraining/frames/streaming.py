"""Frames of a stream, which is read from beginning to end through a shuffle buffer.

Streams are for data without random access, for example on the Hub. They differ from `ordering` in three ways. First,
the size of the buffer determines how well frames are shuffled. Second, the frames and their order depend on the number
of processes and workers. Third, to start at step k, all previous frames are read again, without decoding them. The
`IterableDataset.state_dict` of `datasets` would avoid this. However, it loses the content of the shuffle buffer, so a
resumed run would get different frames.

The positions of frames, from which crops are drawn, are the same as in `ordering`. All processes have the same number
of steps. Worker w of W prepares the steps w, w + W, w + 2W, ... from its own part of the stream. A part that ends
starts over. An epoch contains every frame once if its length is that of the stream, and parts and steps are of equal
size.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice

import torch
from datasets import Image, interleave_datasets
from datasets import IterableDataset as Stream
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from ...data.images import read_cell
from ...errors import UserError
from ...rng import rng_for
from ..arguments import CropConfig, FrameArguments
from .ordering import MAX_TRIES, BatchLoader, build_sample
from .sources import find_image_column, load_table

logger = logging.getLogger(__name__)

_COLUMN = "image"


class FrameStream(IterableDataset):
    """Samples of a stream for one process, in the format of `FrameDataset`.

    A stream that ends early starts over. A frame that cannot be decoded is replaced by the next frame, which is still
    returned at its own position.

    Args:
        stream: rows with the images in the column "image".
        crop_config, seed, on_device: see `FrameDataset`.
        frames_per_epoch: number of frames in an epoch, over all processes.
        batch_size: number of frames of this process in a step.
        rank, world_size: index of this process, and number of processes.
        shuffle_buffer: number of frames in the shuffle buffer of each worker.

    Raises:
        UserError: an epoch has fewer frames than one step.
    """

    def __init__(
        self,
        stream: Stream,
        crop_config: CropConfig,
        seed: int,
        frames_per_epoch: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer: int = 1000,
        on_device: bool = False,
    ):
        self.num_steps = frames_per_epoch // (batch_size * world_size)
        if self.num_steps == 0:
            raise UserError(
                f"an epoch has {frames_per_epoch} frames, but one step of {world_size} processes takes {batch_size} x "
                f"{world_size}: lower the batch size or raise --frames_per_epoch"
            )
        self.stream, self.crop_config, self.seed, self.on_device = stream, crop_config, seed, on_device
        self.frames_per_epoch, self.batch_size, self.shuffle_buffer = frames_per_epoch, batch_size, shuffle_buffer
        self.rank, self.world_size = rank, world_size
        # Shared memory lets persistent workers see changes.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set the epoch, and the step in it, at which the next iteration begins."""
        if start_step:
            logger.warning(
                f"Streams have no random access: the frames of {start_step} steps are read again, without decoding."
            )
        self._start.copy_(torch.tensor([epoch, start_step]))

    @property
    def start_step(self) -> int:
        return int(self._start[1])

    @property
    def num_parts(self) -> int:
        """Return the number of parts of this process's stream. Additional workers would be idle."""
        return split_dataset_by_node(self.stream, self.rank, self.world_size).num_shards

    def __iter__(self) -> Iterator[dict]:
        """Yield the samples of this worker's steps.

        Iteration begins with the round that contains the start step. A round is one step of each worker.
        """
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, start_step = self._start.tolist()
        rounds = start_step // workers
        rows = islice(self._rows(epoch), rounds * self.batch_size, None)
        ahead: deque = deque()  # rows that were read early to replace an unreadable frame
        for step in range(rounds * workers + worker, self.num_steps, workers):
            first = (step * self.world_size + self.rank) * self.batch_size
            for position in range(first, first + self.batch_size):
                frames = islice(_peek(rows, ahead), MAX_TRIES)
                yield build_sample(frames, self.crop_config, (self.seed, epoch, position), self.on_device)
                ahead.popleft()

    def _rows(self, epoch: int) -> Iterator[tuple]:
        """Yield two functions for each frame of this worker, endlessly. One returns its name, the other its bytes."""
        for times in count():
            # Positions of frames are below frames_per_epoch, so no other draw uses these indices.
            seed = int(rng_for(self.seed, epoch, self.frames_per_epoch + times).integers(2**63))
            shuffled = self.stream.shuffle(seed=seed, buffer_size=self.shuffle_buffer)
            number = -1
            for number, row in enumerate(split_dataset_by_node(shuffled, self.rank, self.world_size)):
                yield partial(_name, row[_COLUMN], number), partial(read_cell, row[_COLUMN])
            if number < 0:
                raise UserError(
                    f"the stream has no frame for a worker of process {self.rank}: use fewer workers or "
                    "processes, or more shards"
                )


def open_stream(
    args: FrameArguments,
    crop_config: CropConfig,
    seed: int,
    batch_size: int,
    **options,
) -> FrameStream:
    """Open the stream of the datasets: parquet files, tar shards, or what `datasets.load_dataset` can stream.

    Several datasets are mixed by their weights. A dataset that ends early starts over until all have ended.

    Args:
        args: the frames.
        crop_config, seed, batch_size, options: arguments of `FrameStream`.

    Raises:
        UserError: see `sources.open_source`. Also raised for a dataset that supports random access.
    """
    streams = []
    for dataset, data_dir in zip(args.dataset, args.data_dirs(), strict=True):
        if dataset == "folder" or dataset.startswith("synthetic"):
            raise UserError(f"--dataset {dataset} supports random access: omit --streaming")
        name = "webdataset" if dataset == "shards" else dataset
        stream = load_table(name, data_dir, args.dataset_split, streaming=True)
        column = find_image_column(dataset, stream.features, args.image_column)
        is_image = isinstance(stream.features[column], Image)
        stream = stream.select_columns([column])
        stream = stream.cast_column(column, Image(decode=False)) if is_image else stream
        streams.append(stream if column == _COLUMN else stream.rename_column(column, _COLUMN))
    return FrameStream(
        mix_streams(streams, args.dataset_weights, seed),
        crop_config,
        seed,
        args.frames_per_epoch,
        batch_size,
        shuffle_buffer=args.shuffle_buffer,
        **options,
    )


def mix_streams(streams: list[Stream], weights: Sequence[float] | None, seed: int) -> Stream:
    """Return one stream that draws from each stream with a probability proportional to its weight."""
    if len(streams) == 1:
        return streams[0]
    shares = [weight / sum(weights) for weight in weights]
    return interleave_datasets(streams, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")


class StreamLoader:
    """Loader of the batches of one process, from `stream.start_step` on.

    The number of workers is at most the number of parts of the stream. Workers persist over all epochs.
    """

    def __init__(self, stream: FrameStream, num_workers: int = 0, pin_memory: bool = False):
        if num_workers > stream.num_parts:
            logger.warning(
                f"The stream has {stream.num_parts} parts: only this many of the {num_workers} workers are used."
            )
        num_workers = min(num_workers, stream.num_parts)
        self.stream, self.num_workers = stream, num_workers
        self.loader = BatchLoader(stream, num_workers, pin_memory, batch_size=stream.batch_size)

    def __len__(self) -> int:
        return self.stream.num_steps - self.stream.start_step

    def __iter__(self) -> Iterator[dict]:
        # The first batch always comes from worker 0. Begin with its step, and drop the batches before the start step.
        return islice(iter(self.loader), self.stream.start_step % max(1, self.num_workers), None)


def _peek(rows: Iterator, ahead: deque) -> Iterator:
    """Yield the rows from the current one onward without consuming them."""
    for i in count():
        if i == len(ahead):
            ahead.append(next(rows))
        yield ahead[i]


def _name(cell: bytes | dict, number: int) -> str:
    path = cell.get("path") if isinstance(cell, dict) else None
    return path or f"frame {number} of the stream"
