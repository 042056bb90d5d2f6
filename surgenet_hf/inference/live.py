"""Live input: the newest picture of a stream or camera, read by a thread.

The network always gets the newest picture. A picture that a newer one replaces before it is used is dropped. The
decoder uses threads per slice, because threads per frame delay each picture by several frames. The data that FFmpeg
reads to detect the format is decoded at once and not discarded. Otherwise, pictures would start at the next key frame.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ..data.video import import_av, to_picture
from ..errors import UserError
from .prediction import evaluating, prepare
from .predictors import Predictor
from .sources import Frame, Source

SCHEMES = ("tcp", "rtsp", "rtsps")
TIMEOUT = 30.0  # seconds without a picture after which a run ends
_STALL = 5.0  # seconds without data after which the connection is opened again
_RETRY = 0.5  # seconds between attempts to connect
_POLL = 0.1  # seconds between checks whether the run was stopped
_ANALYSIS = 1_000_000  # microseconds of the stream that FFmpeg reads to detect its format; the default is 5 seconds
_DEVICE = re.compile(r"/dev/video\d+")


def is_live(item) -> bool:
    """Return whether an item of the input is a stream or a V4L2 device."""
    text = os.fspath(item) if isinstance(item, str | os.PathLike) else ""
    return bool(_DEVICE.fullmatch(text)) or text.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def find_live(source) -> str | None:
    """Return the address of live input, or None if the input consists of files or a dataset.

    Raises:
        UserError: live input is combined with other input.
    """
    items = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(items, list | tuple) or not (found := [item for item in items if is_live(item)]):
        return None
    if len(items) > 1:
        raise UserError(
            f"the input has {len(items)} items, and {live_name(found[0])} is live; live input must be the only one. "
            "Start one run for each"
        )
    return os.fspath(found[0])


def live_name(address: str) -> str:
    """Return the name of a stream, HOST:PORT/PATH, or of a device, without user name, password, and parameters.

    The name is also a path of files. Parts of the path that contain "=" are left out, because some cameras expect the
    password there.
    """
    if _DEVICE.fullmatch(address):
        return PurePosixPath(address).name
    scheme, _, rest = address.partition("://")
    url = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}")  # a password may contain unencoded "/" and "#"
    host = url.netloc
    parts = [part for part in url.path.split("/") if part not in ("", ".", "..") and "=" not in part]
    return "/".join(re.sub(r"[^\w.:\[\]-]", "_", part) for part in (host, *parts))


def without_credentials(item: str) -> str:
    """Return an item of the input for files, where live input has no user name, password, and parameters."""
    if not is_live(item) or _DEVICE.fullmatch(item):
        return item
    return f"{urlsplit(item).scheme}://{live_name(item)}"


@dataclass(frozen=True)
class LiveSource(Source):
    """Live input as the source of rows."""

    @property
    def is_video(self) -> bool:
        return True

    @property
    def video(self) -> str:
        return self.name.replace(":", "_")  # a folder, also on Windows


def live_source(address: str) -> LiveSource:
    """Return the source of an address."""
    return LiveSource(live_name(address), Path())


@dataclass(frozen=True)
class Received:
    """Picture of a stream.

    Attributes:
        number: number of the picture, from 0, over all connections.
        seconds: time at which it was decoded, after the first picture.
        frame: PyAV frame.
    """

    number: int
    seconds: float
    frame: Any


class LiveReader:
    """Thread that connects to live input and keeps the newest picture, as a context manager.

    A connection without data for 5 seconds counts as lost. Lost connections are opened again until no picture has
    arrived for `timeout` seconds.

    Args:
        address: URL or device.
        timeout: seconds without a picture after which the thread ends.

    Attributes:
        source: source of the rows, whose name has no credentials.
        received: number of decoded pictures.
        dropped: number of pictures that were replaced before they were used.
        reconnections: number of connections with pictures after the first one.
        damaged: number of packets that could not be decoded.
        reason: why the last connection ended.
        ended: whether no further picture will arrive.
    """

    def __init__(self, address: str, timeout: float = TIMEOUT):
        if not 0 < timeout < float("inf"):
            raise UserError(f"--live_timeout must be a finite number of seconds above 0, got {timeout}")
        self.av = import_av()
        self.source, self.timeout = live_source(address), timeout
        self.received = self.dropped = self.reconnections = self.damaged = 0
        self.reason, self.ended = "no connection", False
        self._address = address
        self._newest: Received | None = None
        self._failure: BaseException | None = None
        self._start = self._last = 0.0
        self._stop = threading.Event()
        self._changed = threading.Condition()
        # A daemon, because a blocked connection ends only after its timeout.
        self._thread = threading.Thread(target=self._run, name="surgenet-live", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join(_POLL + _RETRY)

    def take(self, wait: float = 0.0) -> Received | None:
        """Return the newest picture that has not been taken, or None if there is none after `wait` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self.ended, wait)
            newest, self._newest = self._newest, None
        if self._failure is not None:
            raise self._failure
        return newest

    def first(self) -> Received:
        """Wait for the first picture.

        Raises:
            UserError: there is none within the timeout.
        """
        while (picture := self.take(_POLL)) is None:
            if self.ended:
                raise UserError(
                    f"no picture from {self.source.name} within {self.timeout:g} s ({self.reason}); check the "
                    "address, and that the source is sending"
                )
        return picture

    def counts(self) -> dict[str, int]:
        """Return the counts for reports."""
        return {
            "received": self.received,
            "dropped": self.dropped,
            "reconnections": self.reconnections,
            "damaged_packets": self.damaged,
        }

    def _run(self) -> None:
        self._last = time.monotonic()
        connections = 0
        try:
            while not self._finished():
                before = self.received
                try:
                    for frame in self._pictures():
                        connections += self.received == before
                        self.reconnections = connections - 1
                        self._add(frame)
                    self.reason = "silent source" if self._finished() else "connection closed"
                except self.av.ExitError:  # a timeout of `open`
                    self.reason = "silent source"
                except (self.av.FFmpegError, OSError) as error:  # its text contains the address
                    self.reason = error.strerror or type(error).__name__
                self._stop.wait(_RETRY)
        except BaseException as error:  # raised in the thread that waits for pictures
            self._failure = error
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _pictures(self) -> Iterator:
        """Yield the pictures of one connection."""
        limit = min(_STALL, self.timeout)
        device = "v4l2" if _DEVICE.fullmatch(self._address) else None
        options = {"analyzeduration": str(_ANALYSIS)}
        if self._address.lower().startswith("rtsp"):
            options["rtsp_flags"] = "prefer_tcp"  # UDP loses packets
        with self.av.open(self._address, format=device, options=options, timeout=(limit, limit)) as container:
            stream = container.streams.best("video")
            if stream is None:
                if self.received:  # an incomplete start of the stream, after the connection was lost
                    return
                raise UserError(f"{self.source.name} has no video stream; check the address")
            stream.thread_type = "SLICE"
            for packet in container.demux():  # of all streams, because sound may continue without pictures
                if self._finished():
                    return
                try:
                    if packet.stream is stream:
                        yield from packet.decode()
                except self.av.InvalidDataError:  # the next packets may be complete
                    self.damaged += 1

    def _finished(self) -> bool:
        return self._stop.is_set() or time.monotonic() - self._last >= self.timeout

    def _add(self, frame) -> None:
        with self._changed:
            self._last = time.monotonic()
            if not self.received:
                self._start = self._last
            self.dropped += self._newest is not None
            self._newest = Received(self.received, self._last - self._start, frame)
            self.received += 1
            self._changed.notify_all()


