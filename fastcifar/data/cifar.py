"""Reading datasets in the packagings people have: an official archive, its extracted folder, an image folder.

A pickle is read only where its checksum is the published one: unpickling anything else could run code.
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

from fastcifar.data.dataset import PUBLISHED, Dataset, Progress, build_dataset
from fastcifar.data.fetch import md5_of
from fastcifar.data.images import in_order
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE


@dataclass(frozen=True)
class Published:
    """What torchvision knows of a dataset: where it is, and the MD5 of each of its files."""

    url: str
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

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return Published(
        kind.url,
        kind.filename,
        kind.tgz_md5,
        dict(kind.train_list),
        dict(kind.test_list),
        {kind.meta["filename"]: kind.meta["md5"]},
        kind.meta["key"],
        "labels" if name == "cifar10" else "fine_labels",
    )


def read_archive(path: Path, dataset: str, progress: Progress) -> Dataset:
    """An official archive, read member by member; nothing is extracted to disk."""
    facts = published_facts(dataset)
    if (found := md5_of(path)) != facts.archive_md5:
        for other in PUBLISHED:
            if found == published_facts(other).archive_md5:
                raise DataError(f"{path} is the archive of {other}: add `--dataset {other}`.")
        raise DataError(
            f"{path} is not the published archive of {dataset} (MD5 {found}, not {facts.archive_md5}): it is "
            "truncated, changed or another file; get it anew, or import an image folder instead."
        )
    members = read_members(path)
    return read_batches(dataset, members.__getitem__, str(path), progress)


def read_members(path: Path) -> dict[str, bytes]:
    """The regular files of a tar archive by their bare names; an archive with a member that leaves its folder is
    refused whole."""
    members = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                inside = PurePosixPath(member.name)
                if inside.is_absolute() or ".." in inside.parts:
                    raise DataError(
                        f"{path} has a member that climbs out of its folder ({member.name}): it is not to be trusted."
                    )
                if member.isfile() and (file := archive.extractfile(member)) is not None:
                    members[inside.name] = file.read()
    except (tarfile.TarError, EOFError, OSError):
        raise DataError(f"{path} is not an archive that can be read: get it anew.") from None
    return members


def read_file(path: Path) -> bytes:
    """The bytes of a file; KeyError, as for a member of an archive, where it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KeyError(path.name) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def read_batches(dataset: str, get: Callable[[str], bytes], source: str, progress: Progress) -> Dataset:
    """The official batches, each gotten by its name and unpickled once its checksum is the published one."""
    facts = published_facts(dataset)
    total, done = len(facts.train) + len(facts.test), 0

    def unpickle(file: str, md5: str) -> dict[str, Any]:
        try:
            content = get(file)
        except KeyError:
            raise DataError(f"{source} lacks the file '{file}' of {dataset}: get the whole archive again.") from None
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
            raise DataError(
                f"'{file}' in {source} is not the published one (MD5 {found}, not {md5}); it was not opened, since a "
                "pickle can run code: get the archive again, or import an image folder instead."
            )
        tree: dict[str, Any] = pickle.loads(content, encoding="latin1")  # the very bytes that were published
        return tree

    (meta,) = (unpickle(file, md5) for file, md5 in facts.meta.items())
    splits = []
    for batches in (facts.train, facts.test):
        names: list[str] = []
        labels: list[int] = []
        pixels: list[np.ndarray] = []
        for file, md5 in batches.items():
            batch = unpickle(file, md5)
            names += batch["filenames"]
            labels += batch[facts.labels_key]
            pixels.append(batch["data"])
            done += 1
            progress("reading batches", done, total)
        splits.append(in_order(names, labels, np.concatenate(pixels).reshape(-1, 3, SIDE, SIDE)))
    train, test = splits
    return build_dataset(dataset, tuple(meta[facts.classes_key]), train, test, source, published=True)
