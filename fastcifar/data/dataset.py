"""A dataset in memory: images, labels, statistics, digests, and parts of it. No file is read here.

The images of a split are kept in one order, that of the SHA-256 of their pixels, so that the same seed gives the same
run whatever form the images came in: file names, their order and the parts of an archive play no part.
"""

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
CHUNK = 5000  # images hashed at once
# SHA-256 of the published splits (train, test) as `digest_of` takes them, by which their content is known in any form.
HASHES = {
    "cifar10": (
        "ae883a95fedf31aa5f387fc823efbe8561c4639a9a18e26e4f7d2b0d7846b5ba",
        "fbdc181eb36ce944cdef2bec662c5a9406c7a62a7efc665534b17ed47de7a468",
    ),
    "cifar100": (
        "0774179284d93ed68b79d89d3dc2ee7d18c2ca18b1e0be3ea1fbb6aba282dcf2",
        "59e227415b5d2943041cf2ec0f2aa80eb0d0e512f32de24112c8e7c1310b8c46",
    ),
}
CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
# The published classes in the order of their labels, which is that of the alphabet.
CLASSES = {"cifar10": tuple(CIFAR10_NAMES.split()), "cifar100": tuple(CIFAR100_NAMES.split())}

Progress = Callable[[str, int, "int | None"], None]  # what is being done, how much of it is done, of how much
Note = Callable[[str], None]  # a sentence for the user


def no_progress(what: str, done: int, total: int | None) -> None:
    """A Progress that does nothing."""


def no_note(sentence: str) -> None:
    """A Note that does nothing."""


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
        """A dataset of these images in their order by content, with its statistics and digest computed.

        Content that hashes like a published dataset gets its name and classes, whatever form it came in.
        """
        train, test = sort_by_content(train), sort_by_content(test)
        hashes = digest_of(train), digest_of(test)
        mean, std = pixel_statistics(train.images)
        for known, published_hashes in HASHES.items():
            if hashes == published_hashes:
                name, classes, published = known, CLASSES[known], True
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


def sort_by_content(split: Split) -> Split:
    """The images in the order of the SHA-256 of their 3,072 bytes, then of their labels."""
    pixels, labels = split.images.contiguous().numpy(), split.labels.tolist()
    keys = [(hashlib.sha256(image.data).digest(), label) for image, label in zip(pixels, labels, strict=True)]
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    return Split(split.images[order], split.labels[order])


def digest_of(split: Split) -> str:
    """SHA-256 over the images in their order, each as one label byte and 3,072 pixel bytes (hexadecimal).

    A label takes two bytes, the low one first, in a split that has labels above 255.
    """
    low, high = (split.labels % 256).to(torch.uint8), (split.labels // 256).to(torch.uint8)
    label = torch.stack([low, high] if high.any() else [low], dim=1)
    digest = hashlib.sha256()
    for parts in zip(torch.split(label, CHUNK), torch.split(split.images.flatten(1), CHUNK), strict=True):
        digest.update(torch.cat(parts, dim=1).numpy().data)
    return digest.hexdigest()


def combine_digests(train: str, test: str) -> str:
    """The digest of a dataset from those of its two splits."""
    return hashlib.sha256(f"{train}{test}".encode()).hexdigest()


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, 3, H, W) over all pixels, scaled to 0..1.

    Exact, from the counts of the 256 values. The standard deviation of a channel with one value is given as 1, so that
    images can be divided by it.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        means.append(float(mean))
        std = float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
        stds.append(std if counts.count_nonzero() > 1 else 1.0)
    return tuple(means), tuple(stds)
