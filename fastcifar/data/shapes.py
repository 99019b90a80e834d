"""The embedded dataset: ten kinds of procedurally drawn shapes, for a first try, tests, and machines without a network.

Drawn in whole numbers from a raw stream of bits, whose values are fixed by its definition: the same bytes for the
same seed on every machine. Shapes differ in place, size and colour, before a gradient with noise and clutter; none
is the mirror image of another.
"""

from __future__ import annotations

import numpy as np
import torch

from fastcifar.data.dataset import Dataset, Split
from fastcifar.recipes.schema import SIDE

CLASSES = ("bars", "cross", "diamond", "disc", "frame", "plus", "ring", "square", "stripes", "triangle")
TRAIN, TEST = 10_000, 2_000
CHUNK = 1000  # images drawn at once


class Bits:
    """Whole numbers from the raw output of Philox, little end first."""

    def __init__(self, seed: int) -> None:
        self.source = np.random.Philox(key=seed)

    def below(self, limit: int, *shape: int) -> np.ndarray:
        """Numbers in 0..limit-1, int32 (the bias of the remainder is far below 2^-32)."""
        raw = self.source.random_raw(int(np.prod(shape)))
        return (np.asarray(raw, dtype=np.uint64) % np.uint64(limit)).astype(np.int32).reshape(shape)

    def bytes(self, *shape: int) -> np.ndarray:
        """Bytes, uint8."""
        count = int(np.prod(shape))
        raw = np.asarray(self.source.random_raw(-(-count // 8)), dtype="<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def make_shapes(seed: int = 0) -> Dataset:
    """10,000 training and 2,000 test images, each class as often as another, in random order."""
    bits = Bits(seed)
    train, test = draw(bits, TRAIN), draw(bits, TEST)
    return Dataset.build("shapes", CLASSES, train, test, source=f"drawn from seed {seed}")


def draw(bits: Bits, count: int) -> Split:
    """`count` images, uint8 (count, 3, 32, 32), with their labels."""
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    labels = labels[np.argsort(bits.below(2**31, count), kind="stable")]
    images = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        images[start : start + CHUNK] = draw_chunk(bits, labels[start : start + CHUNK])
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def draw_chunk(bits: Bits, labels: np.ndarray) -> np.ndarray:
    """Background, clutter, shape and noise, one over the other: uint8 (n, 3, 32, 32)."""
    n = len(labels)
    canvas = background(bits, n)
    ink = contrasting(bits, canvas.mean(axis=(2, 3), dtype=np.float64).astype(np.int32))
    for _ in range(2):
        clutter(bits, canvas)
    radius = 4 + bits.below(7, n)
    centre = radius[:, None] + bits.below(2**20, n, 2) % (SIDE - 2 * radius[:, None])
    line = np.arange(SIDE, dtype=np.int32)
    down = (line[None, :] - centre[:, :1])[:, :, None]
    right = (line[None, :] - centre[:, 1:])[:, None, :]
    inside = np.empty((n, SIDE, SIDE), dtype=bool)
    for label in range(len(CLASSES)):
        rows = labels == label
        inside[rows] = shape(CLASSES[label], down[rows], right[rows], radius[rows][:, None, None])
    canvas = np.where(inside[:, None], ink[:, :, None, None], canvas)
    for _ in range(2):
        clutter(bits, canvas)
    noise = (bits.bytes(n, 3, SIDE, SIDE).astype(np.int32) - 128) * 3 // 8
    return np.clip(canvas + noise, 0, 255).astype(np.uint8)


def background(bits: Bits, n: int) -> np.ndarray:
    """A colour with a gradient across the image, int32 (n, 3, 32, 32)."""
    colour = bits.below(256, n, 3)[:, :, None, None]
    slope = bits.below(5, n, 2, 3)[..., None, None] - 2
    line = np.arange(SIDE, dtype=np.int32) - SIDE // 2
    result: np.ndarray = np.clip(colour + slope[:, 0] * line[:, None] + slope[:, 1] * line[None, :], 0, 255)
    return result


def contrasting(bits: Bits, colour: np.ndarray) -> np.ndarray:
    """A random colour that is a fifth to a third of the range away in every channel, int32 (n, 3)."""
    away = 55 + bits.below(36, *colour.shape)
    result: np.ndarray = np.where(colour < 128, colour + away, colour - away)
    return result


def clutter(bits: Bits, canvas: np.ndarray) -> None:
    """Draw a thin stroke, upright or level, of any colour into each image."""
    n = len(canvas)
    line = np.arange(SIDE, dtype=np.int32)
    start, length, at, width = bits.below(24, n), 4 + bits.below(9, n), bits.below(SIDE - 2, n), 1 + bits.below(2, n)
    along = (line >= start[:, None]) & (line < (start + length)[:, None])
    across = (line >= at[:, None]) & (line < (at + width)[:, None])
    stroke = along[:, :, None] & across[:, None, :]
    turned = bits.below(2, n).astype(bool)
    stroke = np.where(turned[:, None, None], stroke.transpose(0, 2, 1), stroke)
    colour = bits.below(256, n, 3)[:, :, None, None]
    np.copyto(canvas, colour, where=stroke[:, None])


def shape(kind: str, down: np.ndarray, right: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Which pixels a shape covers, bool (n, 32, 32), from their distance to its centre, (n, 32, 1) and (n, 1, 32)."""
    high, wide = np.abs(down), np.abs(right)
    most, least, square = np.maximum(high, wide), np.minimum(high, wide), down**2 + right**2
    within = most <= radius
    masks = {
        "bars": lambda: within & (right % 4 < 2),
        "cross": lambda: within & (np.abs(high - wide) * 3 <= radius),
        "diamond": lambda: high + wide <= radius,
        "disc": lambda: square <= radius**2,
        "frame": lambda: within & (most > radius - 3),
        "plus": lambda: within & (least * 4 <= radius),
        "ring": lambda: (square <= radius**2) & (square > (radius - 3) ** 2),
        "square": lambda: most * 5 <= radius * 4,
        "stripes": lambda: within & (down % 4 < 2),
        "triangle": lambda: within & (2 * wide <= down + radius),
    }
    covered: np.ndarray = masks[kind]()
    return covered
