"""Reading datasets in the packagings people have: an official archive, its extracted folder, an image folder.

A pickle is read only where its checksum is the published one: unpickling anything else could run code.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fastcifar import data
from fastcifar.data import Dataset, Progress, Split
from fastcifar.errors import DataError
from fastcifar.fetch import md5_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
SIDE = 32
CHUNK = 500  # files a thread reads between two signs of progress
CONVERT = "convert it, for example with `magick IN -resize 32x32! -type TrueColor OUT`"


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


def read(path: Path, dataset: str, name: str | None, progress: Progress) -> Dataset:
    """The dataset at `path`, in whatever packaging; raises DataError for what cannot be read or trusted."""
    try:
        return read_any(path.expanduser(), dataset, name, progress)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None


def read_any(path: Path, dataset: str, name: str | None, progress: Progress) -> Dataset:
    """As `read`; an OSError is still one."""
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.")
    if path.is_file():
        return read_archive(path, dataset, progress)
    if (path / "train").is_dir() or (path / "test").is_dir():
        return read_image_folder(path, name or path.resolve().name, progress)
    if any((path / file).exists() for file in published_facts(dataset).train):
        return read_batches(dataset, lambda file: read_file(path / file), str(path), progress)
    for other in data.PUBLISHED:
        if other != dataset and any((path / file).is_file() for file in published_facts(other).train):
            raise DataError(f"{path} is the extracted folder of {other}: add `--dataset {other}`.")
    raise DataError(
        f"{path} is neither an image folder (train/<class>/*, test/<class>/*) nor the extracted folder of {dataset}."
    )


# ------------------------------------------------------------------------------------------------ official pickles


def read_archive(path: Path, dataset: str, progress: Progress) -> Dataset:
    """An official archive, read member by member; nothing is extracted to disk."""
    facts = published_facts(dataset)
    if (found := md5_of(path)) != facts.archive_md5:
        for other in data.PUBLISHED:
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
    return data.describe(dataset, tuple(meta[facts.classes_key]), train, test, source, published=True)


def in_order(names: Iterable[str], labels: Iterable[int], pixels: np.ndarray) -> Split:
    """A split in the order of the file names without their endings; images uint8 (N, 3, 32, 32)."""
    label_list = list(labels)
    keys = [(os.path.splitext(name)[0], label) for name, label in zip(names, label_list, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    images = torch.from_numpy(np.ascontiguousarray(pixels[order]))
    return Split(images, torch.tensor(label_list, dtype=torch.int64)[order])


# -------------------------------------------------------------------------------------------------- image folders


def read_image_folder(root: Path, name: str, progress: Progress) -> Dataset:
    """`root/train/<class>/*` and `root/test/<class>/*`: PNG, JPEG or WebP files of 32x32 RGB pixels."""
    classes = check_classes(root)
    listing = {split: list_images(root / split, classes) for split in ("train", "test")}
    both = [*listing["train"], *listing["test"]]
    pixels = read_all([path for path, _ in both], progress)
    names, labels = [path.name for path, _ in both], [label for _, label in both]
    end = len(listing["train"])
    train = in_order(names[:end], labels[:end], pixels[:end])
    test = in_order(names[end:], labels[end:], pixels[end:])
    return data.describe(name, tuple(classes), train, test, str(root))


def read_all(paths: list[Path], progress: Progress) -> np.ndarray:
    """The pixels of all files, uint8 (N, 3, 32, 32), read by as many threads as there are processors."""
    pixels = np.empty((len(paths), 3, SIDE, SIDE), dtype=np.uint8)

    def read_chunk(start: int) -> int:
        for i in range(start, min(start + CHUNK, len(paths))):
            pixels[i] = read_pixels(paths[i])
        return min(start + CHUNK, len(paths))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done in pool.map(read_chunk, range(0, len(paths), CHUNK)):
                progress("reading images", done, len(paths))
        except BaseException:  # a bad file or Ctrl-C: do not read the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pixels


def check_classes(root: Path) -> list[str]:
    """The classes, the same in both splits, in alphabetical order."""
    found = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no '{split}' folder: an image folder holds train/<class>/* and test/<class>/*."
            )
        found[split] = {
            path.name for path in (root / split).iterdir() if path.is_dir() and not path.name.startswith(".")
        }
    for one, other in (("train", "test"), ("test", "train")):
        if missing := sorted(found[one] - found[other]):
            raise DataError(
                f"{root} has the class '{missing[0]}' in '{one}' but not in '{other}': both need the same classes."
            )
    if not 2 <= len(found["train"]) <= data.MOST_CLASSES:
        raise DataError(f"{root}/train holds {len(found['train'])} class folders: 2 to {data.MOST_CLASSES} are needed.")
    return sorted(found["train"])


def list_images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The image files of a split with their labels."""
    files = []
    for label, name in enumerate(classes):
        # Names that begin with a dot are the file manager's own (macOS writes ._cat.png beside cat.png).
        paths = [
            path
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
        if not paths:
            raise DataError(f"There is no PNG, JPEG or WebP file in {folder / name}.")
        files += [(path, label) for path in paths]
    return files


def read_pixels(path: Path) -> np.ndarray:
    """One image file as uint8 (3, 32, 32); it must be RGB of that very size, so that nothing is changed unasked."""
    try:
        with Image.open(path) as picture:
            if picture.size != (SIDE, SIDE):
                raise DataError(f"{path} is {picture.width}x{picture.height} pixels, not 32x32: {CONVERT}.")
            if picture.mode != "RGB":
                kinds = {
                    "L": "greyscale",
                    "P": "a palette image",
                    "RGBA": "RGB with transparency",
                    "1": "black and white",
                }
                raise DataError(f"{path} is {kinds.get(picture.mode, picture.mode)}, not RGB: {CONVERT}.")
            return np.asarray(picture).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path} is not an image that can be read: replace or remove it.") from None
