"""Triton kernels for activations, and for the maximum over all pixels, with or without their mean: one operator is one
kernel launch.

Maps are (N, C, H, W) in channels-last memory, float16, bfloat16 or float32; all arithmetic is in float32. Sizes are not
specialised (Triton would compile again for a size that is 1 or a multiple of 16): a kernel is compiled once for each
type, number of channels and activation.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.model.kernels.build import new
from fastcifar.model.kernels.triton_activations import activate, slope
from fastcifar.model.kernels.triton_operators import define

# Programs of 256 threads; four of them fill half of a multiprocessor (2,048 threads) at up to 64 registers a thread.
# With two 16-byte loads of each thread on their way that is 32 KiB a multiprocessor; H100 needs about 18 KiB
# (3.35 TB/s x 0.7 us / 132) to keep its memory busy.
WARPS = 8
ELEMENTS = 4096  # of a tile: 16 a thread, two 16-byte vectors of half precision
# Programs that work through their pixels in a loop: one wave of four on each of an H100's 132 multiprocessors, and a
# power of two, for another kernel reads a row of sums from each.
MOST_PROGRAMS = 512
MOST_CHANNELS = ELEMENTS
MOST_PIXELS = 256  # of a map whose maximum is taken: its place is kept in a byte


class Split(NamedTuple):
    """How rows of channels are divided: each program has `per` tiles one after the other, of `rows` x `columns`."""

    programs: int
    per: int
    rows: int
    columns: int


def split(pixels: int, channels: int, elements: int, most: int) -> Split:
    """Tiles of about so many elements, the same number of them for each of at most so many programs."""
    columns: int = triton.next_power_of_2(channels)
    rows = max(1, elements // columns)
    tiles = triton.cdiv(pixels, rows)
    per = triton.cdiv(tiles, most)
    return Split(triton.cdiv(tiles, per), per, rows, columns)


@triton.jit(do_not_specialize=["units"])
def activation_kernel(x, y, units, UNIT: tl.constexpr, KIND: tl.constexpr, SIZE: tl.constexpr):
    """One program for each SIZE numbers, however they lie. They come in whole units, which are loaded at once."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    ok = at < units * UNIT
    u = tl.load(x + at, ok, other=0.0).to(tl.float32)
    tl.store(y + at, activate(u, KIND).to(y.dtype.element_ty), ok)


@triton.jit(do_not_specialize=["units"])
def activation_backward_kernel(x, grad, dx, units, UNIT: tl.constexpr, KIND: tl.constexpr, SIZE: tl.constexpr):
    """The same for gradients."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    ok = at < units * UNIT
    u = tl.load(x + at, ok, other=0.0).to(tl.float32)
    g = tl.load(grad + at, ok, other=0.0).to(tl.float32)
    tl.store(dx + at, (g * slope(u, KIND)).to(dx.dtype.element_ty), ok)


@triton.jit(do_not_specialize=["images", "pixels"])
def global_max_kernel(
    x,
    y,
    chosen,
    images,
    pixels,
    MEAN: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One program for ROWS images. The first of equal maxima is chosen; NaN is larger than any number. With MEAN the
    mean is added."""
    c = tl.arange(0, COLUMNS)[None, :]
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    ok = (n < images) & (c < C)
    at = n * pixels * C + c
    best = tl.load(x + at, ok, other=0.0).to(tl.float32)
    total = best
    place = tl.zeros((ROWS, COLUMNS), tl.int32)
    for p in tl.range(1, pixels, loop_unroll_factor=UNROLL):
        v = tl.load(x + at + p * C, ok, other=0.0).to(tl.float32)
        larger = (v > best) | (v != v)
        best = tl.where(larger, v, best)
        place = tl.where(larger, p, place)
        total += v
    if MEAN:
        best += total / pixels
    tl.store(y + n * C + c, best.to(y.dtype.element_ty), ok)
    tl.store(chosen + n * C + c, place.to(tl.uint8), ok)


