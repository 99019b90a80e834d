"""Image files: the one function that reads them, and the two conversions to what a dataset holds."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from fastcifar.data.dataset import Progress, no_progress
from fastcifar.errors import DataError
from fastcifar.recipes.schema import SIDE
from fastcifar.system.processors import usable_processors

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
MODES = {
    "1": "black and white",
    "L": "greyscale",
    "P": "a palette image",
    "RGBA": "RGB with transparency",
    "I;16": "16-bit greyscale",
}
ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held
CHUNK = 500  # images that a thread reads between two reports of progress

Conversion = Callable[[str, Image.Image], Image.Image]  # (name for messages, image) to an RGB image of SIDE x SIDE


def read_image(path: Path, convert: Conversion) -> np.ndarray:
    """One image file as uint8 (3, 32, 32), by `convert`: `require_exact` or `crop_and_resize`.

    Raises DataError for a file that is missing, unreadable, no image, or refused by `convert`.
    """
    try:
        with open(path, "rb") as file:
            return decode(str(path), file, convert)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def decode(name: str, file: BinaryIO, convert: Conversion) -> np.ndarray:
    """The image in an open file, as `read_image`; raises DataError, with its `name`, for whatever Pillow raises."""
    try:
        with Image.open(file) as picture:
            return planes(convert(name, picture))
    except DataError:
        raise
    except Exception:
        # Pillow does not document what its decoders raise. For a damaged file it is OSError, SyntaxError, ValueError,
        # OverflowError, struct.error, DecompressionBombError or another, depending on the byte.
        raise DataError(f"{name} is not an image that can be read: replace or remove it.") from None


def planes(picture: Image.Image) -> np.ndarray:
    """The pixels of an RGB image as uint8 (3, height, width)."""
    return np.asarray(picture).transpose(2, 0, 1)


def to_png(pixels: np.ndarray) -> bytes:
    """An RGB image, uint8 (3, height, width), as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "PNG", optimize=True)
    return file.getvalue()


def require_exact(name: str, picture: Image.Image) -> Image.Image:
    """The image unchanged but for its orientation, which must be RGB of 32x32 pixels.

    Raises DataError for any other.
    """
    advice = "`--resize` converts all images"
    if picture.size != (SIDE, SIDE):
        raise DataError(f"{name} is {picture.width}x{picture.height} pixels, not {SIDE}x{SIDE}: {advice}.")
    if picture.mode != "RGB" or is_transparent(picture):
        kind = "RGB with transparency" if picture.mode == "RGB" else MODES.get(picture.mode, picture.mode)
        raise DataError(f"{name} is {kind}, not RGB: {advice}.")
    return upright(picture)


def crop_and_resize(name: str, picture: Image.Image) -> Image.Image:
    """An image of any size and mode: in RGB, the square in its middle, resized with antialiasing (Pillow's bicubic).

    Of an animation, the first frame. An RGB image of 32x32 pixels keeps every pixel.
    """
    picture = to_rgb(upright(picture))
    if picture.size == (SIDE, SIDE):
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)


def upright(picture: Image.Image) -> Image.Image:
    """The image turned or mirrored as its EXIF orientation says; where that cannot be read, as it is."""
    picture.load()
    try:
        turned = picture.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(picture) if turned else picture
    except Exception:  # as undocumented as what the decoders raise; the pixels are there
        return picture


def is_transparent(picture: Image.Image) -> bool:
    """Whether some of the image may be transparent: by an alpha channel, or a colour or palette entry that is."""
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def to_rgb(picture: Image.Image) -> Image.Image:
    """The image in RGB as viewers show it: transparent parts over white, 16-bit and float values scaled."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(to_bytes(np.asarray(picture))).convert("RGB")
    if is_transparent(picture):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def full_scale(values: np.ndarray) -> float:
    """The value that stands for white: of uint8 and uint16 their largest, of other types as the values suggest.

    That is the smallest of 1 (for floats), 255 and 65,535 that no value exceeds, else the largest value.
    """
    if values.dtype.kind == "b":
        return 1.0
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return float(np.iinfo(values.dtype).max)
    largest = float(np.max(values, where=np.isfinite(values), initial=0))
    scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    return next((scale for scale in scales if largest <= scale), largest)


def to_bytes(values: np.ndarray, white: float | None = None) -> np.ndarray:
    """Grey or colour values of any type as uint8, with `white` (default: their full scale) as 255.

    Of 16 bits the upper eight are taken. What is below 0 or not a number becomes 0.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    scaled = np.nan_to_num(values.astype(np.float64) * (255 / (white or full_scale(values))), posinf=0, neginf=0)
    return np.clip(scaled.round(), 0, 255).astype(np.uint8)


def read_images(paths: list[Path], convert: Conversion, progress: Progress = no_progress) -> np.ndarray:
    """Many image files as uint8 (N, 3, 32, 32), read by as many threads as there are usable processors.

    Raises DataError at the first that `read_image` refuses.
    """
    return read_rows(len(paths), lambda row: read_image(paths[row], convert), progress)


def read_rows(count: int, read: Callable[[int], np.ndarray], progress: Progress = no_progress) -> np.ndarray:
    """What `read` gives for the rows 0..count-1, each uint8 (3, 32, 32), as one array; in threads.

    Memory holds that array and one image a thread.
    """
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)

    def read_chunk(start: int) -> int:
        end = min(start + CHUNK, count)
        for row in range(start, end):
            pixels[row] = read(row)
        return end

    with ThreadPoolExecutor(usable_processors().count) as pool:
        try:
            for done in pool.map(read_chunk, range(0, count, CHUNK)):
                progress("reading images", done, count)
        except BaseException:  # a bad file or Ctrl-C: do not read the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pixels
