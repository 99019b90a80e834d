"""2x2 maximum pooling, batch normalisation and activation as Triton operators: one operator is one kernel launch.

With a map before pooling of P bytes and one behind it of S, both in half precision, pooling, normalisation and
activation move 2 P + 8 S bytes, forward and backward; without pooling 8 S. Sums over all pixels take two kernels: each
program of the first writes its own, and the second adds them up, in an order that never changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcifar.model.kernels import triton_norm_kernels as kernels
from fastcifar.model.kernels.build import new
from fastcifar.model.kernels.triton_operators import define
from fastcifar.model.kernels.triton_pointwise import MOST_PROGRAMS, WARPS, Split, like, split


class Tile(NamedTuple):
    """How much a program works on at once: so many elements, by so many warps of 32 threads."""

    elements: int
    warps: int


# Chosen by measurement on an H100, in half precision: see README.md.
SUMS = Tile(2048, 4)
POOLED_SUMS = Tile(1024, 8)  # of maxima: four times as much is read
MAPS = Tile(2048, 8)
SQUARES = Tile(1024, 4)
# The programs of `normalize_backward` are so many times those of sums: the last ones to start are soon done. Other
# kernels without sums have a program for each tile.
WAVES = 4
SUMMED_CHANNELS = 8  # of a program that adds up all programs' sums: a 32-byte sector of each row


def pixels_of(x: Tensor) -> int:
    """The pixels of all maps (N, C, H, W)."""
    return x.size(0) * x.size(2) * x.size(3)


def parts_of(x: Tensor, part: Split) -> Tensor:
    """Memory for two sums of each program, for each channel of x."""
    return x.new_empty((2, part.programs, x.size(1)), dtype=torch.float32)


def plain_split(x: Tensor) -> Split:
    """How the pixels of x (N, C, H, W) are divided for sums."""
    return split(pixels_of(x), x.size(1), SUMS.elements, MOST_PROGRAMS)


def pooled_split(x: Tensor) -> Split:
    """How the pooled pixels of x (N, C, H, W) are divided for sums."""
    pixels = x.size(0) * (x.size(2) // 2) * (x.size(3) // 2)
    return split(pixels, x.size(1), POOLED_SUMS.elements, MOST_PROGRAMS)


def single_tiles(pixels: int, channels: int, tile: Tile) -> Split:
    """How pixels are divided where each program has one tile."""
    return split(pixels, channels, tile.elements, pixels)


def constants(x: Tensor, part: Split, tile: Tile) -> dict[str, int]:
    """What every kernel over pixels is compiled for, but types and activation."""
    return {"C": x.size(1), "ROWS": part.rows, "COLUMNS": part.columns, "num_warps": tile.warps}


def summing(parts: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Grid and constants of the kernels that add up parts (2, programs, C)."""
    channels = parts.size(2)
    grid = (-(-channels // SUMMED_CHANNELS),)
    return grid, {"C": channels, "PROGRAMS": MOST_PROGRAMS, "COLUMNS": SUMMED_CHANNELS, "num_warps": WARPS}


def pooled_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for the maxima of the 2x2 squares of x (N, C, H, W)."""
    return new(x, (x.size(0), x.size(1), x.size(2) // 2, x.size(3) // 2), dtype or x.dtype)


def pool_statistics_outputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what `pool_statistics` gives."""
    return pooled_like(x), pooled_like(x, torch.uint8), parts_of(x, pooled_split(x))


def pool_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maxima of the 2x2 squares of x (N, C, H, W), an odd last row or column left out; which of the four each is,
    uint8; and each program's mean and M2 of them, float32 (2, programs, C)."""
    y, chosen, parts = pool_statistics_outputs(x)
    part = pooled_split(x)
    kernels.pool_statistics_kernel[(part.programs,)](
        x, y, chosen, parts, x.size(2), x.size(3), pixels_of(y), part.per, **constants(x, part, POOLED_SUMS)
    )
    return y, chosen, parts


def statistics_outputs(x: Tensor) -> Tensor:
    """Memory for what `statistics` gives."""
    return parts_of(x, plain_split(x))


def statistics(x: Tensor) -> Tensor:
    """Each program's mean and M2 of the pixels of x (N, C, H, W), float32 (2, programs, C)."""
    parts = statistics_outputs(x)
    part = plain_split(x)
    kernels.statistics_kernel[(part.programs,)](x, parts, pixels_of(x), part.per, **constants(x, part, SUMS))
    return parts


def update_statistics_outputs(parts: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Memory for what `update_statistics` gives."""
    return parts.new_empty(parts.size(2)), parts.new_empty(parts.size(2))


def update_statistics(
    parts: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor,
    momentum: float,
    pixels: int,
    share: int,
) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel, float32 (C,), from each program's, of `share` of all pixels.

    The running mean and (unbiased) variance are moved towards them by `momentum`; `batches` (int64) counts one more.
    """
    mean, variance = update_statistics_outputs(parts)
    grid, sizes = summing(parts)
    kernels.update_statistics_kernel[grid](
        parts,
        running_mean,
        running_var,
        batches,
        mean,
        variance,
        momentum,
        pixels,
        share,
        parts.size(1),
        **sizes,
    )
    return mean, variance


def normalize(x: Tensor, mean: Tensor, variance: Tensor, bias: Tensor, eps: float, kind: str) -> Tensor:
    """The activation of x (N, C, H, W), normalised by mean and variance and shifted by the bias, (C,) each."""
    y = like(x)
    part = single_tiles(pixels_of(x), x.size(1), MAPS)
    kernels.normalize_kernel[(part.programs,)](
        x, y, mean, variance, bias, eps, pixels_of(x), KIND=kind, **constants(x, part, MAPS)
    )
    return y


def pool_normalize_outputs(x: Tensor, *others: Any) -> Tensor:
    """Memory for what `pool_normalize` gives."""
    return pooled_like(x)


def pool_normalize(x: Tensor, mean: Tensor, variance: Tensor, bias: Tensor, eps: float, kind: str) -> Tensor:
    """`normalize` of the maxima of the 2x2 squares of x (N, C, H, W), which are not kept."""
    y = pool_normalize_outputs(x)
    part = single_tiles(pixels_of(y), x.size(1), SQUARES)
    sizes = x.size(2), x.size(3), pixels_of(y)
    kernels.pool_normalize_kernel[(part.programs,)](
        x, y, mean, variance, bias, eps, *sizes, KIND=kind, **constants(x, part, SQUARES)
    )
    return y


def gradient_sums_outputs(x: Tensor, *others: Any) -> Tensor:
    """Memory for what `gradient_sums` gives."""
    return parts_of(x, plain_split(x))


def gradient_sums(
    x: Tensor, grad: Tensor, mean: Tensor, variance: Tensor, bias: Tensor, eps: float, kind: str
) -> Tensor:
    """Each program's sums, float32 (2, programs, C), over the pixels of the gradient between normalisation and
    activation, and of that times the normalised map, from the gradient of `normalize` of x."""
    parts = gradient_sums_outputs(x)
    part = plain_split(x)
    kernels.gradient_sums_kernel[(part.programs,)](
        x, grad, mean, variance, bias, parts, eps, pixels_of(x), part.per, KIND=kind, **constants(x, part, SUMS)
    )
    return parts


def bias_gradient_outputs(parts: Tensor, bias: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Memory for what `bias_gradient` gives."""
    return torch.empty_like(bias), parts.new_empty((2, parts.size(2)))


def bias_gradient(parts: Tensor, bias: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """The gradient of the bias, and the means over all pixels of the two of `gradient_sums`, float32 (2, C)."""
    dbias, means = bias_gradient_outputs(parts, bias)
    grid, sizes = summing(parts)
    kernels.bias_gradient_kernel[grid](parts, dbias, means, pixels, parts.size(1), **sizes)
    return dbias, means


def normalize_backward(
    x: Tensor, grad: Tensor, mean: Tensor, variance: Tensor, bias: Tensor, means: Tensor, eps: float, kind: str
) -> Tensor:
    """The gradient of x from that of `normalize`, whose mean and variance are those of x."""
    dx = like(x)
    part = split(pixels_of(x), x.size(1), MAPS.elements, WAVES * MOST_PROGRAMS)
    kernels.normalize_backward_kernel[(part.programs,)](
        x, grad, mean, variance, bias, means, dx, eps, pixels_of(x), part.per, KIND=kind, **constants(x, part, MAPS)
    )
    return dx


def pool_normalize_backward_outputs(y: Tensor, *others: Any) -> Tensor:
    """Memory for what `pool_normalize_backward` gives."""
    height, width = others[-2:]
    return new(y, (*y.shape[:2], height, width), y.dtype)


def pool_normalize_backward(
    y: Tensor,
    chosen: Tensor,
    grad: Tensor,
    mean: Tensor,
    variance: Tensor,
    bias: Tensor,
    means: Tensor,
    eps: float,
    kind: str,
    height: int,
    width: int,
) -> Tensor:
    """The gradient of the map (N, C, height, width) whose maxima `y` were `normalize`d; zero in an odd last row or
    column."""
    dx = pool_normalize_backward_outputs(y, height, width)
    squares = y.size(0) * ((height + 1) // 2) * ((width + 1) // 2)
    part = single_tiles(squares, y.size(1), SQUARES)
    kernels.pool_normalize_backward_kernel[(part.programs,)](
        y,
        chosen,
        grad,
        mean,
        variance,
        bias,
        means,
        dx,
        eps,
        height,
        width,
        squares,
        KIND=kind,
        **constants(y, part, SQUARES),
    )
    return dx


FACTORS = "Tensor mean, Tensor variance, Tensor bias"
POOL_STATISTICS = define(
    "triton_pool_statistics(Tensor x) -> (Tensor, Tensor, Tensor)", pool_statistics, pool_statistics_outputs
)
STATISTICS = define("triton_statistics(Tensor x) -> Tensor", statistics, statistics_outputs)
UPDATE_STATISTICS = define(
    "triton_update_statistics(Tensor parts, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!) batches, "
    "float momentum, int pixels, int share) -> (Tensor, Tensor)",
    update_statistics,
    update_statistics_outputs,
)
NORMALIZE = define(f"triton_normalize(Tensor x, {FACTORS}, float eps, str kind) -> Tensor", normalize, like)
POOL_NORMALIZE = define(
    f"triton_pool_normalize(Tensor x, {FACTORS}, float eps, str kind) -> Tensor",
    pool_normalize,
    pool_normalize_outputs,
)
GRADIENT_SUMS = define(
    f"triton_gradient_sums(Tensor x, Tensor grad, {FACTORS}, float eps, str kind) -> Tensor",
    gradient_sums,
    gradient_sums_outputs,
)
BIAS_GRADIENT = define(
    "triton_bias_gradient(Tensor parts, Tensor bias, int pixels) -> (Tensor, Tensor)",
    bias_gradient,
    bias_gradient_outputs,
)
NORMALIZE_BACKWARD = define(
    f"triton_normalize_backward(Tensor x, Tensor grad, {FACTORS}, Tensor means, float eps, str kind) -> Tensor",
    normalize_backward,
    like,
)
POOL_NORMALIZE_BACKWARD = define(
    f"triton_pool_normalize_backward(Tensor y, Tensor chosen, Tensor grad, {FACTORS}, Tensor means, float eps, "
    "str kind, int height, int width) -> Tensor",
    pool_normalize_backward,
    pool_normalize_backward_outputs,
)
