"""The datasets in FASTCIFAR_HOME, one file each: load, import, download, verify and remove them.

Files of earlier versions hold the images in the order of their file names; they are converted when they are loaded.
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
    Note,
    Progress,
    Split,
    combine_digests,
    digest_of,
    no_note,
    no_progress,
)
from fastcifar.data.fetch import fetch
from fastcifar.data.mirrors import remote_archive
from fastcifar.data.readers import read_source
from fastcifar.data.shapes import make_shapes
from fastcifar.data.source import Reading
from fastcifar.errors import DataError, UsageError
from fastcifar.system.files import dataset_files, expand_user, home, home_lock, load_tensors, save_tensors

ORDER = "SHA-256 of the pixels, then the label"  # of the images, stored under "order"; earlier files lack it
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


def load_dataset(name: str = "cifar10", note: Note = no_note) -> Dataset:
    """A dataset on this machine: `shapes` always, others after `fastcifar download`.

    Its images are memory-mapped; types and shapes are checked, not every byte (`verify_dataset` does). A file of the
    earlier order is converted, which `note` is given a sentence about. Raises MissingDataset with the command that
    gets it, DataError where its file is damaged or from another version.
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
    return dataset if tree.get("order") == ORDER else convert_order(dataset, note)


def convert_order(dataset: Dataset, note: Note) -> Dataset:
    """A dataset in the order of its file names, as earlier versions stored it, in the order of its content.

    Its file is replaced, where that can be written. Raises DataError where the content has changed since it was stored.
    """
    path = dataset_path(dataset.name)
    built = Dataset.build(dataset.name, dataset.classes, dataset.train, dataset.test, dataset.source, dataset.published)
    converted = replace(built, name=dataset.name)
    intact = combine_digests(digest_of(dataset.train), digest_of(dataset.test)) == dataset.digest
    if not intact or HASHES.get(dataset.name, ()) not in ((), (digest_of(built.train), digest_of(built.test))):
        raise DataError(damage(dataset.name))
    what = f"Dataset '{dataset.name}' was stored in the order of its file names; it is now in the order of its content"
    try:
        saved = save_dataset(converted)
    except DataError as error:
        note(f"{what}, for this command alone, since the file was not replaced: {error}")
        return converted
    note(f"{what} ({path}), so that the same seed gives another run than before.")
    return saved


def damage(name: str) -> str:
    """The message for a dataset whose content is not what was stored."""
    return (
        f"{dataset_path(name)} is damaged, its content has changed: remove it with "
        f"`fastcifar download --remove --dataset {name}` and get it again."
    )


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
        "order": ORDER,
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
        dataset = save_dataset(replace(read_source(archive, Reading(name, progress=progress)), source=address))
        archive.unlink(missing_ok=True)
        return dataset


def import_dataset(
    path: Path,
    dataset: str = "cifar10",
    name: str | None = None,
    progress: Progress = no_progress,
    note: Note = no_note,
    *,
    resize: bool = False,
    test_share: float | None = None,
) -> Dataset:
    """Import images in any of the forms in `readers.READERS`.

    `dataset` says which published one an archive is of. Published content is kept under its published name, other
    content under `name` (default: that of the folder or file). With `resize`, images of any size and kind become RGB of
    32x32 pixels; with `test_share` (0..1), that share of each class of data without test images is set aside. `note`
    is given what was left out and set aside. Raises DataError for what cannot be read or trusted, UsageError for a name
    that belongs to other content and for a wrong share.
    """
    if dataset not in PUBLISHED:
        raise UsageError(f"With --from, --dataset is {' or '.join(PUBLISHED)}: name a dataset of your own with --name.")
    if test_share is not None and not 0 < test_share < 1:
        raise UsageError(f"--test-share {test_share:g} must lie between 0 and 1: 0.2 is a fifth of each class.")
    if name is not None:
        dataset_path(name)  # an impossible name is refused now, not after a minute of reading
    imported = read_source(expand_user(path), Reading(dataset, resize, progress), name, test_share, note)
    if imported.name in (*PUBLISHED, EMBEDDED) and not imported.published:
        raise UsageError(f"{path} does not hold the published '{imported.name}': keep it under a --name of its own.")
    return save_dataset(imported)


def verify_dataset(name: str, progress: Progress = no_progress, note: Note = no_note) -> Dataset:
    """Load a dataset and hash its content again.

    Raises DataError where the content has changed, or is not the published one under a published name.
    """
    dataset = load_dataset(name, note)
    progress("hashing", 0, 2)
    train = digest_of(dataset.train)
    progress("hashing", 1, 2)
    test = digest_of(dataset.test)
    progress("hashing", 2, 2)
    if combine_digests(train, test) != dataset.digest or HASHES.get(name, (train, test)) != (train, test):
        raise DataError(damage(name))
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
