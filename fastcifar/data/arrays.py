"""Arrays of NumPy: `.npz` and `.npy` files of images and labels, as CIFAR-10.1, MedMNIST and Keras users keep them.

Images are NHWC, NCHW or greyscale NHW; labels are whole numbers or names, (N,) or (N, 1). Which array is which is told
by its dimensions, which split it belongs to by its name (`x_train`, `test_images`). Pickles are never opened.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastcifar.data.images import crop_and_resize, full_scale, planes, read_rows, to_bytes
from fastcifar.data.source import (
    Found,
    LeftOut,
    Reading,
    as_split,
    choose_splits,
    list_folder,
    number_labels,
    split_in,
    words_of,
)
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE

SUFFIXES = (".npz", ".npy")
IMAGE_WORDS = {"images", "image", "imgs", "img", "data", "x"}
LABEL_WORDS = {"labels", "label", "targets", "target", "y"}
KIND_WORDS = IMAGE_WORDS | LABEL_WORDS
CHUNK = 1000  # images whose largest value is sought at once


@dataclass(frozen=True)
class Pair:
    """Images, (N, H, W) or 4-D, and their labels (N,), None where there are none; `where` names them in messages."""

    where: str
    images: np.ndarray
    labels: np.ndarray | None


def takes_arrays(path: Path, reading: Reading) -> bool:
    """Whether a path is a file of arrays, or a folder with such files directly in it."""
    if path.is_dir():
        return any(file.suffix.lower() in SUFFIXES for file in list_folder(path))
    return path.suffix.lower() in SUFFIXES


def read_arrays(path: Path, reading: Reading) -> Found:
    """The labelled images in a file or a folder of arrays.

    Raises DataError where arrays cannot be read, or paired, or are no images and labels.
    """
    arrays = load_folder(path, reading.left_out) if path.is_dir() else load_with_partner(path)
    pairs = pair_by_split(arrays, path)
    train_name, test_name = choose_splits(pairs)
    for name in pairs.keys() - {train_name, test_name, ""}:
        reading.left_out.add("images of a third split", name, len(pairs[name].images))
    if "" in pairs and train_name is None:
        train_name = ""
    if train_name is None:
        raise DataError(f"{path} has arrays of a '{test_name}' split but none to train on.")
    chosen = [pairs[name] for name in (train_name, test_name) if name is not None]
    classes, labels = number_labels([label_names(pair) for pair in chosen], path)
    splits = [as_split(to_pixels(pair, reading), part) for pair, part in zip(chosen, labels, strict=True)]
    return Found(classes, splits[0], splits[1] if len(splits) == 2 else None)


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file by their names, that in a `.npy` file by the file's; raises DataError for a damaged file."""
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {path.stem: content}
        with content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except PermissionError:
        raise DataError(f"{path} cannot be read: you have no permission.") from None
    except ValueError as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise DataError(
                f"{path} holds pickled objects, which could run code, and was not opened: save plain arrays of numbers."
            ) from None
        raise DataError(f"{path} is damaged or no file of NumPy arrays.") from None
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, MemoryError):
        raise DataError(f"{path} is damaged or no file of NumPy arrays.") from None


def load_folder(folder: Path, left_out: LeftOut) -> dict[str, np.ndarray]:
    """The arrays of all files in a folder; those in a `.npz` file get its name before their own."""
    arrays = {}
    for path in list_folder(folder, left_out):
        if path.suffix.lower() not in SUFFIXES:
            left_out.add("files that are no arrays", path)
            continue
        for name, array in load(path).items():
            arrays[name if path.suffix.lower() == ".npy" else f"{path.stem}/{name}"] = array
    return arrays


