"""Image folders: a folder a class, in folders for the training and the test split or without a split."""

from __future__ import annotations

from pathlib import Path

from fastcifar.data.images import read_images
from fastcifar.data.source import (
    Found,
    LeftOut,
    Reading,
    as_split,
    choose_splits,
    leave,
    list_folder,
    list_images,
    order_classes,
)
from fastcifar.errors import DataError

ClassImages = dict[str, list[Path]]  # the image files of each class


def has_folders(path: Path) -> bool:
    """Whether a path is a folder with folders in it."""
    return path.is_dir() and any(inner.is_dir() for inner in list_folder(path))


def takes_image_folder(path: Path, reading: Reading) -> bool:
    """Whether a path may be an image folder."""
    return has_folders(path)


def split_folders(root: Path) -> tuple[Path | None, Path | None]:
    """The folders of class folders in `root` that are named like a training and a test split."""
    folders = {path.name: path for path in list_folder(root) if has_folders(path)}
    train, test = choose_splits(folders)
    return folders[train] if train else None, folders[test] if test else None


def read_image_folder(root: Path, reading: Reading) -> Found:
    """The images in `root/train/<class>/*` and `root/test/<class>/*`, or not split in `root/<class>/*`.

    Raises DataError where a split, a class or an image is missing or cannot be used.
    """
    train_folder, test_folder = split_folders(root)
    if test_folder and not train_folder:
        raise DataError(
            f"{root} has a '{test_folder.name}' folder but no 'train' folder: an image folder holds train/<class>/* "
            "and test/<class>/*, or <class>/* alone."
        )
    if train_folder:
        for path in list_folder(root, reading.left_out):
            if path not in (train_folder, test_folder):
                leave(path, reading.left_out)
    train = class_images(train_folder or root, reading.left_out)
    splits = [train]
    if test_folder:
        splits.append(test := class_images(test_folder, reading.left_out))
        require_same_classes(root, train, test, test_folder.name)
    classes = order_classes((name for name, files in train.items() if files), root)
    files = [[(path, label) for label, name in enumerate(classes) for path in split[name]] for split in splits]
    both = [row for part in files for row in part]
    pixels = read_images([path for path, _ in both], reading.convert, reading.progress)
    labels = [label for _, label in both]
    end = len(files[0])
    test_split = as_split(pixels[end:], labels[end:]) if test_folder else None
    return Found(classes, as_split(pixels[:end], labels[:end]), test_split)


def class_images(folder: Path, left_out: LeftOut) -> ClassImages:
    """The image files of each class folder in a folder."""
    found = {}
    for path in list_folder(folder, left_out):
        if not path.is_dir():
            leave(path, left_out)
            continue
        found[path.name] = list_images(path, left_out)
        if not found[path.name]:
            left_out.add("class folders without images", path)
    return found


def require_same_classes(root: Path, train: ClassImages, test: ClassImages, test_name: str) -> None:
    """Raise DataError where a class has images in one split only; an empty folder in the test split is allowed."""
    for name, files in test.items():
        if files and not train.get(name):
            raise DataError(
                f"{root} has the class '{name}' in '{test_name}' but not in 'train': both need the same classes."
            )
    for name, files in train.items():
        if files and name not in test:
            raise DataError(
                f"{root} has the class '{name}' in 'train' but not in '{test_name}': both need the same classes."
            )
