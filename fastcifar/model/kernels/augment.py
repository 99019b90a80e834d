"""`model.augment.augment` on a CPU in one pass over each image: the operator, and its stand-in for the compiled engine.

The kernel is in `augment.cpp`; pixels differ by rounding alone.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcifar.model.augment import AugmentPlan, augment
from fastcifar.model.kernels.build import library, new, pointer
from fastcifar.recipes.schema import SIDE

OPERATORS = torch.library.Library("fastcifar", "FRAGMENT")  # type: ignore[no-untyped-call]
OPERATORS.define(  # type: ignore[no-untyped-call]
    "augment(Tensor images, Tensor index, Tensor?[] changes, Tensor mean, Tensor std, int cutout, int side, "
    "bool antialias) -> Tensor"
)


def run(
    images: Tensor,
    index: Tensor,
    changes: list[Tensor | None],
    mean: Tensor,
    std: Tensor,
    cutout: int,
    side: int,
    antialias: bool,
) -> Tensor:
    """See `model.augment.augment`; `changes` are flip, shift, box, brightness and contrast of a plan."""
    out = new(images, (len(index), 3, side, side))
    kept = [None if each is None else each.contiguous() for each in changes]
    scale, offset = 1 / (255 * std), -mean / std
    weights = None if side == SIDE else shrinking(side, antialias)
    tensors = (images.contiguous(), index.contiguous(), *kept, scale, offset, weights, out)
    sizes = (len(index), cutout, side, torch.get_num_threads())
    library("augment").augment(*map(pointer, tensors), *map(ctypes.c_int, sizes))
    return out


OPERATORS.impl("augment", run, "CPU")  # type: ignore[no-untyped-call]


@cache
def shrinking(side: int, antialias: bool) -> Tensor:
    """The weights (32, 32) by which PyTorch's bilinear filter, with antialiasing or without, makes of a line one of
    `side` pixels; behind these are zeros."""
    lines = F.interpolate(torch.eye(SIDE)[None, None], (SIDE, side), mode="bilinear", antialias=antialias)
    return F.pad(lines[0, 0], (0, SIDE - side)).contiguous()


def augment_cpu(
    images: Tensor,
    plan: AugmentPlan,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    cutout: int = 0,
    side: int = SIDE,
    antialias: bool = True,
) -> Tensor:
    """See `model.augment.augment`, which does what the kernel does not: other types, other devices, larger images."""
    if dtype != torch.float32 or not images.is_cpu or side > SIDE:
        return augment(images, plan, mean, std, dtype, cutout, side, antialias)
    changes = [plan.flip, plan.shift, plan.box, plan.brightness, plan.contrast]
    out: Tensor = torch.ops.fastcifar.augment(images, plan.index, changes, mean, std, cutout, side, antialias)
    return out