@triton.jit(do_not_specialize=["images", "pixels"])
def global_max_backward_kernel(
    grad, chosen, dx, images, pixels, MEAN: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program for ROWS images: the gradient where the maximum was, zero at their other pixels; with MEAN its share
    of a pixel is added at all."""
    c = tl.arange(0, COLUMNS)[None, :]
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    ok = (n < images) & (c < C)
    g = tl.load(grad + n * C + c, ok, other=0.0).to(tl.float32)
    share = g / pixels if MEAN else 0.0
    place = tl.load(chosen + n * C + c, ok, other=0).to(tl.int32)
    at = n * pixels * C + c
    for p in range(pixels):
        tl.store(dx + at + p * C, (tl.where(place == p, g, 0.0) + share).to(dx.dtype.element_ty), ok)


def like(x: Tensor, *others: Any) -> Tensor:
    """A map of the size, type and memory of x: what these operators give, whatever else they are given."""
    return torch.empty_like(x)


def units_of(x: Tensor) -> tuple[int, int]:
    """How many units the numbers of x make, and their size: a unit of 8 is one 16-byte load in half precision."""
    unit = 8 if x.numel() % 8 == 0 else 1
    return x.numel() // unit, unit


def activation(x: Tensor, kind: str) -> Tensor:
    """The activation of each number of x, which lies without gaps, in memory laid out alike."""
    y = like(x)
    units, unit = units_of(x)
    grid = (triton.cdiv(x.numel(), ELEMENTS),)
    activation_kernel[grid](x, y, units, UNIT=unit, KIND=kind, SIZE=ELEMENTS, num_warps=WARPS)
    return y


def activation_backward(x: Tensor, grad: Tensor, kind: str) -> Tensor:
    """The gradient of x from that of its activations, both laid out like x."""
    dx = like(x)
    units, unit = units_of(x)
    grid = (triton.cdiv(x.numel(), ELEMENTS),)
    activation_backward_kernel[grid](x, grad, dx, units, UNIT=unit, KIND=kind, SIZE=ELEMENTS, num_warps=WARPS)
    return dx


def global_launch(images: int, channels: int, mean: bool) -> tuple[tuple[int], dict[str, Any]]:
    """The grid of a kernel of the global pooling, and its constants; few elements a program, for there are few: 384
    programs for 1,536 images of 256 channels."""
    part = split(images, channels, ELEMENTS // 4, images)
    constants = {"MEAN": mean, "C": channels, "ROWS": part.rows, "COLUMNS": part.columns, "num_warps": 4}
    return (part.programs,), constants


def global_max_outputs(x: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """Memory for what `global_max` gives."""
    return x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2], dtype=torch.uint8)


def global_max(x: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """The maximum over the pixels (at most MOST_PIXELS) of x (N, C, H, W), plus their mean where `mean`: (N, C); and
    which pixel the maximum is, uint8."""
    y, chosen = global_max_outputs(x, mean)
    images, channels, height, width = x.shape
    grid, constants = global_launch(images, channels, mean)
    global_max_kernel[grid](x, y, chosen, images, height * width, UNROLL=4, **constants)  # four loads at once
    return y, chosen


def global_max_backward_outputs(grad: Tensor, chosen: Tensor, mean: bool, height: int, width: int) -> Tensor:
    """Memory for what `global_max_backward` gives."""
    return new(grad, (*grad.shape, height, width), grad.dtype)


def global_max_backward(grad: Tensor, chosen: Tensor, mean: bool, height: int, width: int) -> Tensor:
    """The gradient of a map (N, C, H, W) from that of what `global_max` gave (N, C), all of it written."""
    dx = global_max_backward_outputs(grad, chosen, mean, height, width)
    images, channels = grad.shape
    grid, constants = global_launch(images, channels, mean)
    global_max_backward_kernel[grid](grad, chosen, dx, images, height * width, **constants)
    return dx


ACTIVATION = define("triton_activation(Tensor x, str kind) -> Tensor", activation, like)
ACTIVATION_BACKWARD = define(
    "triton_activation_backward(Tensor x, Tensor grad, str kind) -> Tensor", activation_backward, like
)
GLOBAL_MAX = define("triton_global_max(Tensor x, bool mean) -> (Tensor, Tensor)", global_max, global_max_outputs)
GLOBAL_MAX_BACKWARD = define(
    "triton_global_max_backward(Tensor grad, Tensor chosen, bool mean, int height, int width) -> Tensor",
    global_max_backward,
    global_max_backward_outputs,
)
