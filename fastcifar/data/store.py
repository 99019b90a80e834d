"""Datasets on disk: one file each in FASTCIFAR_HOME, of images in the order of their published file names.

The order does not depend on where the images came from, so the same seed gives the same run from an archive and from
a folder. The SHA-256 of the content says whether it is the published dataset.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from fastcifar.data.cifar import published_facts, read_archive, read_batches, read_file
from fastcifar.data.dataset import (
    EMBEDDED,
    HASHES,
    PUBLISHED,
    Dataset,
    Progress,
    Split,
    check_dataset,
    combine_digests,
    digest_of,
    no_progress,
)
from fastcifar.data.images import read_image_folder
from fastcifar.errors import DataError, UsageError
from fastcifar.system import files
from fastcifar.system.files import home, home_lock


class MissingDataset(DataError):
    """The dataset is not on this machine."""


def dataset_path(name: str) -> Path:
    """The file of a dataset; raises UsageError for a name that could not be a file's."""
    if not name or name.startswith(".") or any(character in name for character in "/\\:\0"):
        raise UsageError(f"'{name}' cannot be the name of a dataset: use letters, digits, '-' and '_'.")
    return home() / f"{name}.pt"


def dataset_names() -> list[str]:
    """The datasets that can be loaded now: those in home, and the embedded one."""
    return sorted({EMBEDDED, *(path.stem for path in home().glob("[!.]*.pt") if path.is_file())})


def download_hint(name: str) -> str:
    """How to get the dataset of that name, as the end of a sentence."""
    if name in PUBLISHED:
        return f"`fastcifar download --dataset {name}` (with --url for a mirror, with --from PATH for files you have)"
    return f"`fastcifar download --from PATH --name {name}`"


def load_dataset(name: str = "cifar10") -> Dataset:
    """A dataset that is here, its images memory-mapped; header and shapes are checked, not every byte.

    Raises MissingDataset with the ways to get it, DataError where the file is damaged or from another version.
    """
    if name == EMBEDDED:
        from fastcifar.data.shapes import make_shapes

        return make_shapes()
    path = dataset_path(name)
    if not path.exists():
        raise MissingDataset(
            f"Dataset '{name}' is not on this machine ({path}): get it with {download_hint(name)}, or use the "
            f"embedded one with `--dataset shapes`; here are: {', '.join(dataset_names())}."
        )
    again = f"get it again with {download_hint(name)} after `fastcifar download --remove --dataset {name}`"
    try:
        tree = files.load_tensors(path, "dataset", mmap=True)
        dataset = Dataset(
            name,
            tuple(tree["classes"]),
            Split(tree["train_images"], tree["train_labels"]),
            Split(tree["test_images"], tree["test_labels"]),
            *(tree[key] for key in ("mean", "std", "digest", "published", "source")),
        )
        check_dataset(dataset)
    except DataError as error:
        raise DataError(f"{str(error).rstrip('.')}; {again}.") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path} is damaged; {again}.") from None
    return dataset


def save_dataset(dataset: Dataset) -> Dataset:
    """Write a dataset to its file, one process at a time, and load it from there."""
    path = dataset_path(dataset.name)
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
    with home_lock(".lock"):
        files.save_tensors(path, "dataset", tree)
    return load_dataset(dataset.name)


def download_dataset(name: str, url: str | None = None, progress: Progress = no_progress) -> Dataset:
    """Get a published dataset from its address or a mirror; its checksum decides. Goes on with a broken download.

    Raises UsageError for a dataset that is not published, DataError where it cannot be had, with the ways out.
    """
    from fastcifar.data import fetch
    from fastcifar.data.cifar import published_facts

    if name == EMBEDDED:
        raise UsageError(f"'{name}' is part of fastcifar: nothing to download, use it with `--dataset {name}`.")
    if name not in PUBLISHED:
        raise UsageError(
            f"Only {' and '.join(PUBLISHED)} can be downloaded: import '{name}' with --from PATH --name {name}."
        )
    facts = published_facts(name)
    archive = home() / facts.archive
    address = url or facts.url
    with home_lock(".download.lock"):
        if dataset_path(name).exists():  # another process was quicker, or it was here before
            return verify_dataset(name, progress)
        fetch.fetch(address, archive, facts.archive_md5, progress)
        found = save_dataset(replace(read_source(archive, name, None, progress), source=address))
        archive.unlink(missing_ok=True)
        return found


