"""What the readers of all forms of data share: how to read, what was found, and what was left out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcifar.data.dataset import MAX_CLASSES, Progress, Split, no_progress
from fastcifar.data.images import SUFFIXES, Conversion, crop_and_resize, require_exact
from fastcifar.errors import DataError

# Names of a split, best first: 'val' is the test split only where there is no 'test'.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev"),
}
LITTER = (
    "__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "#recycle", "$RECYCLE.BIN", "System Volume Information",
    "lost+found", "__pycache__",
)  # fmt: skip


class LeftOut:
    """What an import does not take, counted by reason."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: Path | str, count: int = 1) -> None:
        """Count something that is left out; the reason is a plural ('files that are no images')."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, str(example))

    def sentence(self) -> str | None:
        """What was left out in one line; None where all was taken."""
        parts = [f"{reason} ({count:,}, such as {self.examples[reason]})" for reason, count in self.counts.items()]
        return f"Left out: {'; '.join(parts)}." if parts else None


@dataclass(frozen=True)
class Reading:
    """How a source is read."""

    dataset: str = "cifar10"  # the published one that a published archive is of
    resize: bool = False
    progress: Progress = no_progress
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def convert(self) -> Conversion:
        """The conversion of images: of any size and kind with `resize`, else of none."""
        return crop_and_resize if self.resize else require_exact


@dataclass(frozen=True)
class Found:
    """Labelled images from a source; `test` is None where they are not split."""

    classes: tuple[str, ...]
    train: Split
    test: Split | None
    published: str | None = None  # the published dataset that the form belongs to
    proven: bool = False  # whether checksums of the files prove it; else the content must hash like it


def as_split(pixels: np.ndarray, labels: Tensor | Sequence[int]) -> Split:
    """A split of uint8 pixels (N, 3, 32, 32) and whole numbers (N,)."""
    return Split(torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(labels, dtype=torch.int64))


def list_folder(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """What is in a folder, by name, without the files that systems leave there (.DS_Store, ._cat.png, Thumbs.db).

    Raises DataError where it cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    for path in entries:
        if left_out is not None and is_litter(path.name):
            left_out.add("hidden or system files", path)
    return [path for path in entries if not is_litter(path.name)]


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is a file manager's, an editor's or the system's own."""
    return name.startswith(".") or name in LITTER


def is_image(path: Path) -> bool:
    """Whether a path has the suffix of an image."""
    return path.suffix.lower() in SUFFIXES


def list_images(folder: Path, left_out: LeftOut) -> list[Path]:
    """The image files in a folder, by name; other files, and what is in folders inside it, are left out."""
    files = []
    for path in list_folder(folder, left_out):
        if is_image(path) and not path.is_dir():
            files.append(path)
        else:
            leave(path, left_out)
    return files


def leave(path: Path, left_out: LeftOut) -> None:
    """Count a file that is not taken, or the images in a folder that is not, at any depth."""
    if not path.is_dir():
        left_out.add("images outside class folders" if is_image(path) else "files that are no images", path)
        return
    inside = [Path(root) / file for root, _, files in os.walk(path) for file in files if not is_litter(file)]
    images = [file for file in inside if is_image(file)]
    if images:
        left_out.add("images in other folders", min(images), len(images))
    else:
        left_out.add("folders without images", path)


def words_of(name: str) -> list[str]:
    """The words and numbers in the name of a file or array, in lower case: 'trainLabels_v6' is train, labels, v, 6."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def split_in(name: str) -> str | None:
    """The word for a split in the name of a file or array ('x_train.npy': train); None where there is none."""
    names = {*SPLIT_NAMES["train"], *SPLIT_NAMES["test"]}
    return next((word for word in words_of(name) if word in names), None)


def choose_splits(names: Iterable[str]) -> tuple[str | None, str | None]:
    """Of the names that parts of a source go by, those of its training and its test split; None: it has none."""
    known = {name.lower(): name for name in names}
    train, test = (next((known[name] for name in SPLIT_NAMES[kind] if name in known), None) for kind in SPLIT_NAMES)
    return train, test


def order_classes(names: Iterable[str], source: Path) -> tuple[str, ...]:
    """The classes in the order of their labels: that of the alphabet, of numbers where all names are numbers.

    Raises DataError where there are too few or too many for a dataset.
    """
    unique = set(names)
    if not 2 <= len(unique) <= MAX_CLASSES:
        raise DataError(f"{source} holds images of {len(unique)} classes: 2 to {MAX_CLASSES} are needed.")
    numbers = all(name.isascii() and name.isdigit() for name in unique)
    return tuple(sorted(unique, key=(lambda name: (int(name), name)) if numbers else None))


def number_labels(parts: Iterable[Iterable[str]], source: Path) -> tuple[tuple[str, ...], list[Tensor]]:
    """The classes that are named in the parts of a source, and the label of each image in each part, int64."""
    lists = [list(part) for part in parts]
    classes = order_classes((name for part in lists for name in part), source)
    places = {name: place for place, name in enumerate(classes)}
    return classes, [torch.tensor([places[name] for name in part], dtype=torch.int64) for part in lists]
