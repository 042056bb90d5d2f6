"""Fingerprints of data, to detect that a resumed run or cached features belong to other frames or labels."""

import hashlib
import os
from collections.abc import Callable

import numpy as np
from datasets import Dataset

SAMPLES = 1000  # number of files to read, so that hashing takes seconds even from a network disk


def content_digest(read: Callable[[int], bytes], count: int) -> str:
    """Hash the contents of at most `SAMPLES` evenly spaced files.

    An unreadable file counts as empty here. The code that uses the file reports the error.

    Args:
        read: function: index of a file -> its content.
        count: number of files.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for index in sorted({i * count // SAMPLES for i in range(SAMPLES)} if count > SAMPLES else range(count)):
        try:
            content = read(index)
        except OSError:
            content = b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def data_identity(data) -> dict[str, dict]:
    """Return the fingerprints that a resumed run must match.

    `labels` hashes videos, frame numbers, and labels (for segmentation, only videos and frame numbers). `files` hashes
    the sizes of all frames and masks. `contents` hashes a sample of the files (see `content_digest`). Moving or
    copying the data does not change these values.

    Splits that are torch datasets have `names` (a hash of videos and frame numbers) instead of `labels` and `files`.
    Their `contents` include the labels.

    Args:
        data: a `SurgicalData` object.

    Returns:
        A dict {split: {"frames", "videos", "labels", "files", "contents"}}.
    """
    return {split: split_identity(rows) for split, rows in data.splits.items()}


def frames_key(split: Dataset, rows: range) -> str:
    """Hash the identity of frames: name, size, and modification time of files, or the bytes of frames in memory.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if not isinstance(split, Dataset):  # frames of a torch dataset have no files
        for i in rows:
            digest.update(hashlib.sha256(split[i]["image"].tobytes()).digest())
        return digest.hexdigest()[:16]
    cells = split.with_format("arrow").select(rows)[:]["image"].to_pylist()
    for cell in cells:
        if cell["bytes"] is not None:
            key = hashlib.sha256(cell["bytes"]).hexdigest()
        else:
            status = os.stat(cell["path"])
            key = f"{os.path.basename(cell['path'])} {status.st_size} {status.st_mtime_ns}"
        digest.update(f"{key}\n".encode())
    return digest.hexdigest()[:16]


def split_identity(rows) -> dict:
    """Return the fingerprints of one split, see `data_identity`."""
    if not isinstance(rows, Dataset):  # a torch dataset, whose labels are only known from its items

        def read_row(index: int) -> bytes:
            row = rows[index]
            target = row["mask"] if "mask" in row else np.asarray(row["labels"])
            return row["image"].tobytes() + target.tobytes()

        known = rows.select_columns(["video", "frame"])[:]
        return {
            "frames": len(rows),
            "videos": len(set(known["video"])),
            "names": digest(known),
            "contents": content_digest(read_row, len(rows)),
        }
    table = rows.with_format("arrow")[:]
    files = [cell for name in ("image", "mask") if name in table.column_names for cell in table[name].to_pylist()]
    sizes = [os.path.getsize(cell["path"]) if cell["bytes"] is None else len(cell["bytes"]) for cell in files]
    labels = table.select([name for name in ("video", "frame", "labels") if name in table.column_names]).to_pydict()

    def read(index: int) -> bytes:
        if files[index]["bytes"] is not None:
            return files[index]["bytes"]
        with open(files[index]["path"], "rb") as file:
            return file.read()

    return {
        "frames": len(rows),
        "videos": len(set(labels["video"])),
        "labels": digest(labels),
        "files": digest(sizes),
        "contents": content_digest(read, len(files)),
    }


def digest(value) -> str:
    """Hash a value of plain Python types to 16 hexadecimal digits."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
