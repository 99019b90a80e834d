"""Parquet files with encoded images inside, as Hugging Face keeps them: columns of images and of labels."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar.data.images import decode, read_rows
from fastcifar.data.source import Found, Reading, as_split, choose_splits, list_folder, number_labels, split_in
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target")  # of CIFAR-100 the fine one
BATCH = 1000  # rows in memory at once


def takes_parquet(path: Path, reading: Reading) -> bool:
    """Whether a path is a parquet file, or a folder with such files in it or in a folder inside it."""
    return bool(parquet_files(path))


def parquet_files(path: Path) -> list[Path]:
    """The parquet files that a path stands for."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == ".parquet" else []
    places = [path, *(inner for inner in list_folder(path) if inner.is_dir())]
    return [file for place in places for file in list_folder(place) if file.suffix.lower() == ".parquet"]


def read_parquet(path: Path, reading: Reading) -> Found:
    """The labelled images in parquet files; the name of a file or of its folder tells its split.

    Raises DataError where pyarrow is not installed, or a file cannot be read or lacks a column.
    """
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{path} is parquet, which needs a package: `pip install pyarrow`.") from None
    groups: dict[str, list[Path]] = {}
    for file in parquet_files(path):
        groups.setdefault(split_in(file.stem) or split_in(file.parent.name) or "", []).append(file)
    train, test = choose_splits(groups)
    train = "" if train is None and "" in groups else train
    if train is None:
        raise DataError(f"{path} has parquet files of a '{test}' split but none to train on.")
    for name in groups.keys() - {train, test}:
        reading.left_out.add("parquet files of other splits", groups[name][0], len(groups[name]))
    try:
        parts = [read_files(groups[name], reading) for name in (train, test) if name is not None]
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}.") from None
    classes, labels = number_labels([names for _, names in parts], path)
    splits = [as_split(pixels, part) for (pixels, _), part in zip(parts, labels, strict=True)]
    return Found(classes, splits[0], splits[1] if test is not None else None)


def read_files(paths: list[Path], reading: Reading) -> tuple[np.ndarray, list[str]]:
    """The pixels, uint8 (N, 3, 32, 32), and the class of each image in the files of one split."""
    from pyarrow.parquet import ParquetFile

    files = [ParquetFile(path) for path in paths]
    total = sum(file.metadata.num_rows for file in files)
    pixels, names = np.empty((total, 3, SIDE, SIDE), dtype=np.uint8), list[str]()
    for path, file in zip(paths, files, strict=True):
        for contents, labels in batches(path, file):
            start = len(names)
            pixels[start : start + len(contents)] = read_contents(path, contents, reading)
            names += labels
            reading.progress("reading images", len(names), total)
    return pixels, names


def batches(path: Path, file: Any) -> Iterator[tuple[list[bytes | None], list[str]]]:
    """The encoded images and the class of each, some rows at a time; raises DataError where a column is missing."""
    schema = file.schema_arrow
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    image = next((name for name in schema.names if holds_bytes(schema.field(name).type)), None)
    if label is None or image is None:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}: one of encoded images and one named 'label' are needed."
        )
    classes = class_names(schema, label)
    for batch in file.iter_batches(BATCH, columns=[image, label]):
        contents = [value["bytes"] if isinstance(value, dict) else value for value in batch[image].to_pylist()]
        labels = batch[label].to_pylist()
        if None in labels or (classes and not all(0 <= value < len(classes) for value in labels)):
            raise DataError(f"{path} has a label that is no class.")
        yield contents, [classes[value] if classes else str(value) for value in labels]


def holds_bytes(kind: Any) -> bool:
    """Whether a type of arrow holds encoded images: bytes, or a struct with bytes in it."""
    from pyarrow import types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def class_names(schema: Any, label: str) -> list[str] | None:
    """The names of the classes that Hugging Face writes beside a column of numbers; None where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def read_contents(path: Path, contents: list[bytes | None], reading: Reading) -> np.ndarray:
    """Encoded images as uint8 (N, 3, 32, 32); raises DataError where one is missing or cannot be read."""

    def read(row: int) -> np.ndarray:
        content = contents[row]
        if content is None:
            raise DataError(f"{path} holds the paths of images, not the images: import the folder of the images.")
        return decode(f"an image in {path}", io.BytesIO(content), reading.convert)

    return read_rows(len(contents), read)
