"""Image files: the one function that reads them, and the folders they lie in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from fastcifar.data.dataset import MAX_CLASSES, Dataset, Progress, Split, no_progress
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {"1": "black and white", "L": "greyscale", "P": "a palette image", "RGBA": "RGB with transparency"}
CHUNK = 500  # files that a thread reads between two reports of progress

Conversion = Callable[[Path, Image.Image], Image.Image]  # to an RGB image of SIDE x SIDE pixels


def read_image(path: Path, convert: Conversion) -> np.ndarray:
    """One image file as uint8 (3, 32, 32), by `convert`: `require_exact` or `crop_and_resize`.

    Raises DataError for a file that is missing, unreadable, no image, or refused by `convert`.
    """
    try:
        with open(path, "rb") as file:
            return decode(path, file, convert)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def decode(path: Path, file: BinaryIO, convert: Conversion) -> np.ndarray:
    """The image in the open `file` at `path`, as `read_image`; raises DataError for whatever Pillow raises."""
    try:
        with Image.open(file) as picture:
            return np.asarray(convert(path, picture)).transpose(2, 0, 1)
    except DataError:
        raise
    except Exception:
        # Pillow does not document what its decoders raise. For a damaged file it is OSError, SyntaxError, ValueError,
        # OverflowError, struct.error, DecompressionBombError or another, depending on the byte.
        raise DataError(f"{path} is not an image that can be read: replace or remove it.") from None


def require_exact(path: Path, picture: Image.Image) -> Image.Image:
    """The image unchanged, which must be RGB of 32x32 pixels: a dataset holds what is in its files."""
    advice = f"convert it, for example with `magick IN -resize {SIDE}x{SIDE}! -type TrueColor OUT`"
    if picture.size != (SIDE, SIDE):
        raise DataError(f"{path} is {picture.width}x{picture.height} pixels, not {SIDE}x{SIDE}: {advice}.")
    if picture.mode != "RGB":
        raise DataError(f"{path} is {MODES.get(picture.mode, picture.mode)}, not RGB: {advice}.")
    return picture


def crop_and_resize(path: Path, picture: Image.Image) -> Image.Image:
    """An image of any size and mode: in RGB, the square in its middle, resized with antialiasing (Pillow's bicubic).

    An image of 32x32 pixels keeps every pixel.
    """
    if picture.mode.startswith("I;16"):  # Pillow would turn all values above 255 white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("RGB")
    if picture.size == (SIDE, SIDE):
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)


def read_images(paths: list[Path], convert: Conversion, progress: Progress = no_progress) -> np.ndarray:
    """Many image files as uint8 (N, 3, 32, 32), read by as many threads as there are processors.

    Raises DataError at the first that `read_image` refuses.
    """
    pixels = np.empty((len(paths), 3, SIDE, SIDE), dtype=np.uint8)

    def read_chunk(start: int) -> int:
        end = min(start + CHUNK, len(paths))
        for i in range(start, end):
            pixels[i] = read_image(paths[i], convert)
        return end

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done in pool.map(read_chunk, range(0, len(paths), CHUNK)):
                progress("reading images", done, len(paths))
        except BaseException:  # a bad file or Ctrl-C: do not read the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pixels


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, by name; raises DataError where there is none."""
    files = [path for path in list_folder(folder) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"There is no image file in {folder} ({', '.join(SUFFIXES)}).")
    return files


def list_classes(folder: Path) -> list[str]:
    """The names of the class folders in a folder, in alphabetical order."""
    return [path.name for path in list_folder(folder) if path.is_dir()]


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder, by name; raises DataError where it cannot be read.

    Names that begin with a dot are left out: they are file managers' own (macOS writes ._cat.png beside cat.png).
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def read_image_folder(root: Path, name: str, progress: Progress) -> Dataset:
    """The dataset of the image files `root/train/<class>/*` and `root/test/<class>/*`, all RGB of 32x32 pixels.

    Raises DataError where a folder, a class or an image is missing or cannot be used.
    """
    classes = common_classes(root)
    files = {
        split: [(path, label) for label, folder in enumerate(classes) for path in list_images(root / split / folder)]
        for split in ("train", "test")
    }
    both = [*files["train"], *files["test"]]
    names, labels = [path.name for path, _ in both], [label for _, label in both]
    pixels = read_images([path for path, _ in both], require_exact, progress)
    end = len(files["train"])
    train = sort_by_name(names[:end], labels[:end], pixels[:end])
    test = sort_by_name(names[end:], labels[end:], pixels[end:])
    return Dataset.build(name, tuple(classes), train, test, str(root))


def common_classes(root: Path) -> list[str]:
    """The classes of both splits of an image folder; raises DataError where they differ."""
    classes = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no '{split}' folder: an image folder holds train/<class>/* and test/<class>/*."
            )
        classes[split] = list_classes(root / split)
    for one, other in (("train", "test"), ("test", "train")):
        if missing := sorted(set(classes[one]) - set(classes[other])):
            raise DataError(
                f"{root} has the class '{missing[0]}' in '{one}' but not in '{other}': both need the same classes."
            )
    if not 2 <= len(classes["train"]) <= MAX_CLASSES:
        raise DataError(f"{root}/train holds {len(classes['train'])} class folders: 2 to {MAX_CLASSES} are needed.")
    return classes["train"]


def sort_by_name(names: Iterable[str], labels: Iterable[int], pixels: np.ndarray) -> Split:
    """A split of uint8 `pixels` (N, 3, 32, 32) in the order of the files' names without their suffixes."""
    label_list = list(labels)
    keys = [(os.path.splitext(name)[0], label) for name, label in zip(names, label_list, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    images = torch.from_numpy(np.ascontiguousarray(pixels[order]))
    return Split(images, torch.tensor(label_list, dtype=torch.int64)[order])
