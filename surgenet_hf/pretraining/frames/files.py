"""Frames in files: folders of images, and images in zip and tar shards.

All frames are listed once, when a source is opened. A file is opened when its first frame is read. Paths and offsets
are stored in a few large arrays. 4.7 million frames take about 200 MB, which forked workers share. With Python
objects, each worker would end up with its own copy.
"""

import hashlib
import logging
import os
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ...data.video import VIDEO_SUFFIXES
from ...distributed import is_main_process
from ...errors import MissingFileError, UnavailableError, UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SHARD_SUFFIXES = (".zip", ".tar")
COMPRESSED_SUFFIXES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar", ".7z")

_OPEN_FILES = 64  # maximum number of each process
_TAR, _STORED, _DEFLATED = range(3)


class _Grouped:
    """Frames in the order of their folders or shards, which begin at the indices `_starts`."""

    _starts: np.ndarray

    def __len__(self) -> int:
        return int(self._starts[-1])

    def shard_of(self, index: int) -> range:
        group = self._group(index)
        return range(int(self._starts[group]), int(self._starts[group + 1]))

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1


class FolderSource(_Grouped):
    """All images below a folder at any depth, in the order of their paths.

    Hidden files and folders are skipped, and links are followed. A shard is a folder.
    """

    def __init__(self, data_dir: str | Path):
        root = _require(data_dir)
        self.name = str(data_dir)
        others: Counter = Counter()
        folders, names, counts, seen = [], [], [], set()
        with tqdm(desc=f"Listing {root}", unit="frame", disable=not is_main_process()) as bar:
            for folder, subfolders, files in os.walk(root, onerror=_refuse, followlinks=True):
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was already visited
                    subfolders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                images = sorted(name for name in files if _is_image(name))
                others.update(_suffix(name) for name in files if not _is_image(name) and not name.startswith("."))
                if images:
                    folders.append(folder)
                    names.append(_Names(images))
                    counts.append(len(images))
                    bar.update(len(images))
        if not folders:
            raise MissingFileError(f"{root} contains no images ({' '.join(IMAGE_SUFFIXES)}): {_describe(others)}")
        unread = {suffix: n for suffix, n in others.items() if suffix in (*SHARD_SUFFIXES, ".parquet")}
        if unread:
            logger.warning(f"{root}: only images are read; {_describe(unread)}")
        self._folders = folders
        self._names = _Names.join(names)
        self.identity = f"names {self._names.digest()}"
        self._starts = np.cumsum([0, *counts])

    def read(self, index: int) -> bytes:
        with open(self.frame_name(index), "rb") as file:
            return file.read()

    def frame_name(self, index: int) -> str:
        return os.path.join(self._folders[self._group(index)], self._names[index])


class _Members(NamedTuple):
    """The images in a shard."""

    names: "_Names"
    offsets: np.ndarray  # int64: start of the content; in a zip, start of the header before it
    sizes: np.ndarray  # int64: number of bytes in the file
    methods: np.ndarray  # uint8: _TAR, _STORED or _DEFLATED
    checksums: np.ndarray  # uint32: CRC-32 of the uncompressed content in a zip; 0 in a tar, which has none


class ShardSource(_Grouped):
    """Images in zip and uncompressed tar files (WebDataset), in the order of the names of shards and members.

    When a source is opened, only the directory of each zip and all headers of each tar are read. A frame then takes
    one or two reads. The checksums of zip files are verified, so every damaged frame in a zip is detected.

    Args:
        data_dir: a folder with shards at any depth, or one shard.
        suffix: suffix of the members to read, for example "jpg" if there is also "seg.png". None: all images.
    """

    def __init__(self, data_dir: str | Path, suffix: str | None = None):
        self.name = str(data_dir)
        self._paths = [str(path) for path in find_files(data_dir, SHARD_SUFFIXES)]
        self._files = _OpenFiles()
        ending = IMAGE_SUFFIXES if suffix is None else ("." + suffix.lower().lstrip("."),)
        members = []
        total = sum(os.path.getsize(path) for path in self._paths)
        with tqdm(
            desc="Indexing shards", total=total, unit="B", unit_scale=True, disable=not is_main_process()
        ) as bar:
            for path in self._paths:
                rows = _index_zip(path, bar) if path.lower().endswith(".zip") else _index_tar(path, bar)
                rows = sorted(row for row in rows if _is_image(os.path.basename(row[0]), ending))
                names, *numbers = zip(*rows, strict=True) if rows else ([],) * 5
                dtypes = (np.int64, np.int64, np.uint8, np.uint32)
                members.append(_Members(_Names(names), *map(np.array, numbers, dtypes)))
        counts = [len(one.names) for one in members]
        if not sum(counts):
            raise MissingFileError(
                f"none of the {len(counts)} shards in {data_dir} contains an image ({' '.join(ending)}); repack them, "
                "or give the suffix of the images with --image_column"
            )
        empty = [path for path, count in zip(self._paths, counts, strict=True) if not count]
        if empty:
            logger.warning(f"{len(empty)} of {len(counts)} shards contain no images: {', '.join(empty[:3])} ...")
        columns = [np.concatenate(column) for column in list(zip(*members, strict=True))[1:]]
        self._members = _Members(_Names.join([one.names for one in members]), *columns)
        checks = hashlib.sha256(self._members.sizes.tobytes() + self._members.checksums.tobytes()).hexdigest()[:16]
        self.identity = f"names {self._members.names.digest()}, sizes and checksums {checks}"
        self._starts = np.cumsum([0, *counts])

    def read(self, index: int) -> bytes:
        _, offsets, sizes, methods, checksums = self._members
        file = self._files.get(self._paths[self._group(index)])
        file.seek(offsets[index])
        if methods[index] != _TAR:
            header = file.read(30)
            if header[:4] != b"PK\3\4" or len(header) < 30:
                raise OSError("the zip directory contains a wrong position for this frame")
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)  # name and extra field
        content = file.read(sizes[index])
        if len(content) < sizes[index]:
            raise OSError("the shard ends within this frame")
        if methods[index] == _DEFLATED:
            try:
                content = zlib.decompress(content, -zlib.MAX_WBITS)
            except zlib.error as error:
                raise OSError(f"cannot be decompressed ({error})") from error
        if methods[index] != _TAR and zlib.crc32(content) != checksums[index]:
            raise OSError("the content does not match its checksum")
        return content

    def frame_name(self, index: int) -> str:
        return f"{self._paths[self._group(index)]}/{self._members.names[index]}"


