"""Streams for tests: MPEG-TS over TCP, sent by a separate process. Run as a script, this file is the sender."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serve(*connections: str, rate: int = 50):
    """Serve connections one after the other, and yield (port, process).

    Args:
        connections: "FRAMES" sends frames and closes the connection. "FRAMES+" then keeps it open without data.
        rate: Frames per second.
    """
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__)), str(port), str(rate), *connections])
    try:
        yield port, process
    finally:
        process.kill()
        process.wait()


def send(port: int, rate: int, frames: int):
    import av
    import numpy as np

    container = av.open(f"tcp://127.0.0.1:{port}?listen=1", "w", format="mpegts", options={"flush_packets": "1"})
    stream = container.add_stream("mpeg2video", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    container.start_encoding()  # waits for the connection
    start = time.monotonic()
    for i in range(frames):
        picture = np.full((48, 64, 3), 20 + 10 * (i % 20), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        time.sleep(max(0, start + i / rate - time.monotonic()))
    container.mux(stream.encode())
    return container


if __name__ == "__main__":
    for each in sys.argv[3:]:
        container = send(int(sys.argv[1]), int(sys.argv[2]), int(each.rstrip("+")))
        if each.endswith("+"):
            time.sleep(600)
        container.close()
