"""Which reader takes what: every form that data may have, and the dataset that is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastcifar.data.arrays import read_arrays, takes_arrays
from fastcifar.data.binary import read_binary, takes_binary
from fastcifar.data.cifar import read_published, takes_published
from fastcifar.data.csv_labels import read_csv_labels, takes_csv
from fastcifar.data.dataset import Dataset, Note, Split, no_note, sort_by_content
from fastcifar.data.folders import read_image_folder, takes_image_folder
from fastcifar.data.parquet import read_parquet, takes_parquet
from fastcifar.data.source import Found, Reading
from fastcifar.errors import DataError, UsageError


@dataclass(frozen=True)
class Reader:
    """One form of data: what it is, whether a path has it, and how it is read."""

    form: str
    takes: Callable[[Path, Reading], bool]
    read: Callable[[Path, Reading], Found]


# The first that takes a path reads it; any other file is taken for a published archive, whose checksum is tested.
READERS = (
    Reader("arrays (.npz, .npy)", takes_arrays, read_arrays),
    Reader("parquet files", takes_parquet, read_parquet),
    Reader("images with a CSV file of labels", takes_csv, read_csv_labels),
    Reader("the binary version of CIFAR", takes_binary, read_binary),
    Reader("a published archive, its extracted folder, or a folder with one of them", takes_published, read_published),
    Reader("an image folder (train/<class>/*, test/<class>/*)", takes_image_folder, read_image_folder),
)


def read_source(
    path: Path,
    reading: Reading,
    name: str | None = None,
    test_share: float | None = None,
    note: Note = no_note,
) -> Dataset:
    """The dataset in a file or a folder of any of the forms, under `name` (default: that of the file or folder).

    With `test_share`, that share of each class of a source without test images is set aside for testing. Raises
    DataError for what has none of the forms, cannot be read, or cannot be trusted; UsageError for a `test_share` of
    a source that is split.
    """
    try:
        if not path.exists():
            raise DataError(f"There is no file or folder {path}.")
        reader = next((reader for reader in READERS if reader.takes(path, reading)), None)
        if reader is None:
            raise DataError(f"{path} holds none of these: {'; '.join(reader.form for reader in READERS)}.")
        found = reader.read(path, reading)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
    if left_out := reading.left_out.sentence():
        note(left_out)
    train, test = with_test_images(found, path, test_share, note)
    name = found.published if found.proven else name or (path.stem if path.is_file() else path.resolve().name)
    dataset = Dataset.build(name or "", found.classes, train, test, str(path), published=found.proven)
    if found.published and not dataset.published:
        raise DataError(
            f"{path} is not the published {found.published}: its content differs (SHA-256 {dataset.digest[:16]}…); "
            "get it again."
        )
    return dataset


def with_test_images(found: Found, path: Path, share: float | None, note: Note) -> tuple[Split, Split]:
    """The two splits of a source; where it has none, a share of each class, drawn from seed 0, becomes the test split.

    The choice depends on the content alone. Raises DataError where there are no test images, UsageError for a share
    of a source that has some.
    """
    if found.test is not None:
        if share is not None:
            raise UsageError(f"{path} has test images of its own: leave out --test-share.")
        if not len(found.test.labels):
            raise DataError(f"{path} has a test split without images.")
        return found.train, found.test
    if share is None:
        raise DataError(
            f"{path} has no test images (in a 'test' or 'val' folder, file or array): add `--test-share 0.2` to set "
            "aside a fifth of each class."
        )
    whole = sort_by_content(found.train)
    rows = torch.cat([drawn_rows(whole.labels, label, share) for label in range(len(found.classes))])
    if not len(rows):
        raise DataError(f"{path} has too few images to set some aside: at least 2 of one class are needed.")
    chosen = torch.zeros(len(whole.labels), dtype=torch.bool)
    chosen[rows] = True
    note(
        f"{path} has no test images: {len(rows):,} of {len(whole.labels):,} images, {100 * share:g} % of each class, "
        "were set aside as such (drawn from seed 0, the same at every import)."
    )
    train, test = (Split(whole.images[part], whole.labels[part]) for part in (~chosen, chosen))
    return train, test


def drawn_rows(labels: torch.Tensor, label: int, share: float) -> torch.Tensor:
    """Rows of one class: the share of them, but at least one and not all; none of a class with a single image."""
    rows = (labels == label).nonzero()[:, 0]
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[:count]]
