"""Datasets on disk: one file each in FASTCIFAR_HOME, of images in the order of their published file names.

The order does not depend on where the images came from, so the same seed gives the same run from an archive and from
a folder. The SHA-256 of the content says whether it is the published dataset.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastcifar import files
from fastcifar.errors import DataError, UsageError

Progress = Callable[[str, int, "int | None"], None]  # what is done, how far, of how much
PUBLISHED = ("cifar10", "cifar100")
EMBEDDED = "shapes"
# Over the images in the order of their file names, each as one label byte and 3,072 pixel bytes.
CIFAR10_TRAIN = "3f22cf621aef4f8ecb67009b5044c768c56b3a18fff11f905bcb787483970b57"
CIFAR10_TEST = "89e0d8490166e2bd8b0cb83c22c94d530e6cbf02b2f4f26b1be6da8f3b24f76f"
HASHES = {"cifar10": (CIFAR10_TRAIN, CIFAR10_TEST)}  # of content that is known by itself, whatever it came in
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_CLASSES = 1000


class MissingDataset(DataError):
    """The dataset is not on this machine."""


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


def silent(what: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def home() -> Path:
    """The folder of datasets and caches, private to the user: FASTCIFAR_HOME, or one in the user's cache folder."""
    if chosen := os.environ.get("FASTCIFAR_HOME"):
        folder = Path(chosen).expanduser()
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches" / "fastcifar"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "fastcifar"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcifar"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be used: {error.strerror}; set FASTCIFAR_HOME to a folder of yours."
        ) from None
    return folder


def path_of(name: str) -> Path:
    """The file of a dataset; raises UsageError for a name that could not be a file's."""
    if not name or name.startswith(".") or any(character in name for character in "/\\:\0"):
        raise UsageError(f"'{name}' cannot be the name of a dataset: use letters, digits, '-' and '_'.")
    return home() / f"{name}.pt"


def names() -> list[str]:
    """The datasets that can be loaded now: those in home, and the embedded one."""
    return sorted({EMBEDDED, *(path.stem for path in home().glob("[!.]*.pt") if path.is_file())})


def way_to(name: str) -> str:
    """How to get the dataset of that name, as the end of a sentence."""
    if name in PUBLISHED:
        return f"`fastcifar download --dataset {name}` (with --url for a mirror, with --from PATH for files you have)"
    return f"`fastcifar download --from PATH --name {name}`"


def load(name: str) -> Dataset:
    """A dataset that is here, its images memory-mapped; header and shapes are checked, not every byte.

    Raises MissingDataset with the ways to get it, DataError where the file is damaged or from another version.
    """
    if name == EMBEDDED:
        from fastcifar import shapes

        return shapes.make()
    path = path_of(name)
    if not path.exists():
        raise MissingDataset(
            f"Dataset '{name}' is not on this machine ({path}): get it with {way_to(name)}, or use the embedded one "
            f"with `--dataset shapes`; here are: {', '.join(names())}."
        )
    again = f"get it again with {way_to(name)} after `fastcifar download --remove --dataset {name}`"
    try:
        tree = files.load_tensors(path, "dataset", mmap=True)
        dataset = Dataset(
            name,
            tuple(tree["classes"]),
            Split(tree["train_images"], tree["train_labels"]),
            Split(tree["test_images"], tree["test_labels"]),
            *(tree[key] for key in ("mean", "std", "digest", "published", "source")),
        )
        check(dataset)
    except DataError as error:
        raise DataError(f"{str(error).rstrip('.')}; {again}.") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path} is damaged; {again}.") from None
    return dataset


def hold_out(dataset: Dataset, count: int) -> Dataset:
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


def check(dataset: Dataset) -> None:
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


def combine(train: str, test: str) -> str:
    """One digest of the two splits'."""
    return hashlib.sha256(f"{train}{test}".encode()).hexdigest()


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels in 0..1, exact: from counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        means.append(float(mean))
        stds.append(float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()))
    return tuple(means), tuple(stds)


def describe(
    name: str, classes: tuple[str, ...], train: Split, test: Split, source: str, published: bool = False
) -> Dataset:
    """A dataset with its digest and statistics; what hashes like CIFAR-10 is CIFAR-10, whatever it came in."""
    hashes = digest_of(train), digest_of(test)
    mean, std = statistics(train.images)
    if hashes == HASHES.get("cifar10"):
        name, classes, published = "cifar10", CIFAR10_CLASSES, True
    return Dataset(name, classes, train, test, mean, std, combine(*hashes), published, source)


