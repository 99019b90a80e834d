"""The datasets in FASTCIFAR_HOME, one file each: load, import, download, verify and remove them.

Images are stored in the order of their published file names, wherever they came from, so that the same seed gives the
same run from an archive and from a folder.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from fastcifar.data import cifar
from fastcifar.data.dataset import (
    EMBEDDED,
    HASHES,
    PUBLISHED,
    Dataset,
    Progress,
    Split,
    combine_digests,
    digest_of,
    no_progress,
)
from fastcifar.data.fetch import Note, fetch, no_note
from fastcifar.data.images import read_image_folder
from fastcifar.data.mirrors import remote_archive
from fastcifar.data.shapes import make_shapes
from fastcifar.errors import DataError, UsageError
from fastcifar.system.files import dataset_files, expand_user, home, home_lock, load_tensors, save_tensors

FIELDS = ("mean", "std", "digest", "published", "source")  # of Dataset, stored under these names


class MissingDataset(DataError):
    """The dataset is not on this machine."""


def dataset_path(name: str) -> Path:
    """The file of a dataset in FASTCIFAR_HOME; raises UsageError for a name that cannot be a file's."""
    if not name or name.startswith(".") or any(character in name for character in "/\\:\0"):
        raise UsageError(f"'{name}' cannot be the name of a dataset: use letters, digits, '-' and '_'.")
    return home() / f"{name}.pt"


def dataset_names() -> list[str]:
    """The datasets on this machine: those in FASTCIFAR_HOME, and the embedded one."""
    return sorted({EMBEDDED, *(path.stem for path in dataset_files())})


def download_hint(name: str) -> str:
    """The command that gets a dataset, for error messages."""
    if name in PUBLISHED:
        return f"`fastcifar download --dataset {name}` (with --url for a mirror, with --from PATH for files you have)"
    return f"`fastcifar download --from PATH --name {name}`"


def load_dataset(name: str = "cifar10") -> Dataset:
    """A dataset on this machine: `shapes` always, others after `fastcifar download`.

    Its images are memory-mapped; types and shapes are checked, not every byte (`verify_dataset` does). Raises
    MissingDataset with the command that gets it, DataError where its file is damaged or from another version.
    """
    if name == EMBEDDED:
        return make_shapes()
    path = dataset_path(name)
    if not path.exists():
        raise MissingDataset(
            f"Dataset '{name}' is not on this machine ({path}): get it with {download_hint(name)}, or use the "
            f"embedded one with `--dataset shapes`; here are: {', '.join(dataset_names())}."
        )
    again = f"get it again with {download_hint(name)} after `fastcifar download --remove --dataset {name}`"
    try:
        tree = load_tensors(path, "dataset", mmap=True)
        train = Split(tree["train_images"], tree["train_labels"])
        test = Split(tree["test_images"], tree["test_labels"])
        dataset = Dataset(name, tuple(tree["classes"]), train, test, **{key: tree[key] for key in FIELDS})
        dataset.validate()
    except DataError as error:
        raise DataError(f"{str(error).rstrip('.')}; {again}.") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path} is damaged; {again}.") from None
    return dataset


def save_dataset(dataset: Dataset) -> Dataset:
    """Write a dataset to its file, one process at a time, and load it from there."""
    path = dataset_path(dataset.name)
    if path.is_dir():
        raise DataError(f"{path} is a folder where the dataset should go: move it away.")
    tree = {
        "classes": list(dataset.classes),
        "train_images": dataset.train.images,
        "train_labels": dataset.train.labels,
        "test_images": dataset.test.images,
        "test_labels": dataset.test.labels,
        **{key: getattr(dataset, key) for key in FIELDS},
    }
    with home_lock(".lock"):
        save_tensors(path, "dataset", tree)
    return load_dataset(dataset.name)


