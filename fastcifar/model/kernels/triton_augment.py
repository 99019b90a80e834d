"""`model.augment.augment` on CUDA in one kernel, which reads the batch's rows of the dataset, uint8, and writes its
images.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
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

# Two pixels a thread: with three channels and up to 4 x 4 filter taps 96 loads that wait for nothing but the image's
# row. Blocks of 128 leave few threads idle in small images (24 x 24 are 4.5 blocks).
PIXELS = 128
WARPS = 2
SCHEMA = (
    "triton_augment(Tensor images, Tensor index, Tensor? flip, Tensor? shift, Tensor? box, Tensor? brightness, "
    "Tensor? contrast, Tensor mean, Tensor std, ScalarType dtype, int cutout, int side, bool antialias) -> Tensor"
)


@triton.jit
def reflected(position, SOURCE: tl.constexpr):
    """See `model.augment.reflect`."""
    return SOURCE - 1 - tl.abs(SOURCE - 1 - tl.abs(position))


# A plan is a slice, which may begin anywhere: no variant for addresses that are a multiple of 16.
@triton.jit(
    do_not_specialize=["cutout"],
    do_not_specialize_on_alignment=["index", "flip", "shift", "box", "brightness", "contrast"],
)
def augment_kernel(
    images,
    index,
    flip,
    shift,
    box,
    brightness,
    contrast,
    mean,
    std,
    filters,
    out,
    cutout,
    SOURCE: tl.constexpr,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """PIXELS pixels of one image a program, from TAPS x TAPS pixels of SOURCE x SOURCE each.

    A thread has all channels of its pixels: what they are made of is found once for three loads, and the threads of a
    warp read neighbouring bytes of one channel.
    """
    blocks: tl.constexpr = (SIZE * SIZE + PIXELS - 1) // PIXELS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < SIZE * SIZE
    top, left = pixel // SIZE, pixel % SIZE
    if filters is not None:
        vertical, horizontal = filters + top * (TAPS + 1), filters + left * (TAPS + 1)
        top = tl.load(vertical, inside, other=0.0).to(tl.int32)
        left = tl.load(horizontal, inside, other=0.0).to(tl.int32)
    source = images + tl.load(index + image) * (3 * SOURCE * SOURCE)
    red = tl.zeros((PIXELS,), tl.float32)
    green = tl.zeros((PIXELS,), tl.float32)
    blue = tl.zeros((PIXELS,), tl.float32)
    weights = tl.zeros((PIXELS,), tl.float32)  # of all pixels that are not cut out
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
            weight = tl.full((PIXELS,), 1.0, tl.float32)
            if filters is not None:
                weight = tl.load(vertical + 1 + i, inside, other=0.0) * tl.load(horizontal + 1 + j, inside, other=0.0)
            if box is not None:
                down, right = row - tl.load(box + image * 2), column - tl.load(box + image * 2 + 1)
                cut = (down >= 0) & (down < cutout) & (right >= 0) & (right < cutout)
                weight = tl.where(cut, 0.0, weight)
            at = source + source_row * SOURCE + source_column
            red += weight * tl.load(at, inside, other=0).to(tl.float32)
            green += weight * tl.load(at + SOURCE * SOURCE, inside, other=0).to(tl.float32)
            blue += weight * tl.load(at + 2 * SOURCE * SOURCE, inside, other=0).to(tl.float32)
            weights += weight
    for channel in tl.static_range(3):
        # (value / 255 - mean) / std, brightness and contrast in one multiplication and one addition.
        scale = 1 / (tl.load(std + channel) * 255)
        offset = tl.load(mean + channel) * -255 * scale
        if brightness is not None:
            offset += tl.load(brightness + image)
        if contrast is not None:
            scale *= tl.load(contrast + image)
            offset *= tl.load(contrast + image)
        value = (red if channel == 0 else green if channel == 1 else blue) * scale + weights * offset
        tl.store(out + image * (3 * SIZE * SIZE) + pixel * 3 + channel, value.to(out.dtype.element_ty), inside)


@cache
def resize_filters(side: int, antialias: bool, device: torch.device) -> Tensor:
    """For each of `side` pixels of a line the first of the pixels that it is made of, and the weights of that one and
    those behind it: float32 (side, 1 + taps); `kernels.augment.shrinking` without its zeros.

    Copied to the device when it is first wanted, which must not be while a CUDA graph is captured.
    """
    weights = shrinking(side, antialias)[:, :side].T
    taps = int((weights > 0).sum(1).max())
    first = (weights > 0).int().argmax(1, keepdim=True).clamp(max=SIDE - taps)
    return torch.cat([first, weights.gather(1, first + torch.arange(taps))], 1).to(device)


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
    antialias: bool,
) -> Tensor:
    """See `model.augment.augment`; the plan in pieces."""
    out = new(images, (len(index), 3, side, side), dtype)
    filters = None if side == SIDE else resize_filters(side, antialias, images.device)
    tensors = (images, index, flip, shift, box, brightness, contrast, mean, std, filters, out)
    augment_kernel[(len(index) * triton.cdiv(side**2, PIXELS),)](
        *tensors,
        cutout,
        SOURCE=SIDE,
        SIZE=side,
        TAPS=1 if filters is None else filters.size(1) - 1,
        PIXELS=PIXELS,
        num_warps=WARPS,
    )
    return out


def shapes(images: Tensor, index: Tensor, *others: Any) -> Tensor:
    """What `launch` gives, not computed."""
    dtype, _, side, _ = others[-4:]
    return new(images, (len(index), 3, side, side), dtype)


def traffic(arguments: tuple[Any, ...], out: Tensor) -> int:
    """The batch's rows of the dataset, the plan and the images."""
    rows: int = len(out) * arguments[0][0].nbytes
    return rows + out.nbytes + sum(each.nbytes for each in arguments[1:] if isinstance(each, Tensor))


OPERATOR = define(SCHEMA, launch, shapes, traffic)


def augment_cuda(
    images: Tensor,
    plan: AugmentPlan,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    cutout: int = 0,
    side: int = SIDE,
    antialias: bool = True,
) -> Tensor:
    """See `model.augment.augment`, which does what the kernel does not: other devices, smaller and larger images."""
    changes = (plan.flip, plan.shift, plan.box, plan.brightness, plan.contrast)
    tensors = (images, plan.index, mean, std, *(each for each in changes if each is not None))
    dense = all(each.is_contiguous() for each in tensors)
    if not (SMALLEST_SIDE <= side <= SIDE and dense and supported(*tensors)):
        return augment(images, plan, mean, std, dtype, cutout, side, antialias)
    out: Tensor = OPERATOR(images, plan.index, *changes, mean, std, dtype, cutout, side, antialias)
    return out
