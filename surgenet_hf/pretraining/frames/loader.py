"""What one process is fed with, step by step: of frames with random access or of streams, from any step on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ...data.identity import content_digest
from .crops import CropConfig
from .ordering import BatchLoader, EpochOrder, FrameDataset, FrameSampler
from .sources import FrameArguments, open_sources
from .streaming import StreamLoader, open_stream


class Feed:
    """The batches of this process's share of the frames.

    Args:
        args: which frames.
        crop_config, seed, on_device: see `FrameDataset`.
        batch_size: frames of this process in a step.
        rank, world_size: this process, and how many there are.

    Attributes:
        names: of the data sets.
        frames_per_epoch: of all processes.
        num_frames: how many different ones there are; None of streams.
        steps_per_epoch: whole steps in that.
        description: what must be the same for a resumed run, for JSON.

    Raises:
        FileNotFoundError, ValueError: no frames, or fewer in an epoch than in a step.
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
    ):
        if args.streaming:
            self.dataset = None
            self.sampler = open_stream(args, crop_config, seed, batch_size, rank, world_size, on_device)
            names, sizes, data = args.dataset, None, args.dataset
            self.frames_per_epoch = args.frames_per_epoch
        else:
            sources = open_sources(args)
            sizes = [len(source) for source in sources]
            data = [f"{s.identity}, contents {content_digest(s.read, len(s))}" for s in sources]
            names = [source.name for source in sources]
            order = EpochOrder(sizes, args.dataset_weights, seed, args.frames_per_epoch)
            self.dataset = FrameDataset(sources, crop_config, seed, on_device)
            self.sampler = FrameSampler(order, batch_size, rank, world_size)
            self.frames_per_epoch = len(order)
        # the names are written into the model, where the path to a folder would identify its user
        self.names = [Path(name).resolve().name if Path(name).exists() else name for name in names]
        self.steps_per_epoch = self.sampler.num_steps
        self.num_frames = None if sizes is None else sum(sizes)
        self.description = {
            "data": data,
            "dataset_split": args.dataset_split,
            "image_column": args.image_column,
            "sizes": sizes,
            "weights": args.dataset_weights,
            "frames_per_epoch": self.frames_per_epoch,
            "shuffle_buffer": args.shuffle_buffer if args.streaming else None,
        }

    def steps(
        self, start: int, stop: int, num_workers: int = 0, pin_memory: bool = False
    ) -> Iterator[tuple[int, dict]]:
        """Number and batch (`frames.collate`) of each step from `start` to before `stop`, counted over all epochs."""
        if self.dataset is None:
            loader = StreamLoader(self.sampler, num_workers, pin_memory)
        else:
            loader = BatchLoader(self.dataset, num_workers, pin_memory, batch_sampler=self.sampler)
        while start < stop:
            self.sampler.set_epoch(start // self.steps_per_epoch, start % self.steps_per_epoch)
            for batch in islice(loader, stop - start):
                yield start, batch
                start += 1
