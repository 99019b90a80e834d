"""Image files: read whole or refused in one sentence, whatever is wrong with them; and the folders they lie in."""

from __future__ import annotations

import io
import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_folder
from import_checks import refuse
from PIL import Image

from fastcifar.data import readers
from fastcifar.data.images import crop_and_resize, read_image, read_images, require_exact
from fastcifar.data.source import LeftOut, list_images
from fastcifar.data.store import dataset_path, import_dataset
from fastcifar.errors import DataError

FORMATS = {
    "png": {},
    "jpg": {},
    "webp": {},
    "bmp": {},
    "gif": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "lossless.webp": {"lossless": True},
}  # the last suffix says the format


def encoded(suffix: str, side: int = 32, **options: object) -> bytes:
    """A random image in one of the formats."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, Image.registered_extensions()[f".{suffix.split('.')[-1]}"], **options)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ reading one file


def test_an_rgb_image_of_the_right_size_keeps_every_pixel_in_both_conversions(tmp_path: Path) -> None:
    for suffix, options in FORMATS.items():
        if suffix == "gif":  # a palette image
            continue
        path = tmp_path / f"image.{suffix}"
        path.write_bytes(encoded(suffix, **options))
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        for convert in (require_exact, crop_and_resize):
            assert np.array_equal(read_image(path, convert), pixels)


def test_crop_and_resize_takes_the_square_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((64, 100, 3), dtype=np.uint8)
    wide[:, 18:82] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = read_image(tmp_path / "wide.png", crop_and_resize)
    assert (pixels[:, :, 1:-1] >= 200).all() and (pixels > 180).all()  # bicubic looks two pixels over the edges


def test_crop_and_resize_takes_every_mode(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "F"):
        Image.new(mode, (40, 50)).save(tmp_path / "image.tif")
        assert read_image(tmp_path / "image.tif", crop_and_resize).shape == (3, 32, 32)


def test_sixteen_bits_become_the_upper_eight(tmp_path: Path) -> None:
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png", crop_and_resize)[1], values >> 8)


def seen(picture: Image.Image, path: Path, **options: object) -> np.ndarray:
    """The image as it is read from a file."""
    picture.save(path, **options)
    return read_image(path, crop_and_resize)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_image_is_turned_as_its_exif_orientation_says(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = np.zeros((32, 32, 3), dtype=np.uint8)
    upright[:16, :16, 0] = upright[:16, 16:, 1] = 255  # red and green above, black below
    turns = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Image.Transpose that stores it so
    picture = Image.fromarray(upright)
    for turn in turns[orientation]:
        picture = picture.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"photo.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    for convert in (crop_and_resize, require_exact):
        pixels = read_image(tmp_path / f"photo.{suffix}", convert).astype(int)
        assert np.abs(pixels[:, 4:12, 4:12] - np.array([255, 0, 0])[:, None, None]).max() < 9
        assert np.abs(pixels[:, 4:12, 20:28] - np.array([0, 255, 0])[:, None, None]).max() < 9
        assert pixels[:, 20:].max() < 9


def test_an_image_with_damaged_exif_is_read_as_it_is(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 40), (200, 0, 0))
    for exif in (b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage"):
        assert seen(picture, tmp_path / "photo.jpg", exif=exif)[0].min() > 190


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode: str, tmp_path: Path) -> None:
    colours = np.zeros((32, 32, 4), dtype=np.uint8)
    colours[:16, :, 3] = 255  # black above, below black that cannot be seen
    picture = Image.fromarray(colours).convert(mode) if mode != "P" else Image.new("P", (32, 32), 1)
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 9, 9])
        picture.paste(0, (0, 0, 32, 16))
    pixels = seen(picture, tmp_path / "logo.png", **({"transparency": 1} if mode == "P" else {}))
    assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all()


def test_a_colour_that_counts_as_transparent_is_white(tmp_path: Path) -> None:
    for mode, colour in (("RGB", (9, 9, 9)), ("L", 9)):
        picture = Image.new(mode, (32, 32), colour)
        assert (seen(picture, tmp_path / f"{mode}.png", transparency=colour) == 255).all()
        with pytest.raises(DataError, match="`--resize` converts all images"):
            read_image(tmp_path / f"{mode}.png", require_exact)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((32, 32), 0.5, np.float32), 128),
        (np.full((32, 32), 200.0, np.float32), 200),
        (np.full((32, 32), 32896.0, np.float32), 128),
        (np.full((32, 32), -3.0, np.float32), 0),
        (np.full((32, 32), np.nan, np.float32), 0),
        (np.full((32, 32), 100, np.int32), 100),
        (np.full((32, 32), 32896, np.int32), 128),
        (np.full((32, 32), 1 << 20, np.int32), 255),
        (np.full((32, 32), 0x80FF, np.uint16), 128),
    ],
)
def test_deep_and_float_images_are_scaled(values: np.ndarray, expected: int, tmp_path: Path) -> None:
    assert (seen(Image.fromarray(values), tmp_path / "deep.tif") == expected).all()


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    for suffix, options in (("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("tif", {})):
        pixels = seen(frames[0], tmp_path / f"move.{suffix}", save_all=True, append_images=frames[1:], **options)
        assert pixels[:, 16, 16].tolist() == [255, 0, 0]


def test_printers_colours_and_a_palette(tmp_path: Path) -> None:
    red = seen(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), tmp_path / "print.jpg")
    assert red[0].min() > 240 and red[1:].max() < 15
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert seen(palette, tmp_path / "palette.bmp")[:, 5, 5].tolist() == [10, 20, 30]


def test_many_images_with_progress(image_folder: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    paths = list_images(image_folder / "train" / "cat", LeftOut())
    pixels = read_images(paths, require_exact, lambda *state: steps.append(state))
    assert pixels.shape == (3, 3, 32, 32) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[1], read_image(paths[1], require_exact))
    assert steps == [("reading images", 3, 3)]


# --------------------------------------------------------------------------------------------------- damaged files


def damaged_bytes(good: bytes) -> Iterator[bytes]:
    """The file with each byte changed, in two ways, and cut off at every fifth byte."""
    for i in range(len(good)):
        for change in (0x01, 0xFF):
            yield good[:i] + bytes([good[i] ^ change]) + good[i + 1 :]
        if i % 5 == 0:
            yield good[:i]


def png_chunks(good: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file: type and content."""
    chunks, at = [], 8
    while at < len(good):
        (length,) = struct.unpack_from(">I", good, at)
        chunks.append((good[at + 4 : at + 8], good[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of chunks, with their right lengths and checksums."""
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def damaged_chunks(good: bytes) -> Iterator[bytes]:
    """The PNG file with each chunk left out, doubled, cut short, and with each byte of its content changed."""
    chunks = png_chunks(good)
    for i, (kind, content) in enumerate(chunks):
        yield png_file(chunks[:i] + chunks[i + 1 :])
        yield png_file([*chunks[:i], chunks[i], *chunks[i:]])
        for end in range(len(content)):
            yield png_file([*chunks[:i], (kind, content[:end]), *chunks[i + 1 :]])
        for at, byte in enumerate(content):
            changed = content[:at] + bytes([byte ^ 0xFF]) + content[at + 1 :]
            yield png_file([*chunks[:i], (kind, changed), *chunks[i + 1 :]])


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:RuntimeWarning")
@pytest.mark.parametrize("suffix", [*FORMATS, "chunks.png"])
def test_a_damaged_file_is_read_or_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 16)  # a damaged size shall not take gigabytes
    good = encoded(suffix, side=8, **FORMATS.get(suffix, {}))
    path, refused, total = tmp_path / f"image.{suffix}", 0, 0
    for content in damaged_chunks(good) if suffix == "chunks.png" else damaged_bytes(good):
        path.write_bytes(content)
        total += 1
        try:
            pixels = read_image(path, crop_and_resize)
        except DataError as error:
            refused += 1
            assert str(error) == f"{path} is not an image that can be read: replace or remove it."
        else:
            assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8
    assert total > 100 and refused > total / 10


def test_a_png_whose_second_chunk_has_a_wrong_length(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "broken.png")
    content = bytearray((tmp_path / "broken.png").read_bytes())
    content[36] ^= 16  # behind the signature (8 bytes) and the first chunk (25): the last byte of the length
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(SyntaxError), Image.open(tmp_path / "broken.png") as picture:
        picture.load()
    for convert in (require_exact, crop_and_resize):
        with pytest.raises(DataError, match="not an image that can be read"):
            read_image(tmp_path / "broken.png", convert)


def test_an_image_larger_than_memory_should_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.png").write_bytes(encoded("png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings(), pytest.raises(DataError, match="not an image that can be read"):
        warnings.simplefilter("error")
        read_image(tmp_path / "bomb.png", crop_and_resize)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file .*nowhere.png"):
        read_image(tmp_path / "nowhere.png", crop_and_resize)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="folder.png cannot be read: Is a directory"):
        read_image(tmp_path / "folder.png", crop_and_resize)


# --------------------------------------------------------------------------------------------- folders that are good


def test_an_image_folder_becomes_a_dataset(image_folder: Path, home: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    pets = import_dataset(image_folder, progress=lambda *state: steps.append(state))
    assert (pets.name, pets.classes, pets.published) == ("pets", ("cat", "dog"), False)
    assert pets.train.images.shape == (6, 3, 32, 32) and pets.train.images.dtype == torch.uint8
    assert pets.train.labels.sort().values.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = np.asarray(Image.open(image_folder / "train" / "dog" / "dog_s_000002.png")).transpose(2, 0, 1)
    (row,) = [row for row in range(6) if np.array_equal(pets.train.images[row], pixels)]
    assert pets.train.labels[row] == 1
    assert steps[-1] == ("reading images", 12, 12)
    assert oct(home.stat().st_mode & 0o777) == "0o700"
    tree = torch.load(dataset_path("pets"), weights_only=True, mmap=True)
    assert torch.equal(tree["train_images"], pets.train.images)


# ---------------------------------------------------------------------------------------------- folders that are bad


def test_no_test_split(image_folder: Path, home: Path) -> None:
    shutil.rmtree(image_folder / "test")
    refuse(image_folder, "no test images.*`--test-share 0.2`", home)


def test_a_missing_class(image_folder: Path, home: Path) -> None:
    shutil.rmtree(image_folder / "test" / "dog")
    refuse(image_folder, "class 'dog' in 'train' but not in 'test'", home)


def test_one_class_alone(tmp_path: Path, home: Path) -> None:
    refuse(make_folder(tmp_path / "one", ("cat",)), "2 to 1000 are needed", home)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (33, 32)), "33x32 pixels"),
        (Image.new("L", (32, 32)), "greyscale"),
        (Image.new("P", (32, 32)), "palette"),
        (Image.new("RGBA", (32, 32)), "transparency"),
    ],
)
def test_an_image_of_another_kind(image: Image.Image, message: str, image_folder: Path, home: Path) -> None:
    path = image_folder / "train" / "cat" / "cat_s_000001.png"
    image.save(path)
    refuse(image_folder, f"cat_s_000001.png is .*{message}", home)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(60)])
def test_an_unreadable_image(content: bytes, image_folder: Path, home: Path) -> None:
    (image_folder / "test" / "dog" / "dog_s_000000.png").write_bytes(content)
    refuse(image_folder, "dog_s_000000.png is not an image", home)


def test_a_truncated_image(image_folder: Path, home: Path) -> None:
    path = image_folder / "test" / "dog" / "dog_s_000000.png"
    path.write_bytes(path.read_bytes()[:-600])
    refuse(image_folder, "not an image that can be read", home)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(image_folder: Path, home: Path) -> None:
    (image_folder / "train").chmod(0)
    refuse(image_folder, "cannot be read: Permission denied", home)


def test_a_folder_that_the_system_does_not_give(
    image_folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(root: Path, *arguments: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(readers, "READERS", (readers.Reader("any", deny, deny),))  # type: ignore[arg-type]
    refuse(image_folder, "cannot be read: Permission denied", home)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", deny)
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            list_images(image_folder, LeftOut())
