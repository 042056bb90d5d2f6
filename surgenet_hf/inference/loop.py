"""The pipeline of all predictions: threads read and preprocess the next batches while the network runs.

Threads share the memory of the process, so nothing is pickled and the start method of processes does not matter. They
run in parallel because image decoders, video decoders, and PyTorch release Python's global lock.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item], load: Callable[[Item], Result], num_workers: int | None = None
) -> Generator[Result, None, None]:
    """Yield `load(item)` for each item, in order, and compute the next results in threads.

    At most `num_workers` + 1 results wait. The memory is therefore independent of the number of items.

    Args:
        items: items, which one separate thread iterates over. It may decode a video.
        load: function that is called in several threads.
        num_workers: number of threads that call `load`. None: `default_workers()`. 0: everything happens in the
            calling thread, without reading ahead.

    Raises:
        BaseException: an error of `items` or `load` is raised after the results before it.
    """
    num_workers = default_workers() if num_workers is None else num_workers
    if num_workers == 0:
        yield from map(load, items)
        return
    iterator = iter(items)
    end = object()
    pending: deque[Future] = deque()

    def next_result(item: Future):
        found = item.result()  # cannot wait forever: the reader handles its items in the same order
        return found if found is end else load(found)

    with (
        ThreadPoolExecutor(1, "surgenet-reader") as reader,
        ThreadPoolExecutor(num_workers, "surgenet-loader") as pool,
    ):
        try:
            for _ in range(num_workers + 1):
                pending.append(pool.submit(next_result, reader.submit(next, iterator, end)))
            while (result := pending.popleft().result()) is not end:
                pending.append(pool.submit(next_result, reader.submit(next, iterator, end)))
                yield result
        finally:
            reader.shutdown(cancel_futures=True)  # wakes loaders that wait for a canceled item
            pool.shutdown(cancel_futures=True)
            if hasattr(iterator, "close"):
                iterator.close()  # ends a generator, which may hold an open video


def default_workers() -> int:
    """Return the number of loading threads, between 2 and 8, depending on the number of processor cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(2, cores // 4))