def download_dataset(
    name: str, url: str | None = None, progress: Progress = no_progress, note: Note = no_note
) -> Dataset:
    """Download a published dataset from the first good server, or from `url` alone, resuming an unfinished download.

    `note` is given sentences: which server is tried, and why the last one was left. A dataset that is on this machine
    already is verified instead. Raises UsageError for one that is not published, DataError where it cannot be
    downloaded or is not, byte for byte, the published one.
    """
    if name == EMBEDDED:
        raise UsageError(f"'{name}' is part of fastcifar: nothing to download, use it with `--dataset {name}`.")
    if name not in PUBLISHED:
        raise UsageError(
            f"Only {' and '.join(PUBLISHED)} can be downloaded: import '{name}' with --from PATH --name {name}."
        )
    archive = home() / cifar.published_facts(name).archive
    with home_lock(".download.lock"):
        if dataset_path(name).exists():  # perhaps since another process has downloaded it
            return verify_dataset(name, progress)
        address = fetch(remote_archive(name, url), archive, progress, note)
        dataset = save_dataset(replace(read_source(archive, name, None, progress), source=address))
        archive.unlink(missing_ok=True)
        return dataset


def import_dataset(
    path: Path, dataset: str = "cifar10", name: str | None = None, progress: Progress = no_progress
) -> Dataset:
    """Import a published archive, its extracted folder, or an image folder `train/<class>/*`, `test/<class>/*`.

    `dataset` says which published one an archive is of. Published content is kept under its published name, other
    content under `name` (default: the folder's). Raises DataError for what cannot be read or trusted, UsageError for a
    name that belongs to other content.
    """
    if dataset not in PUBLISHED:
        raise UsageError(f"With --from, --dataset is {' or '.join(PUBLISHED)}: name a dataset of your own with --name.")
    if name is not None:
        dataset_path(name)  # an impossible name is refused now, not after a minute of reading
    imported = read_source(path, dataset, name, progress)
    if imported.name in (*PUBLISHED, EMBEDDED) and not imported.published:
        raise UsageError(f"{path} does not hold the published '{imported.name}': keep it under a --name of its own.")
    return save_dataset(imported)


def verify_dataset(name: str, progress: Progress = no_progress) -> Dataset:
    """Load a dataset and hash its content again.

    Raises DataError where the content has changed, or is not the published one under a published name.
    """
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
    """Remove a dataset and what is left of its download; returns the files that were removed."""
    path = dataset_path(name)
    candidates = [path, *path.parent.glob(f".{glob.escape(path.name)}.*.tmp")]  # of a process that was killed
    if name in PUBLISHED:
        archive = home() / cifar.published_facts(name).archive
        candidates += [archive, archive.with_name(archive.name + ".part")]
    files = [path for path in candidates if path.is_file()]
    for file in files:
        try:
            file.unlink()
        except OSError as error:
            raise DataError(f"{file} cannot be removed: {error.strerror}.") from None
    return files


def read_source(path: Path, dataset: str, name: str | None, progress: Progress) -> Dataset:
    """The dataset in an archive or a folder, told apart by their content.

    Raises DataError for what is none of these, cannot be read, or cannot be trusted.
    """
    path = expand_user(path)
    try:
        if not path.exists():
            raise DataError(f"There is no file or folder {path}.")
        if path.is_file():
            return cifar.read_archive(path, dataset, progress)
        if (path / "train").is_dir() or (path / "test").is_dir():
            return read_image_folder(path, name or path.resolve().name, progress)
        if any((path / file).exists() for file in cifar.published_facts(dataset).train):
            return cifar.read_batches(dataset, lambda file: cifar.read_file(path / file), str(path), progress)
        for other in PUBLISHED:
            if other != dataset and any((path / file).is_file() for file in cifar.published_facts(other).train):
                raise DataError(f"{path} is the extracted folder of {other}: add `--dataset {other}`.")
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
    raise DataError(
        f"{path} is neither an image folder (train/<class>/*, test/<class>/*) nor the extracted folder of {dataset}."
    )
