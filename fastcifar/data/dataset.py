"""A dataset in memory: images, labels, statistics, digests, and parts of it. No file is read here."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcifar.errors import UsageError


def subset(dataset: Dataset, keep: Tensor) -> Dataset:
    """The dataset with a part of its training images: a mask, bool (N,), or their rows, int64 (n,).

    The pixels' mean and standard deviation stay those of the whole.
    """
    train = Split(dataset.train.images[keep], dataset.train.labels[keep])
    if not len(train.images):
        raise UsageError("A subset of no images cannot be trained on.")
    name = f"{len(train.images):,} of {dataset.name}"
    digest = combine_digests(digest_of(train), digest_of(dataset.test))
    return dataclasses.replace(dataset, name=name, train=train, digest=digest, published=False)


Progress = Callable[[str, int, "int | None"], None]  # what is done, how far, of how much
PUBLISHED = ("cifar10", "cifar100")
EMBEDDED = "shapes"
# Over the images in the order of their file names, each as one label byte and 3,072 pixel bytes.
CIFAR10_TRAIN = "3f22cf621aef4f8ecb67009b5044c768c56b3a18fff11f905bcb787483970b57"
CIFAR10_TEST = "89e0d8490166e2bd8b0cb83c22c94d530e6cbf02b2f4f26b1be6da8f3b24f76f"
HASHES = {"cifar10": (CIFAR10_TRAIN, CIFAR10_TEST)}  # of content that is known by itself, whatever it came in
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """A dataset; `mean` and `std` are over all pixels of the training images, RGB in 0..1."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str  # identifies the content
    published: bool  # the very content that others report results on
    source: str


def no_progress(what: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def holdout_split(dataset: Dataset, count: int) -> Dataset:
    """The dataset with `count` of its training images in place of the test images, the same ones for every seed:
    what to judge by while one still chooses. With 0, the dataset itself.

    Raises UsageError where no training images would be left.
    """
    if count == 0:
        return dataset
    if count >= len(dataset.train.images):
        raise UsageError(f"data.holdout={count} leaves none of {len(dataset.train.images)} images to train on.")
    order = torch.randperm(len(dataset.train.images), generator=torch.Generator().manual_seed(0))
    kept, held = (
        Split(dataset.train.images[rows], dataset.train.labels[rows])
        for rows in (order[count:].sort().values, order[:count].sort().values)
    )
    return replace(dataset, train=kept, test=held, published=False)


def check_dataset(dataset: Dataset) -> None:
    """Raise ValueError where a value is not of the kind, shape or range that belongs in a dataset."""
    if not all(isinstance(text, str) for text in (*dataset.classes, dataset.digest, dataset.source)):
        raise ValueError("text")
    if any(len(triple) != 3 or not all(isinstance(x, float) for x in triple) for triple in (dataset.mean, dataset.std)):
        raise ValueError("statistics")
    for split in (dataset.train, dataset.test):
        count = len(split.labels)
        if split.images.shape != (count, 3, 32, 32) or split.images.dtype != torch.uint8 or count == 0:
            raise ValueError("images")
        if split.labels.dtype != torch.int64 or split.labels.ndim != 1:
            raise ValueError("labels")
        if not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(dataset.classes):
            raise ValueError("range of labels")


def digest_of(split: Split) -> str:
    """SHA-256 over the images in their order, each as one label byte and 3,072 pixel bytes (hexadecimal).

    A label takes two bytes, the low one first, in a split that has labels above 255.
    """
    low, high = (split.labels % 256).to(torch.uint8), (split.labels // 256).to(torch.uint8)
    label = torch.stack([low, high] if high.any() else [low], dim=1)
    rows = torch.cat([label, split.images.flatten(1)], dim=1)
    return hashlib.sha256(rows.numpy().data).hexdigest()


def combine_digests(train: str, test: str) -> str:
    """One digest of the two splits'."""
    return hashlib.sha256(f"{train}{test}".encode()).hexdigest()


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels in 0..1, exact: from counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        means.append(float(mean))
        stds.append(float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()))
    return tuple(means), tuple(stds)


def build_dataset(
    name: str, classes: tuple[str, ...], train: Split, test: Split, source: str, published: bool = False
) -> Dataset:
    """A dataset with its digest and statistics; what hashes like CIFAR-10 is CIFAR-10, whatever it came in."""
    hashes = digest_of(train), digest_of(test)
    mean, std = pixel_statistics(train.images)
    if hashes == HASHES.get("cifar10"):
        name, classes, published = "cifar10", CIFAR10_CLASSES, True
    return Dataset(name, classes, train, test, mean, std, combine_digests(*hashes), published, source)
