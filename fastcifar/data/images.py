"""Reading image files: one file, a folder, a folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastcifar.data.dataset import MOST_CLASSES, Dataset, Progress, Split, build_dataset
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
CHUNK = 500  # files a thread reads between two signs of progress
CONVERT = "convert it, for example with `magick IN -resize 32x32! -type TrueColor OUT`"


def in_order(names: Iterable[str], labels: Iterable[int], pixels: np.ndarray) -> Split:
    """A split in the order of the file names without their endings; images uint8 (N, 3, 32, 32)."""
    label_list = list(labels)
    keys = [(os.path.splitext(name)[0], label) for name, label in zip(names, label_list, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    images = torch.from_numpy(np.ascontiguousarray(pixels[order]))
    return Split(images, torch.tensor(label_list, dtype=torch.int64)[order])


def read_image_folder(root: Path, name: str, progress: Progress) -> Dataset:
    """`root/train/<class>/*` and `root/test/<class>/*`: PNG, JPEG or WebP files of 32x32 RGB pixels."""
    classes = check_classes(root)
    listing = {split: list_images(root / split, classes) for split in ("train", "test")}
    both = [*listing["train"], *listing["test"]]
    pixels = read_all([path for path, _ in both], progress)
    names, labels = [path.name for path, _ in both], [label for _, label in both]
    end = len(listing["train"])
    train = in_order(names[:end], labels[:end], pixels[:end])
    test = in_order(names[end:], labels[end:], pixels[end:])
    return build_dataset(name, tuple(classes), train, test, str(root))


def read_all(paths: list[Path], progress: Progress) -> np.ndarray:
    """The pixels of all files, uint8 (N, 3, 32, 32), read by as many threads as there are processors."""
    pixels = np.empty((len(paths), 3, SIDE, SIDE), dtype=np.uint8)

    def read_chunk(start: int) -> int:
        for i in range(start, min(start + CHUNK, len(paths))):
            pixels[i] = read_pixels(paths[i])
        return min(start + CHUNK, len(paths))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done in pool.map(read_chunk, range(0, len(paths), CHUNK)):
                progress("reading images", done, len(paths))
        except BaseException:  # a bad file or Ctrl-C: do not read the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pixels


def check_classes(root: Path) -> list[str]:
    """The classes, the same in both splits, in alphabetical order."""
    found = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no '{split}' folder: an image folder holds train/<class>/* and test/<class>/*."
            )
        found[split] = {
            path.name for path in (root / split).iterdir() if path.is_dir() and not path.name.startswith(".")
        }
    for one, other in (("train", "test"), ("test", "train")):
        if missing := sorted(found[one] - found[other]):
            raise DataError(
                f"{root} has the class '{missing[0]}' in '{one}' but not in '{other}': both need the same classes."
            )
    if not 2 <= len(found["train"]) <= MOST_CLASSES:
        raise DataError(f"{root}/train holds {len(found['train'])} class folders: 2 to {MOST_CLASSES} are needed.")
    return sorted(found["train"])


def list_images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The image files of a split with their labels."""
    files = []
    for label, name in enumerate(classes):
        # Names that begin with a dot are the file manager's own (macOS writes ._cat.png beside cat.png).
        paths = [
            path
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
        if not paths:
            raise DataError(f"There is no PNG, JPEG or WebP file in {folder / name}.")
        files += [(path, label) for path in paths]
    return files


def read_pixels(path: Path) -> np.ndarray:
    """One image file as uint8 (3, 32, 32); it must be RGB of that very size, so that nothing is changed unasked."""
    try:
        with Image.open(path) as picture:
            if picture.size != (SIDE, SIDE):
                raise DataError(f"{path} is {picture.width}x{picture.height} pixels, not 32x32: {CONVERT}.")
            if picture.mode != "RGB":
                kinds = {
                    "L": "greyscale",
                    "P": "a palette image",
                    "RGBA": "RGB with transparency",
                    "1": "black and white",
                }
                raise DataError(f"{path} is {kinds.get(picture.mode, picture.mode)}, not RGB: {CONVERT}.")
            return np.asarray(picture).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path} is not an image that can be read: replace or remove it.") from None


EVALUATED_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def list_image_files(folder: Path) -> list[Path]:
    """The image files in a folder, by name."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in EVALUATED_SUFFIXES)
    if not found:
        raise DataError(f"There is no image file in {folder}.")
    return found


def read_image(path: Path) -> Tensor:
    """One image as uint8 (3, 32, 32): in RGB, the square in its middle, resized with antialiasing (Pillow's bicubic).

    An image of 32x32 pixels keeps every pixel. Raises DataError for a file that is missing or no image.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            if (side, picture.size) != (SIDE, (SIDE, SIDE)):
                box = (left, top, left + side, top + side)
                picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise DataError(f"{path} is not an image that can be read.") from None
    return pixels.view(SIDE, SIDE, 3).permute(2, 0, 1)