@contextmanager
def alone(lock: str) -> Iterator[None]:
    """One process at a time in here; raises DataError where home cannot be written."""
    path = home() / lock
    with ExitStack() as held:
        try:
            held.enter_context(files.locked(path))
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror}; set FASTCIFAR_HOME to a folder of yours."
            ) from None
        yield


def keep(dataset: Dataset) -> Dataset:
    """Write a dataset to its file, one process at a time, and load it from there."""
    path = path_of(dataset.name)
    tree = {
        "classes": list(dataset.classes),
        "train_images": dataset.train.images,
        "train_labels": dataset.train.labels,
        "test_images": dataset.test.images,
        "test_labels": dataset.test.labels,
        **{key: getattr(dataset, key) for key in ("mean", "std", "digest", "published", "source")},
    }
    if path.is_dir():
        raise DataError(f"{path} is a folder where the dataset should go: move it away.")
    with alone(".lock"):
        files.save_tensors(path, "dataset", tree)
    return load(dataset.name)


def download(name: str, url: str | None = None, progress: Progress = silent) -> Dataset:
    """Get a published dataset from its address or a mirror; its checksum decides. Goes on with a broken download.

    Raises UsageError for a dataset that is not published, DataError where it cannot be had, with the ways out.
    """
    from fastcifar import fetch, importing

    if name == EMBEDDED:
        raise UsageError(f"'{name}' is part of fastcifar: nothing to download, use it with `--dataset {name}`.")
    if name not in PUBLISHED:
        raise UsageError(
            f"Only {' and '.join(PUBLISHED)} can be downloaded: import '{name}' with --from PATH --name {name}."
        )
    facts = importing.published_facts(name)
    archive = home() / facts.archive
    address = url or facts.url
    with alone(".download.lock"):
        if path_of(name).exists():  # another process was quicker, or it was here before
            return verify(name, progress)
        fetch.fetch(address, archive, facts.archive_md5, progress)
        found = keep(replace(importing.read(archive, name, None, progress), source=address))
        archive.unlink(missing_ok=True)
        return found


def import_from(path: Path, dataset: str = "cifar10", name: str | None = None, progress: Progress = silent) -> Dataset:
    """Import an official archive, its extracted folder, or an image folder `train/<class>/*`, `test/<class>/*`.

    Published content is kept under its published name, other content under `name` (default: the folder's). Raises
    DataError for what cannot be read or trusted, UsageError for a name that belongs to other content.
    """
    from fastcifar import importing

    if dataset not in PUBLISHED:
        raise UsageError(f"With --from, --dataset is {' or '.join(PUBLISHED)}: name a dataset of your own with --name.")
    if name is not None:
        path_of(name)  # a name that cannot be is refused before a minute of reading
    found = importing.read(path, dataset, name, progress)
    if found.name in (*PUBLISHED, EMBEDDED) and not found.published:
        raise UsageError(f"{path} does not hold the published '{found.name}': keep it under a --name of its own.")
    return keep(found)


def verify(name: str, progress: Progress = silent) -> Dataset:
    """Hash the content of a dataset again; raises DataError where it is not what it was, or was published as."""
    dataset = load(name)
    progress("hashing", 0, 2)
    train = digest_of(dataset.train)
    progress("hashing", 1, 2)
    test = digest_of(dataset.test)
    progress("hashing", 2, 2)
    if combine(train, test) != dataset.digest or HASHES.get(name, (train, test)) != (train, test):
        raise DataError(
            f"{path_of(name)} is damaged, its content has changed: remove it with "
            f"`fastcifar download --remove --dataset {name}` and get it again."
        )
    return dataset


def remove(name: str) -> list[Path]:
    """Remove a dataset and what is left of its download; returns what was removed."""
    from fastcifar import importing

    path = path_of(name)
    candidates = [path, *path.parent.glob(f".{glob.escape(path.name)}.*.tmp")]  # of a process that was killed
    if name in PUBLISHED:
        archive = home() / importing.published_facts(name).archive
        candidates += [archive, archive.with_name(archive.name + ".part")]
    found = [path for path in candidates if path.is_file()]
    for path in found:
        try:
            path.unlink()
        except OSError as error:
            raise DataError(f"{path} cannot be removed: {error.strerror}.") from None
    return found
