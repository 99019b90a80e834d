"""Datasets on disk: one file each in FASTCIFAR_HOME, of images in the order of their published file names.

The order does not depend on where the images came from, so the same seed gives the same run from an archive and from
a folder. The SHA-256 of the content says whether it is the published dataset.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from fastcifar.data import dataset as datasets
from fastcifar.data.cifar import published_facts, read_archive, read_batches, read_file
from fastcifar.data.dataset import (
    EMBEDDED,
    HASHES,
    PUBLISHED,
    Dataset,
    Progress,
    Split,
    check,
    combine,
    digest_of,
    silent,
)
from fastcifar.data.images import read_image_folder
from fastcifar.errors import DataError, UsageError
from fastcifar.system import files
from fastcifar.system.files import alone, home


class MissingDataset(DataError):
    """The dataset is not on this machine."""


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
        from fastcifar.data import shapes

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
    from fastcifar.data import cifar as importing
    from fastcifar.data import fetch

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
        found = keep(replace(read(archive, name, None, progress), source=address))
        archive.unlink(missing_ok=True)
        return found


def import_from(path: Path, dataset: str = "cifar10", name: str | None = None, progress: Progress = silent) -> Dataset:
    """Import an official archive, its extracted folder, or an image folder `train/<class>/*`, `test/<class>/*`.

    Published content is kept under its published name, other content under `name` (default: the folder's). Raises
    DataError for what cannot be read or trusted, UsageError for a name that belongs to other content.
    """

    if dataset not in PUBLISHED:
        raise UsageError(f"With --from, --dataset is {' or '.join(PUBLISHED)}: name a dataset of your own with --name.")
    if name is not None:
        path_of(name)  # a name that cannot be is refused before a minute of reading
    found = read(path, dataset, name, progress)
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
    from fastcifar.data import cifar as importing

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


def load_dataset(name: str = "cifar10") -> Dataset:
    """A dataset on this machine: `shapes` always, others after `fastcifar download`; raises DataError elsewhere."""
    return load(name)


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
    for other in datasets.PUBLISHED:
        if other != dataset and any((path / file).is_file() for file in published_facts(other).train):
            raise DataError(f"{path} is the extracted folder of {other}: add `--dataset {other}`.")
    raise DataError(
        f"{path} is neither an image folder (train/<class>/*, test/<class>/*) nor the extracted folder of {dataset}."
    )