def find_files(data_dir: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files with these suffixes below a folder, sorted. A single file may be given instead of a folder."""
    path = Path(data_dir)
    if path.is_file() and path.suffix.lower() in suffixes:
        return [path]
    every = [p for p in _require(path).rglob("*") if not p.name.startswith(".") and p.is_file()]
    found = sorted(p for p in every if p.suffix.lower() in suffixes)
    if not found:
        counts = Counter(_suffix(p.name) for p in every)
        raise MissingFileError(f"{path} contains no {' or '.join(suffixes)} files: {_describe(counts)}")
    return found


class _Names:
    """Compact list of strings, stored as their bytes and an array of offsets."""

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self.text = b"".join(encoded)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    @classmethod
    def join(cls, parts: list["_Names"]) -> "_Names":
        joined = cls([])
        joined.text = b"".join(part.text for part in parts)
        starts = np.cumsum([0] + [len(part.text) for part in parts])
        joined.ends = np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=False)])
        return joined

    def digest(self) -> str:
        return hashlib.sha256(self.text + self.ends.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.text[self.ends[index - 1] if index else 0 : self.ends[index]])


class _OpenFiles:
    """Cache of the most recently used open files of this process. It is empty after a fork or unpickling."""

    def __init__(self):
        self.process = None
        self.files: OrderedDict = OrderedDict()

    def __reduce__(self):
        return _OpenFiles, ()

    def get(self, path: str):
        if self.process != os.getpid():  # forked processes would share the position in the file
            self.process, self.files = os.getpid(), OrderedDict()
        if path not in self.files:
            if len(self.files) == _OPEN_FILES:
                self.files.popitem(last=False)[1].close()
            self.files[path] = open(path, "rb")  # noqa: SIM115
        self.files.move_to_end(path)
        return self.files[path]


def _index_zip(path: str, bar: tqdm) -> list[tuple]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:  # ValueError: names not in UTF-8
        raise UserError(f"the shard {path} cannot be read ({error}); copy it again") from error
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{path}: {member.filename} is encrypted or uses an unsupported compression; zip the frames again"
            )
    bar.update(os.path.getsize(path))
    return [
        (m.filename, m.header_offset, m.compress_size, _DEFLATED if m.compress_type else _STORED, m.CRC)
        for m in members
    ]


def _index_tar(path: str, bar: tqdm) -> list[tuple]:
    rows = []
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # otherwise the archive would keep all members in memory
                bar.update(archive.offset - member.offset)
                if member.isreg():
                    rows.append((member.name, member.offset_data, member.size, _TAR, 0))
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile treats any invalid header as the end
                raise tarfile.ReadError(f"no header at byte {archive.offset}")
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"the shard {path} cannot be read as an uncompressed tar ({error}); copy it again, or decompress it. "
            "Compressed tar files do not support random access, and do not make JPEG files smaller"
        ) from error
    return rows


def _require(data_dir: str | Path) -> Path:
    path = Path(data_dir)
    if path.is_dir():
        return path
    if path.exists():
        raise MissingFileError(f"{path} is a file; expected a folder{_hint([path.suffix.lower()])}")
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    there = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    raise MissingFileError(f"there is no folder {path}; {parent} contains {', '.join(there[:8]) or 'nothing'}")


def _describe(counts: dict[str, int]) -> str:
    found = ", ".join(f"{n} {suffix}" for suffix, n in Counter(counts).most_common(8))
    return f"found {found or 'nothing'}{_hint(counts)}"


def _hint(suffixes: Iterable[str]) -> str:
    """Return advice for files that were found instead of the expected ones."""
    hints = {
        SHARD_SUFFIXES: ".zip and .tar are read with --dataset shards",
        (".parquet",): ".parquet is read with --dataset parquet",
        IMAGE_SUFFIXES: "images are read with --dataset folder",
        VIDEO_SUFFIXES: "`surgenet prepare-frames` turns videos into frames",
        COMPRESSED_SUFFIXES: "compressed files must be unpacked first",
    }
    return "".join(f"; {hint}" for kinds, hint in hints.items() if set(kinds) & set(suffixes))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "files without suffix"


def _is_image(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")


def _refuse(error: OSError):
    raise UnavailableError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions") from error
