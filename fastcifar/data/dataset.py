"""A dataset in memory: images, labels, statistics, digests, and parts of it. No file is read here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcifar.errors import UsageError
from fastcifar.recipes.schema import SIDE

PUBLISHED = ("cifar10", "cifar100")
EMBEDDED = "shapes"
MAX_CLASSES = 1000
# SHA-256 of the published splits as `digest_of` takes them, by which their content is known in any packaging.
CIFAR10_TRAIN = "3f22cf621aef4f8ecb67009b5044c768c56b3a18fff11f905bcb787483970b57"
CIFAR10_TEST = "89e0d8490166e2bd8b0cb83c22c94d530e6cbf02b2f4f26b1be6da8f3b24f76f"
HASHES = {"cifar10": (CIFAR10_TRAIN, CIFAR10_TEST)}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Progress = Callable[[str, int, "int | None"], None]  # what is being done, how much of it is done, of how much


def no_progress(what: str, done: int, total: int | None) -> None:
    """A Progress that does nothing."""


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of one set of classes."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]  # of each channel over all pixels of the training images, which lie in 0..1
    std: tuple[float, ...]
    digest: str  # SHA-256 of the content
    published: bool  # whether it is, byte for byte, what others report results on
    source: str  # the file, folder or address it came from

    @classmethod
    def build(
        cls, name: str, classes: tuple[str, ...], train: Split, test: Split, source: str, published: bool = False
    ) -> Dataset:
        """A dataset with its statistics and digest computed.

        Content that hashes like CIFAR-10 gets the name and classes of CIFAR-10, whatever it was packed in.
        """
        hashes = digest_of(train), digest_of(test)
        mean, std = pixel_statistics(train.images)
        if hashes == HASHES.get("cifar10"):
            name, classes, published = "cifar10", CIFAR10_CLASSES, True
        return cls(name, classes, train, test, mean, std, combine_digests(*hashes), published, source)

    def validate(self) -> None:
        """Raise ValueError where a value has not the type, shape or range of a dataset's."""
        if not all(isinstance(text, str) for text in (*self.classes, self.digest, self.source)):
            raise ValueError("classes, digest and source must be text")
        for triple in (self.mean, self.std):
            if len(triple) != 3 or not all(isinstance(value, float) for value in triple):
                raise ValueError("mean and std must be three floats")
        for split in (self.train, self.test):
            count = len(split.labels)
            if split.images.shape != (count, 3, SIDE, SIDE) or split.images.dtype != torch.uint8 or count == 0:
                raise ValueError(f"images must be uint8 (N, 3, {SIDE}, {SIDE})")
            if split.labels.dtype != torch.int64 or split.labels.ndim != 1:
                raise ValueError("labels must be int64 (N,)")
            if not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(self.classes):
                raise ValueError("labels must be numbers of classes")


def subset(dataset: Dataset, keep: Tensor) -> Dataset:
    """The dataset with a part of its training images: a mask, bool (N,), or row numbers, int64 (n,).

    The pixels' mean and standard deviation stay those of the whole. Raises UsageError where no image is kept.
    """
    train = Split(dataset.train.images[keep], dataset.train.labels[keep])
    if not len(train.images):
        raise UsageError("A subset of no images cannot be trained on.")
    name = f"{len(train.images):,} of {dataset.name}"
    digest = combine_digests(digest_of(train), digest_of(dataset.test))
    return replace(dataset, name=name, train=train, digest=digest, published=False)


def holdout_split(dataset: Dataset, count: int) -> Dataset:
    """The dataset with `count` of its training images in place of the test images, the same ones for every seed.

    Choices (of hyper-parameters, of recipes) are made on these, so that the test images stay unseen. With 0, the
    dataset itself. Raises UsageError where no training images would be left.
    """
    if count == 0:
        return dataset
    if count >= len(dataset.train.images):
        raise UsageError(f"data.holdout={count} leaves none of {len(dataset.train.images)} images to train on.")
    order = torch.randperm(len(dataset.train.images), generator=torch.Generator().manual_seed(0))
    kept, held_out = (
        Split(dataset.train.images[rows], dataset.train.labels[rows])
        for rows in (order[count:].sort().values, order[:count].sort().values)
    )
    return replace(dataset, train=kept, test=held_out, published=False)


def digest_of(split: Split) -> str:
    """SHA-256 over the images in their order, each as one label byte and 3,072 pixel bytes (hexadecimal).

    A label takes two bytes, the low one first, in a split that has labels above 255.
    """
    low, high = (split.labels % 256).to(torch.uint8), (split.labels // 256).to(torch.uint8)
    label = torch.stack([low, high] if high.any() else [low], dim=1)
    rows = torch.cat([label, split.images.flatten(1)], dim=1)
    return hashlib.sha256(rows.numpy().data).hexdigest()


def combine_digests(train: str, test: str) -> str:
    """The digest of a dataset from those of its two splits."""
    return hashlib.sha256(f"{train}{test}".encode()).hexdigest()


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, 3, H, W) over all pixels, scaled to 0..1.

    Exact, from the counts of the 256 values.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        means.append(float(mean))
        stds.append(float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()))
    return tuple(means), tuple(stds)
