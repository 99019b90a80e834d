"""The optimizer's update in Triton: one launch for many parameters, computed in float32, each result rounded once.

A kernel takes tuples of pointers, which Triton makes arguments of their own: nothing is copied to the device for them,
and a CUDA graph holds them like any other. `STARTS` says which programs work on which tensor: tensor i belongs to the
programs from STARTS[i] to STARTS[i + 1], and each has `BLOCK` of its numbers, in the order of memory.

Gradients, momenta and parameters of one kind have the same shapes and strides and are dense; filters have their first
dimension outermost, so that they lie as matrices (D, K) whatever their memory format.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.model.kernels.triton_operators import define

BLOCK = 4096  # numbers a program
WARPS = 8
TILE = 64  # rows and columns of a product, a program


@triton.jit
def load(tensor, at, inside):
    """Numbers of a tensor in float32, zero outside."""
    return tl.load(tensor + at, inside, other=0.0).to(tl.float32)


@triton.jit
def total(sums, first, count: tl.constexpr, block: tl.constexpr):
    """The sum of `count` numbers from `first` on; `block` is a power of two, and no less."""
    i = tl.arange(0, block)
    return tl.sum(load(sums, first + i, i < count), 0)


@triton.jit
def momentum_kernel(
    gradients,
    momenta,
    parameters,
    sums,
    factor,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    for i in tl.static_range(len(SIZES)):
        if (tl.program_id(0) >= STARTS[i]) & (tl.program_id(0) < STARTS[i + 1]):
            at = (tl.program_id(0) - STARTS[i]) * BLOCK + tl.arange(0, BLOCK)
            inside = at < SIZES[i]
            gradient = load(gradients[i], at, inside)
            momentum = factor * load(momenta[i], at, inside) + gradient
            rounded = momentum.to(momenta[i].dtype.element_ty)
            tl.store(momenta[i] + at, rounded, inside)
            direction = gradient + factor * rounded.to(tl.float32)
            tl.store(sums + tl.program_id(0), tl.sum(direction * direction, 0))
            if NORMS:
                parameter = load(parameters[i], at, inside)
                tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(parameter * parameter, 0))


@triton.jit
def pack_kernel(
    gradients,
    momenta,
    sums,
    packed,
    factor,
    smallest,
    HEIGHTS: tl.constexpr,
    WIDTHS: tl.constexpr,
    STARTS: tl.constexpr,
    MOST_SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    to = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = to // COLUMNS, to % COLUMNS
    for i in tl.static_range(len(HEIGHTS)):
        if tl.program_id(1) == i:
            if HEIGHTS[i] <= WIDTHS[i]:
                at, inside = row * WIDTHS[i] + column, (row < HEIGHTS[i]) & (column < WIDTHS[i])
            else:
                at, inside = column * WIDTHS[i] + row, (row < WIDTHS[i]) & (column < HEIGHTS[i])
            direction = load(gradients[i], at, inside) + factor * load(momenta[i], at, inside)
            norm = tl.sqrt(total(sums, STARTS[i], STARTS[i + 1] - STARTS[i], MOST_SUMS))
            value = direction / (norm + smallest)
            tl.store(packed + i * ROWS * COLUMNS + to, value.to(tl.float16), to < ROWS * COLUMNS)


@triton.jit
def polynomial_kernel(gram, result, a, b, c, SIDE: tl.constexpr, TILE: tl.constexpr):
    tiles: tl.constexpr = (SIDE + TILE - 1) // TILE
    row = (tl.program_id(0) // tiles * TILE + tl.arange(0, TILE))[:, None]
    column = (tl.program_id(0) % tiles * TILE + tl.arange(0, TILE))[None, :]
    matrix = tl.program_id(1) * SIDE * SIDE
    square = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, SIDE, TILE):
        inner = start + tl.arange(0, TILE)
        left = tl.load(gram + matrix + row * SIDE + inner[None, :], (row < SIDE) & (inner[None, :] < SIDE), other=0.0)
        right = tl.load(
            gram + matrix + inner[:, None] * SIDE + column, (inner[:, None] < SIDE) & (column < SIDE), other=0.0
        )
        square = tl.dot(left, right, square)
    at, inside = matrix + row * SIDE + column, (row < SIDE) & (column < SIDE)
    value = c * square + b * load(gram, at, inside) + tl.where(row == column, a, 0.0)
    tl.store(result + at, value.to(result.dtype.element_ty), inside)


@triton.jit
def muon_kernel(
    parameters,
    packed,
    sums,
    rate,
    decay,
    HEIGHTS: tl.constexpr,
    WIDTHS: tl.constexpr,
    STARTS: tl.constexpr,
    MOST_SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    speed = tl.load(rate)
    for i in tl.static_range(len(HEIGHTS)):
        if (tl.program_id(0) >= STARTS[i]) & (tl.program_id(0) < STARTS[i + 1]):
            at = (tl.program_id(0) - STARTS[i]) * BLOCK + tl.arange(0, BLOCK)
            inside = at < HEIGHTS[i] * WIDTHS[i]
            row, column = at // WIDTHS[i], at % WIDTHS[i]
            source = row * COLUMNS + column if HEIGHTS[i] <= WIDTHS[i] else column * COLUMNS + row
            parameter = load(parameters[i], at, inside)
            if RENORMALIZE:
                first = tl.num_programs(0) + STARTS[i]
                parameter *= tl.sqrt(HEIGHTS[i] / total(sums, first, STARTS[i + 1] - STARTS[i], MOST_SUMS))
            parameter -= speed * load(packed, i * ROWS * COLUMNS + source, inside)
            parameter -= speed * decay * parameter
            tl.store(parameters[i] + at, parameter.to(parameters[i].dtype.element_ty), inside)


@triton.jit
def sgd_kernel(
    gradients,
    momenta,
    parameters,
    rates,
    factors,
    decays,
    COLUMNS: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    for i in tl.static_range(len(SIZES)):
        if (tl.program_id(0) >= STARTS[i]) & (tl.program_id(0) < STARTS[i + 1]):
            at = (tl.program_id(0) - STARTS[i]) * BLOCK + tl.arange(0, BLOCK)
            inside = at < SIZES[i]
            parameter = load(parameters[i], at, inside)
            gradient = load(gradients[i], at, inside) + decays[i] * parameter
            momentum = factors[i] * load(momenta[i], at, inside) + gradient
            tl.store(momenta[i] + at, momentum.to(momenta[i].dtype.element_ty), inside)
            parameter -= tl.load(rates + COLUMNS[i]) * (gradient + factors[i] * momentum)
            tl.store(parameters[i] + at, parameter.to(parameters[i].dtype.element_ty), inside)


def sizes_of(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """How many numbers each tensor has."""
    return tuple(tensor.numel() for tensor in tensors)


def starts_of(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """The first program of each tensor, and their number at the end."""
    return tuple(accumulate((triton.cdiv(size, BLOCK) for size in sizes_of(tensors)), initial=0))


def matrix_constants(tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...] | int]:
    """What kernels over filters need to know of them."""
    starts = starts_of(tensors)
    return {
        "HEIGHTS": tuple(len(tensor) for tensor in tensors),
        "WIDTHS": tuple(tensor.numel() // len(tensor) for tensor in tensors),
        "STARTS": starts,
        "MOST_SUMS": triton.next_power_of_2(max(after - before for before, after in pairwise(starts))),
    }


def launch_momentum(
    gradients: list[Tensor], momenta: list[Tensor], parameters: list[Tensor], momentum: float
) -> Tensor:
    """The launch of `triton_muon_momentum`."""
    sums, starts = momentum_shapes(gradients, momenta, parameters, momentum), starts_of(momenta)
    momentum_kernel[(starts[-1],)](
        tuple(gradients),
        tuple(momenta),
        tuple(parameters or momenta),
        sums,
        momentum,
        SIZES=sizes_of(momenta),
        STARTS=starts,
        NORMS=bool(parameters),
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return sums


def momentum_shapes(
    gradients: list[Tensor], momenta: list[Tensor], parameters: list[Tensor], momentum: float
) -> Tensor:
    """The output of `triton_muon_momentum`, not computed."""
    return momenta[0].new_empty(2 if parameters else 1, starts_of(momenta)[-1], dtype=torch.float32)


muon_momentum = define(
    "triton_muon_momentum(Tensor[] gradients, Tensor(a!)[] momenta, Tensor[] parameters, float momentum) -> Tensor",
    launch_momentum,
    momentum_shapes,
)
"""Take gradients into momenta, in place. Returns sums of squares in float32 (1 or 2, programs): of the Nesterov
directions, and where parameters are given of these; `muon_pack` and `muon_update` add up those of one filter."""


def launch_pack(
    gradients: list[Tensor],
    momenta: list[Tensor],
    sums: Tensor,
    momentum: float,
    smallest: float,
    rows: int,
    columns: int,
) -> Tensor:
    """The launch of `triton_muon_pack`."""
    packed = pack_shapes(gradients, momenta, sums, momentum, smallest, rows, columns)
    pack_kernel[(triton.cdiv(rows * columns, BLOCK), len(momenta))](
        tuple(gradients),
        tuple(momenta),
        sums,
        packed,
        momentum,
        smallest,
        **matrix_constants(momenta),
        ROWS=rows,
        COLUMNS=columns,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return packed


def pack_shapes(
    gradients: list[Tensor],
    momenta: list[Tensor],
    sums: Tensor,
    momentum: float,
    smallest: float,
    rows: int,
    columns: int,
) -> Tensor:
    """The output of `triton_muon_pack`, not computed."""
    return momenta[0].new_empty(len(momenta), rows, columns, dtype=torch.float16)


muon_pack = define(
    "triton_muon_pack(Tensor[] gradients, Tensor[] momenta, Tensor sums, float momentum, float smallest, int rows, "
    "int columns) -> Tensor",
    launch_pack,
    pack_shapes,
)
"""The Nesterov directions as float16 matrices (n, rows, columns), no more rows than columns, each divided by its
Frobenius norm plus `smallest` and padded by zeros; momenta and sums are those of `muon_momentum`."""


def launch_polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """The launch of `triton_gram_polynomial`."""
    result, side = torch.empty_like(gram), gram.size(-1)
    grid = (triton.cdiv(side, TILE) ** 2, len(gram))
    polynomial_kernel[grid](gram, result, a, b, c, SIDE=side, TILE=TILE, num_warps=4)
    return result


gram_polynomial = define(
    "triton_gram_polynomial(Tensor gram, float a, float b, float c) -> Tensor",
    launch_polynomial,
    lambda gram, a, b, c: torch.empty_like(gram),
)
"""a I + b A + c A A of contiguous matrices A (n, D, D) in half precision, rounded once."""


def launch_muon_update(
    parameters: list[Tensor], packed: Tensor, sums: Tensor, rate: Tensor, weight_decay: float, renormalize: bool
) -> None:
    """The launch of `triton_muon_update`."""
    muon_kernel[(starts_of(parameters)[-1],)](
        tuple(parameters),
        packed,
        sums,
        rate,
        weight_decay,
        **matrix_constants(parameters),
        ROWS=packed.size(1),
        COLUMNS=packed.size(2),
        RENORMALIZE=renormalize,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


muon_update = define(
    "triton_muon_update(Tensor(a!)[] parameters, Tensor packed, Tensor sums, Tensor rate, float weight_decay, "
    "bool renormalize) -> ()",
    launch_muon_update,
    lambda *arguments: None,
)
"""Move filters, in place: first scaled to the norm of unit rows where `renormalize` says so (by the sums of
`muon_momentum`), less `rate` (float32, one number on the device) times the packed update, less `rate` times
`weight_decay` times what there is then."""


def launch_sgd(
    gradients: list[Tensor],
    momenta: list[Tensor],
    parameters: list[Tensor],
    rates: Tensor,
    columns: list[int],
    momentum: list[float],
    weight_decay: list[float],
) -> None:
    """The launch of `triton_sgd`."""
    starts = starts_of(parameters)
    sgd_kernel[(starts[-1],)](
        tuple(gradients),
        tuple(momenta),
        tuple(parameters),
        rates,
        tuple(momentum),
        tuple(weight_decay),
        COLUMNS=tuple(columns),
        SIZES=sizes_of(parameters),
        STARTS=starts,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


sgd_update = define(
    "triton_sgd(Tensor[] gradients, Tensor(a!)[] momenta, Tensor(b!)[] parameters, Tensor rates, int[] columns, "
    "float[] momentum, float[] weight_decay) -> ()",
    launch_sgd,
    lambda *arguments: None,
)
"""SGD with Nesterov momentum and weight decay, in place, of parameters of any types; for each the column of its rate
in `rates` (float32, on the device), its momentum and its weight decay."""
