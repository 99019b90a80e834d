"""`model.augment.augment` on CUDA in one kernel: the batch's rows of the dataset are read once, as uint8, and its images
written once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.model.augment import AugmentPlan, augment
from fastcifar.model.kernels.augment import shrinking
from fastcifar.model.kernels.build import new
from fastcifar.model.kernels.triton_operators import define, supported
from fastcifar.recipes.schema import SIDE, SMALLEST_SIDE

# A quarter of an image, 32 x 32, and two pixels a thread: in all three channels and up to 4 x 4 filter taps 96 loads
# that wait for nothing but the row's number. More pixels a thread would spend registers, fewer the start of a block.
PIXELS = 256
WARPS = 4
SCHEMA = (
    "triton_augment(Tensor images, Tensor index, Tensor? flip, Tensor? shift, Tensor? box, Tensor? brightness, "
    "Tensor? contrast, Tensor mean, Tensor std, ScalarType dtype, int cutout, int side) -> Tensor"
)


@triton.jit
def reflected(position: tl.tensor, SOURCE: tl.constexpr) -> tl.tensor:
    """See `model.augment.reflect`."""
    return SOURCE - 1 - tl.abs(SOURCE - 1 - tl.abs(position))


# A plan is a slice, which may begin anywhere: no variant for addresses that are a multiple of 16.
@triton.jit(
    do_not_specialize=["cutout"],
    do_not_specialize_on_alignment=["index", "flip", "shift", "box", "brightness", "contrast"],
)
def augment_kernel(
    images: tl.tensor,
    index: tl.tensor,
    flip: tl.tensor,
    shift: tl.tensor,
    box: tl.tensor,
    brightness: tl.tensor,
    contrast: tl.tensor,
    mean: tl.tensor,
    std: tl.tensor,
    first: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    cutout: tl.tensor,
    SOURCE: tl.constexpr,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """PIXELS pixels of one image a program, from TAPS x TAPS pixels of SOURCE x SOURCE each.

    Tiles are (channels, pixels): the threads of a warp read neighbouring bytes of one channel. What is written has
    the channels last; Triton turns the tile for that.
    """
    blocks: tl.constexpr = (SIZE * SIZE + PIXELS - 1) // PIXELS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, 4)[:, None]
    inside = pixel < SIZE * SIZE
    exists = (channel < 3) & inside[None, :]
    # (value / 255 - mean) / std, brightness and contrast in one multiplication and one addition.
    scale = 1 / (tl.load(std + channel, channel < 3, other=1.0) * 255)
    offset = tl.load(mean + channel, channel < 3, other=0.0) * -255 * scale
    if brightness is not None:
        offset += tl.load(brightness + image)
    if contrast is not None:
        scale *= tl.load(contrast + image)
        offset *= tl.load(contrast + image)
    top, left = pixel // SIZE, pixel % SIZE
    if first is not None:
        top, left = tl.load(first + top, inside, other=0), tl.load(first + left, inside, other=0)
    source = images + tl.load(index + image) * (3 * SOURCE * SOURCE) + channel * (SOURCE * SOURCE)
    total = tl.zeros((4, PIXELS), tl.float32)
    for i in tl.static_range(TAPS):
        row = top + i
        source_row = row
        if shift is not None:
            source_row = reflected(row + tl.load(shift + image * 2).to(tl.int32), SOURCE)
        for j in tl.static_range(TAPS):
            column = left + j
            source_column = column
            if flip is not None:
                source_column = tl.where(tl.load(flip + image), SOURCE - 1 - column, column)
            if shift is not None:
                source_column = reflected(source_column + tl.load(shift + image * 2 + 1).to(tl.int32), SOURCE)
            value = tl.load(source + (source_row * SOURCE + source_column)[None, :], exists, other=0)
            value = value.to(tl.float32) * scale + offset
            if box is not None:
                down, right = row - tl.load(box + image * 2), column - tl.load(box + image * 2 + 1)
                cut = (down >= 0) & (down < cutout) & (right >= 0) & (right < cutout)
                value = tl.where(cut[None, :], 0.0, value)
            if weights is not None:
                vertical = tl.load(weights + pixel // SIZE * TAPS + i, inside, other=0.0)
                horizontal = tl.load(weights + pixel % SIZE * TAPS + j, inside, other=0.0)
                value *= (vertical * horizontal)[None, :]
            total += value
    at = image * (3 * SIZE * SIZE) + pixel[None, :] * 3 + channel
    tl.store(out + at, total.to(out.dtype.element_ty), exists)


@cache
def taps(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of which pixels of a line the filter makes each of `side` pixels: the first, int32 (side,), and the weights of
    it and those behind it, float32 (side, taps); `kernels.augment.shrinking` without its zeros.

    Copied to the device when it is first wanted, which must not be while a CUDA graph is captured.
    """
    weights = shrinking(side)[:, :side].T
    most = int((weights > 0).sum(1).max())
    first = (weights > 0).int().argmax(1).clamp(max=SIDE - most)
    kept = weights.gather(1, first[:, None] + torch.arange(most))
    return first.int().to(device), kept.to(device)


def launch(
    images: Tensor,
    index: Tensor,
    flip: Tensor | None,
    shift: Tensor | None,
    box: Tensor | None,
    brightness: Tensor | None,
    contrast: Tensor | None,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    cutout: int,
    side: int,
) -> Tensor:
    """See `model.augment.augment`; the plan in pieces."""
    out = new(images, (len(index), 3, side, side), dtype)
    first, weights = (None, None) if side == SIDE else taps(side, images.device)
    tensors = (images, index, flip, shift, box, brightness, contrast, mean, std, first, weights, out)
    augment_kernel[(len(index) * triton.cdiv(side**2, PIXELS),)](
        *tensors,
        cutout,
        SOURCE=SIDE,
        SIZE=side,
        TAPS=1 if weights is None else weights.size(1),
        PIXELS=PIXELS,
        num_warps=WARPS,
    )
    return out


def shapes(images: Tensor, index: Tensor, *others: Any) -> Tensor:
    """What `launch` gives, not computed."""
    dtype, _, side = others[-3:]
    return new(images, (len(index), 3, side, side), dtype)


def traffic(arguments: tuple[Any, ...], out: Tensor) -> int:
    """The batch's rows of the dataset, the plan and the images."""
    rows = len(out) * arguments[0][0].nbytes
    return rows + out.nbytes + sum(each.nbytes for each in arguments[1:] if isinstance(each, Tensor))


OPERATOR = define(SCHEMA, launch, shapes, traffic)


def augment_cuda(
    images: Tensor, plan: AugmentPlan, mean: Tensor, std: Tensor, dtype: torch.dtype, cutout: int = 0, side: int = SIDE
) -> Tensor:
    """See `model.augment.augment`, which does what the kernel does not: other devices, smaller and larger images."""
    changes = (plan.flip, plan.shift, plan.box, plan.brightness, plan.contrast)
    tensors = (images, plan.index, mean, std, *(each for each in changes if each is not None))
    dense = all(each.is_contiguous() for each in tensors)
    if not (SMALLEST_SIDE <= side <= SIDE and dense and supported(*tensors)):
        return augment(images, plan, mean, std, dtype, cutout, side)
    out: Tensor = OPERATOR(images, plan.index, *changes, mean, std, dtype, cutout, side)
    return out
