"""A CSV file of labels beside a folder of images, as Kaggle gives them: `trainLabels.csv` with `train/*.png`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcifar.data.images import read_images
from fastcifar.data.source import (
    SPLIT_NAMES,
    Found,
    LeftOut,
    Reading,
    as_split,
    choose_splits,
    is_image,
    is_litter,
    list_folder,
    number_labels,
    split_in,
    words_of,
)
from fastcifar.errors import DataError

SUFFIXES = (".csv", ".tsv")
FILE_COLUMNS = ("id", "file", "filename", "file_name", "image", "image_id", "img", "path", "filepath", "name")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "y")
ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by byte order mark


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file: the name of an image, with or without its suffix, and the name of its class."""

    path: Path
    rows: list[tuple[str, str]]


def takes_csv(path: Path, reading: Reading) -> bool:
    """Whether a path is a CSV file, or a folder that holds one of labels and no class folders."""
    if not path.is_dir():
        return path.suffix.lower() in SUFFIXES
    if not label_tables(path):
        return False
    folders = [inner for inner in list_folder(path) if inner.is_dir()]
    names = {name for kind in SPLIT_NAMES.values() for name in kind}
    nested = any(deeper.is_dir() for folder in folders for deeper in list_folder(folder))
    return not nested and sum(folder.name.lower() not in names for folder in folders) <= 1


def label_tables(folder: Path) -> list[Path]:
    """The CSV files in a folder but for samples of what a competition wants back (`sampleSubmission.csv`)."""
    files = [path for path in list_folder(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [path for path in files if not {"sample", "submission"}.intersection(words_of(path.stem))]


def read_csv_labels(path: Path, reading: Reading) -> Found:
    """The images that one CSV file, or one for each split, gives labels.

    Raises DataError where a file cannot be read or understood, or names images that are not there.
    """
    folder, tables = (path.parent, [path]) if path.is_file() else (path, label_tables(path))
    by_split: dict[str, Path] = {}
    for table in tables:
        split = split_in(table.stem) or ""
        if split in by_split:
            raise DataError(f"{by_split[split]} and {table} may both hold the labels: name one with --from FILE.")
        by_split[split] = table
    train, test = choose_splits(by_split)
    if train is None and "" in by_split:
        train = ""
    if train is None:
        raise DataError(f"{path} has labels of a '{test}' split but none to train on.")
    for split in by_split.keys() - {train, test}:
        reading.left_out.add("tables of other splits", by_split[split])
    chosen = [name for name in (train, test) if name is not None]
    matched = [match_images(read_table(by_split[name]), images_of(folder, name), reading.left_out) for name in chosen]
    classes, labels = number_labels([[label for _, label in rows] for rows in matched], path)
    files = [image for rows in matched for image, _ in rows]
    pixels = read_images(files, reading.convert, reading.progress)
    end = len(matched[0])
    test_split = as_split(pixels[end:], labels[1]) if test is not None else None
    return Found(classes, as_split(pixels[:end], labels[0]), test_split)


def read_table(path: Path) -> Table:
    """The rows of a CSV file, with a header or without; raises DataError where it has not two columns of text."""
    try:
        content = path.read_bytes()
        text = content.decode(next((code for mark, code in ENCODINGS.items() if content.startswith(mark)), "utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8 or UTF-16: save it as UTF-8.") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file that can be read: {error}.") from None
    if not rows:
        raise DataError(f"{path} is empty.")
    file, label, has_header = find_columns(rows[0], path)
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(file, label) or not row[file] or not row[label]:
            raise DataError(
                f"{path}, row {number}: a file and its label are needed, not {', '.join(row) or 'nothing'}."
            )
    return Table(path, [(row[file], row[label]) for row in rows[has_header:]])


def find_columns(header: Sequence[str], path: Path) -> tuple[int, int, bool]:
    """The columns of file names and of labels, and whether the first row names them."""
    names = [cell.lower() for cell in header]
    file = next((names.index(name) for name in FILE_COLUMNS if name in names), None)
    label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    if file is None and label is None and len(names) == 2:
        return 0, 1, False
    if len(names) == 2:  # one is known, and so the other
        file, label = (file, 1 - file) if file is not None else (1 - (label or 0), label)
    if file is None or label is None:
        raise DataError(
            f"{path} has the columns {', '.join(header)}: call the one of files 'file' and the one of classes 'label'."
        )
    return file, label, True


def images_of(folder: Path, split: str) -> list[Path]:
    """The image files that a table of a split may name: in the split's folder where there is one, else in all."""
    inner = next((path for path in list_folder(folder) if path.is_dir() and path.name.lower() == split), folder)
    found = []
    for root, folders, files in os.walk(inner):
        folders[:] = [name for name in folders if not is_litter(name)]
        found += [Path(root) / name for name in files if not is_litter(name) and is_image(Path(name))]
    return sorted(found)


def match_images(table: Table, images: list[Path], left_out: LeftOut) -> list[tuple[Path, str]]:
    """The image file and the class of each row; images without a row are left out.

    Raises DataError where a row names no image, or one of several.
    """
    places: dict[str, list[Path]] = {}
    for path in images:
        relative = path.relative_to(table.path.parent)
        for key in {relative.as_posix(), path.name, path.stem}:
            places.setdefault(key, []).append(path)
    missing = [name for name, _ in table.rows if name.removeprefix("./") not in places]
    if missing:
        raise DataError(
            f"{table.path} names {len(missing):,} images that are not beside it, such as '{missing[0]}': put the "
            f"images into a folder beside the table ({len(images):,} were found)."
        )
    rows = []
    for name, label in table.rows:
        paths = places[name.removeprefix("./")]
        if len(paths) > 1:
            raise DataError(f"'{name}' in {table.path} may be {paths[0]} or {paths[1]}: write paths into the table.")
        rows.append((paths[0], label))
    named = {path for path, _ in rows}
    for path in images:
        if path not in named:
            left_out.add("images without a label", path)
    return rows
