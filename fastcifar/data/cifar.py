"""CIFAR-10 and CIFAR-100 as their authors publish them: an archive of pickled batches, or its extracted folder.

A pickle is opened only where its checksum is the published one: unpickling anything else could run code.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastcifar.data.dataset import PUBLISHED, Split
from fastcifar.data.fetch import md5_of
from fastcifar.data.source import Found, Reading, as_split
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE


@dataclass(frozen=True)
class Published:
    """Where a published dataset is, and its files with the MD5 of each."""

    url: str
    folder: str
    archive: str
    archive_md5: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    classes_key: str
    labels_key: str


@cache
def published_facts(name: str) -> Published:
    """The facts of `cifar10` or `cifar100`, from torchvision (which takes a second to import)."""
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return Published(
        dataset.url,
        dataset.base_folder,
        dataset.filename,
        dataset.tgz_md5,
        dict(dataset.train_list),
        dict(dataset.test_list),
        {dataset.meta["filename"]: dataset.meta["md5"]},
        dataset.meta["key"],
        "labels" if name == "cifar10" else "fine_labels",
    )


def find_published(path: Path, dataset: str) -> Path | None:
    """Where the batch files of a dataset are: the folder, one inside it, or an archive in it; None: nowhere.

    The last two are in the folder that torchvision keeps its datasets in.
    """
    facts = published_facts(dataset)
    for place in (path, path / facts.folder):
        if any((place / file).is_file() for file in facts.train):
            return place
    archive = path / facts.archive
    return archive if archive.is_file() else None


def takes_published(path: Path, reading: Reading) -> bool:
    """Whether a path is a file, such as an archive, or a folder that holds published batches."""
    return path.is_file() or any(find_published(path, dataset) for dataset in PUBLISHED)


def read_published(path: Path, reading: Reading) -> Found:
    """The published dataset `reading.dataset` in an archive, in its extracted folder, or in a folder that holds one.

    Raises DataError where it is another or is not, byte for byte, the published one.
    """
    place = path if path.is_file() else find_published(path, reading.dataset)
    if place is None:
        other = next(other for other in PUBLISHED if find_published(path, other))
        raise DataError(f"{path} is the extracted folder of {other}: add `--dataset {other}`.")
    if place.is_file():
        return read_archive(place, reading)
    return read_batches(reading, lambda file: read_file(place / file), place)


def read_archive(path: Path, reading: Reading) -> Found:
    """The dataset in a published archive; nothing is extracted to disk.

    Raises DataError where the archive is not, byte for byte, the published one.
    """
    facts = published_facts(reading.dataset)
    if (checksum := md5_of(path)) != facts.archive_md5:
        for other in PUBLISHED:
            if checksum == published_facts(other).archive_md5:
                raise DataError(f"{path} is the archive of {other}: add `--dataset {other}`.")
        raise DataError(
            f"{path} is not the published archive of {reading.dataset} (MD5 {checksum}, not {facts.archive_md5}): it "
            "is truncated, changed or another file; download it again, or import an image folder instead."
        )
    return read_batches(reading, read_members(path).__getitem__, path)


def read_members(path: Path) -> dict[str, bytes]:
    """The regular files of a tar archive by their names without folders.

    Raises DataError where it is no archive, or where a member's path leads out of the folder it is extracted to.
    """
    members = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                inside = PurePosixPath(member.name)
                if inside.is_absolute() or ".." in inside.parts:
                    raise DataError(f"{path} has a member outside its own folder ({member.name}): do not trust it.")
                if member.isfile() and (file := archive.extractfile(member)) is not None:
                    members[inside.name] = file.read()
    except (tarfile.TarError, EOFError, OSError):
        raise DataError(f"{path} is not an archive that can be read: download it again.") from None
    return members


def read_file(path: Path) -> bytes:
    """The bytes of a file; raises KeyError where it is missing, as a dict of archive members does."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KeyError(path.name) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def read_batches(reading: Reading, get: Callable[[str], bytes], source: Path) -> Found:
    """The dataset in the published batch files, whose bytes `get` gives by name (KeyError: missing).

    Raises DataError where a file is missing or is not the published one.
    """
    dataset, facts = reading.dataset, published_facts(reading.dataset)
    total, done = len(facts.train) + len(facts.test), 0
    (meta,) = (unpickle(dataset, get, file, md5, source) for file, md5 in facts.meta.items())
    splits: list[Split] = []  # training and test
    for batches in (facts.train, facts.test):
        labels: list[int] = []
        pixels: list[np.ndarray] = []
        for file, md5 in batches.items():
            batch = unpickle(dataset, get, file, md5, source)
            labels += batch[facts.labels_key]
            pixels.append(batch["data"])
            done += 1
            reading.progress("reading batches", done, total)
        splits.append(as_split(np.concatenate(pixels).reshape(-1, 3, SIDE, SIDE), labels))
    return Found(tuple(meta[facts.classes_key]), splits[0], splits[1], dataset, proven=True)


def unpickle(dataset: str, get: Callable[[str], bytes], file: str, md5: str, source: Path) -> dict[str, Any]:
    """What is pickled in a published file, once its checksum is right; raises DataError where it is not."""
    try:
        content = get(file)
    except KeyError:
        raise DataError(f"{source} lacks the file '{file}' of {dataset}: download the archive again.") from None
    if (checksum := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise DataError(
            f"'{file}' in {source} is not the published one (MD5 {checksum}, not {md5}) and was not opened, since a "
            "pickle can run code: download the archive again, or import an image folder instead."
        )
    tree: dict[str, Any] = pickle.loads(content, encoding="latin1")
    return tree
