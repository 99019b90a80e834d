"""The binary version of CIFAR-10 and CIFAR-100: records of label bytes and 3,072 pixel bytes.

Nothing in it can run code, so it is opened without a checksum; that its content is the published one is checked by the
digest of the dataset that it becomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcifar.data.cifar import read_file, read_members
from fastcifar.data.dataset import CLASSES, Split
from fastcifar.data.source import Found, Reading, as_split
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE

PIXELS = 3 * SIDE * SIDE  # bytes of an image


@dataclass(frozen=True)
class Binary:
    """The files of a binary version; the last of the label bytes is the label (CIFAR-100 has the coarse one before)."""

    dataset: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int


BINARIES = (
    Binary(
        "cifar10",
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        1,
    ),
    Binary("cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), ("test.bin",), 2),
)


def find_binary(path: Path) -> tuple[Binary, Path] | None:
    """The binary version at a path, in a folder or an archive inside it, and where exactly; None: there is none."""
    for binary in BINARIES:
        for place in (path, path / binary.folder):
            if any((place / file).is_file() for file in binary.train):
                return binary, place
        for archive in (path, path / binary.archive):
            if archive.name == binary.archive and archive.is_file():
                return binary, archive
    return None


def takes_binary(path: Path, reading: Reading) -> bool:
    """Whether a path is or holds a binary version."""
    return find_binary(path) is not None


def read_binary(path: Path, reading: Reading) -> Found:
    """The images in a binary version; raises DataError where a file is missing or cut off."""
    found = find_binary(path)
    assert found is not None
    binary, place = found
    if place.is_file():
        get: Callable[[str], bytes] = read_members(place).__getitem__
    else:
        get = lambda file: read_file(place / file)  # noqa: E731
    train, test = (read_records(binary, files, get, place) for files in (binary.train, binary.test))
    return Found(CLASSES[binary.dataset], train, test, published=binary.dataset)


def read_records(binary: Binary, files: tuple[str, ...], get: Callable[[str], bytes], place: Path) -> Split:
    """The records of some files, whose bytes `get` gives by name (KeyError: missing), as a split."""
    record, parts = binary.label_bytes + PIXELS, []
    for file in files:
        try:
            content = np.frombuffer(get(file), dtype=np.uint8)
        except KeyError:
            raise DataError(f"{place} lacks the file '{file}': unpack the archive again.") from None
        if not len(content) or len(content) % record:
            raise DataError(f"{place / file} is cut off: its size is no multiple of {record:,} bytes.")
        parts.append(content.reshape(-1, record))
    rows = np.concatenate(parts)
    labels = rows[:, binary.label_bytes - 1].tolist()
    return as_split(rows[:, binary.label_bytes :].reshape(-1, 3, SIDE, SIDE), labels)