@dataclass(frozen=True)
class Sample:
    """Picture to predict.

    Attributes:
        picture: received picture.
        seconds: time of the row.
        repeated: whether the picture was already predicted.
    """

    picture: Received
    seconds: float
    repeated: bool = False


def newest_pictures(
    reader: LiveReader, first: Received, rate: float | None, stopped: Callable[[], bool]
) -> Iterator[Sample]:
    """Yield the newest picture whenever the caller is ready, at most `rate` times per second, until the input ends."""
    picture: Received | None = first
    due = time.monotonic()
    while not stopped():
        if picture is not None:
            yield Sample(picture, picture.seconds)
            if rate is not None:
                due = max(due + 1 / rate, time.monotonic())  # later if the caller needed more time
            picture = None
        elif reader.ended:
            if (picture := reader.take()) is None:
                return
        elif (wait := due - time.monotonic()) > 0:
            time.sleep(min(wait, _POLL))
        else:
            picture = reader.take(_POLL)


def pictures_by_clock(
    reader: LiveReader, first: Received, rate: float, stopped: Callable[[], bool]
) -> Iterator[Sample]:
    """Yield a picture for each time k / rate after the first one, until the input ends.

    It is the newest picture. It is the last one again, if no new picture has arrived, or if the caller needed so much
    time that the next one is also due.
    """
    start, last = time.monotonic(), first
    yield Sample(first, 0.0)
    for k in count(1):
        while (wait := start + k / rate - time.monotonic()) > 0 and not stopped():
            time.sleep(min(wait, _POLL))
        if stopped():
            return
        late = time.monotonic() >= start + (k + 1) / rate
        picture = None if late else reader.take()
        if picture is None and reader.ended and not late:
            return
        last = picture or last
        yield Sample(last, k / rate, repeated=picture is None)


def predict_live(
    predictor: Predictor,
    reader: LiveReader,
    rate: float | None,
    first: Received,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[dict, None, None]:
    """Yield the row of each predicted picture, until the input ends.

    Phase models get a picture for each time at their rate, and their rows have "repeated". Other models get the newest
    picture.

    Args:
        predictor: model.
        reader: live input.
        rate: predictions per second, at most. None: as many as possible.
        first: result of `reader.first`.
        stopped: function that returns whether to stop.
    """
    is_phase = predictor.task == "phase-recognition"
    source = reader.source
    predictor.states.pop(source.name, None)
    if is_phase:
        assert rate is not None  # `choose_rate` requires that of the training
        samples = pictures_by_clock(reader, first, rate, stopped)
    else:
        samples = newest_pictures(reader, first, rate, stopped)
    image: Any = None
    with evaluating(predictor.model):
        for sample in samples:
            frame = Frame(source, sample.picture.number, sample.seconds, sample.picture.frame)
            if sample.repeated:
                yield predictor.repeat(frame, image) | {"repeated": True}
                continue
            image = to_picture(sample.picture.frame, None)
            inputs = prepare(predictor.processor, [image], predictor.model.dtype)
            (row,) = predictor.predict([frame], [image], inputs)
            yield row | ({"repeated": False} if is_phase else {})


def live_rows(predictor: Predictor, reader: LiveReader, rate: float | None) -> Generator[dict, None, None]:
    """Connect, and yield the rows of `predict_live`."""
    with reader, closing(predict_live(predictor, reader, rate, reader.first())) as rows:
        yield from rows