def import_dataset(
    path: Path, dataset: str = "cifar10", name: str | None = None, progress: Progress = no_progress
) -> Dataset:
    """Import an official archive, its extracted folder, or an image folder `train/<class>/*`, `test/<class>/*`.

    Published content is kept under its published name, other content under `name` (default: the folder's). Raises
    DataError for what cannot be read or trusted, UsageError for a name that belongs to other content.
    """

    if dataset not in PUBLISHED:
        raise UsageError(f"With --from, --dataset is {' or '.join(PUBLISHED)}: name a dataset of your own with --name.")
    if name is not None:
        dataset_path(name)  # a name that cannot be is refused before a minute of reading
    found = read_source(path, dataset, name, progress)
    if found.name in (*PUBLISHED, EMBEDDED) and not found.published:
        raise UsageError(f"{path} does not hold the published '{found.name}': keep it under a --name of its own.")
    return save_dataset(found)


def verify_dataset(name: str, progress: Progress = no_progress) -> Dataset:
    """Hash the content of a dataset again; raises DataError where it is not what it was, or was published as."""
    dataset = load_dataset(name)
    progress("hashing", 0, 2)
    train = digest_of(dataset.train)
    progress("hashing", 1, 2)
    test = digest_of(dataset.test)
    progress("hashing", 2, 2)
    if combine_digests(train, test) != dataset.digest or HASHES.get(name, (train, test)) != (train, test):
        raise DataError(
            f"{dataset_path(name)} is damaged, its content has changed: remove it with "
            f"`fastcifar download --remove --dataset {name}` and get it again."
        )
    return dataset


def remove_dataset(name: str) -> list[Path]:
    """Remove a dataset and what is left of its download; returns what was removed."""
    from fastcifar.data.cifar import published_facts

    path = dataset_path(name)
    candidates = [path, *path.parent.glob(f".{glob.escape(path.name)}.*.tmp")]  # of a process that was killed
    if name in PUBLISHED:
        archive = home() / published_facts(name).archive
        candidates += [archive, archive.with_name(archive.name + ".part")]
    found = [path for path in candidates if path.is_file()]
    for path in found:
        try:
            path.unlink()
        except OSError as error:
            raise DataError(f"{path} cannot be removed: {error.strerror}.") from None
    return found


def read_source(path: Path, dataset: str, name: str | None, progress: Progress) -> Dataset:
    """The dataset at `path`, in whatever packaging; raises DataError for what cannot be read or trusted."""
    try:
        return read_any_source(path.expanduser(), dataset, name, progress)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None


def read_any_source(path: Path, dataset: str, name: str | None, progress: Progress) -> Dataset:
    """As `read`; an OSError is still one."""
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.")
    if path.is_file():
        return read_archive(path, dataset, progress)
    if (path / "train").is_dir() or (path / "test").is_dir():
        return read_image_folder(path, name or path.resolve().name, progress)
    if any((path / file).exists() for file in published_facts(dataset).train):
        return read_batches(dataset, lambda file: read_file(path / file), str(path), progress)
    for other in PUBLISHED:
        if other != dataset and any((path / file).is_file() for file in published_facts(other).train):
            raise DataError(f"{path} is the extracted folder of {other}: add `--dataset {other}`.")
    raise DataError(
        f"{path} is neither an image folder (train/<class>/*, test/<class>/*) nor the extracted folder of {dataset}."
    )