def load_with_partner(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file; with a `.npy` file those beside it whose names differ in the word for their kind only."""
    if path.suffix.lower() == ".npz":
        return load(path)
    key = [word for word in words_of(path.stem) if word not in KIND_WORDS]
    arrays = load(path)
    for other in list_folder(path.parent):
        words = words_of(other.stem)
        same_key = KIND_WORDS.intersection(words) and [word for word in words if word not in KIND_WORDS] == key
        if other.suffix.lower() == ".npy" and other != path and same_key:
            arrays.update(load(other))
    return arrays


def pair_by_split(arrays: dict[str, np.ndarray], source: Path) -> dict[str, Pair]:
    """The images and labels of each split, '' for those whose names tell none.

    Raises DataError where a split has not one array of each kind.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        groups.setdefault(split_in(name) or "", {})[name] = array
    pairs = {split: make_pair(group, source) for split, group in groups.items()}
    for pair in pairs.values():
        if pair.labels is None:
            raise DataError(f"{pair.where} has no array of labels beside it.")
    return pairs


def make_pair(arrays: dict[str, np.ndarray], source: Path) -> Pair:
    """The one array of images and the one of labels, if any; raises DataError where there are several or no images."""
    images = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    others = [name for name in arrays if name not in images]
    labels = [name for name in others if LABEL_WORDS.intersection(words_of(name))] or others
    if len(images) != 1 or len(labels) > 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no array"
        raise DataError(
            f"{source} must hold one array of images and one of labels for each split, and holds {held}: name one "
            "file, or put the files into a folder of their own."
        )
    where, pixels = f"{source} ({images[0]})", arrays[images[0]]
    if not labels:
        return Pair(where, pixels, None)
    if len(pixels) != len(arrays[labels[0]]):
        raise DataError(f"{where} has {len(pixels):,} images but {len(arrays[labels[0]]):,} labels.")
    return Pair(where, pixels, flat_labels(arrays[labels[0]], f"{source} ({labels[0]})"))


def evaluation_pair(paths: list[Path]) -> Pair:
    """The images to evaluate in a `.npz` file (of its test split, where it has one) or in one or two `.npy` files."""
    if len(paths) == 1 and paths[0].suffix.lower() == ".npz":
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name, array in load(paths[0]).items():
            groups.setdefault(split_in(name) or "", {})[name] = array
        train, test = choose_splits(groups)
        return make_pair(groups.get(test or train or "", {}), paths[0])
    return make_pair({name: array for path in paths for name, array in load(path).items()}, paths[0].parent)


def flat_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels as (N,): whole numbers, int64, or text; raises DataError where they are neither."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return labels.astype(str)
    if labels.ndim == 1 and labels.dtype.kind in "iufb" and np.array_equal(labels, labels.astype(np.int64)):
        return labels.astype(np.int64)
    raise DataError(f"{where} has labels that are not one whole number or one name an image.")


def label_names(pair: Pair) -> list[str]:
    """The class of each image as text."""
    assert pair.labels is not None
    return [str(label) for label in pair.labels.tolist()]


def to_pixels(pair: Pair, reading: Reading) -> np.ndarray:
    """The images as uint8 (N, 3, 32, 32), by the same conversions as image files.

    Raises DataError for other images than uint8 RGB of 32x32 pixels unless they are to be resized, and for what are no
    images.
    """
    images = channels_last(pair)
    if images.dtype == np.uint8 and images.shape[1:] == (SIDE, SIDE, 3):
        return np.require(
            images.transpose(0, 3, 1, 2), requirements=["C", "W"]
        )  # a file that is mapped is not writable
    if not reading.resize:
        raise DataError(
            f"{pair.where} holds {images.dtype} images of {images.shape[2]}x{images.shape[1]} pixels with "
            f"{images.shape[3]} channels, not uint8 of {SIDE}x{SIDE} with 3: `--resize` converts all images."
        )
    return resized(pair.where, images, reading)


def channels_last(pair: Pair) -> np.ndarray:
    """The images as (N, H, W, 1, 3 or 4); raises DataError where they are no images."""
    images = pair.images
    if images.dtype.kind not in "uifb" or 0 in images.shape:
        raise DataError(f"{pair.where} is {images.dtype} of shape {images.shape}, which are no images.")
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] in (1, 3, 4):
        return images
    if images.shape[1] in (1, 3, 4):
        return images.transpose(0, 2, 3, 1)
    raise DataError(f"{pair.where} has the shape {images.shape}: images are NHWC, NCHW or NHW, of 1, 3 or 4 channels.")


def resized(where: str, images: np.ndarray, reading: Reading) -> np.ndarray:
    """Images (N, H, W, C) of any size and type as uint8 (N, 3, 32, 32), each as an image file would be."""
    if images.dtype.kind in "if" and images.min() < 0:
        raise DataError(f"{where} has values below 0: keep the pixels as they were before they were normalized.")
    white = max(full_scale(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK))

    def read(row: int) -> np.ndarray:
        pixels = to_bytes(images[row], white)
        return planes(crop_and_resize(where, Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)))

    return read_rows(len(images), read, reading.progress)
