"""The 3x3 convolution behind the whitening on CUDA: cuDNN's, on a number of channels that suits it, and the gradient of
its filters in Triton.

The whitening has 24 channels. On an H100 with 1,000 images of 31 x 31 pixels cuDNN takes 206 us for them and 104 us for
32, of which 8 are zeros: they add nothing to any sum. So the whitening writes a map of `padded_channels`, and here the
filters get as many zeros. Neither parameters nor counts of operations change.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from fastcifar.model.kernels.build import new
from fastcifar.model.kernels.triton_operators import define, sums_traffic

MULTIPLE = 32  # of channels that cuDNN is fast with
LENGTH = 256  # numbers of a filter at most, whose gradient is one tile of the tensor cores
VECTOR = 8  # channels of a 16-byte load in half precision
HALVES = (torch.float16, torch.bfloat16)
# Of an H100's 132 multiprocessors each has two programs, whose sums (64 filters x 256 numbers) are 64 registers of each
# of 256 threads. Chosen by measurement, as were two stages of loads.
PIXELS = 64
FILTERS = 64
WARPS = 8
STAGES = 2
PROGRAMS = 264
# The programs' sums are added up all at once: so many of them, for so many numbers.
SUMMED_PROGRAMS = 512
SUMMED = 16
BLOCK = 1024  # numbers of padded filters a program


def padded_channels(channels: int) -> int:
    """The number of channels that a map with so many is written with: a whole multiple, if that is a third more at
    most."""
    padded: int = triton.cdiv(channels, MULTIPLE) * MULTIPLE
    return padded if 3 * (padded - channels) <= channels else channels


@triton.jit
def pad_filters_kernel(
    weight, out, SIZE: tl.constexpr, INPUTS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows of INPUTS numbers to rows of CHANNELS, SIZE numbers in all, zeros behind the others."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, channel = at // CHANNELS, at % CHANNELS
    value = tl.load(weight + row * INPUTS + channel, (at < SIZE) & (channel < INPUTS), other=0.0)
    tl.store(out + at, value, at < SIZE)


@triton.jit(do_not_specialize=["total", "per"])
def filter_parts_kernel(
    x,
    grad,
    parts,
    total,
    per,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PIXELS: tl.constexpr,
    FILTERS: tl.constexpr,
    LENGTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Of some filters the gradient over each program's share of `total` pixels, parts (programs, OUTPUTS, 9 INPUTS):
    the product of the outputs' gradient, transposed, with what the filters see at each pixel."""
    n = tl.program_id(1) * FILTERS + tl.arange(0, FILTERS)
    entry = tl.arange(0, LENGTH)  # of a filter, whose channels lie together
    place = entry // INPUTS
    down, right = place // 3 - 1, place % 3 - 1
    offset = (down * WIDTH + right) * CHANNELS + entry % INPUTS
    sums = tl.zeros((FILTERS, LENGTH), tl.float32)
    for tile in tl.range(0, per, num_stages=STAGES):
        pixel = (tl.program_id(0) * per + tile) * PIXELS + tl.arange(0, PIXELS)
        inside = pixel < total
        line = pixel // WIDTH
        row = (line - line // HEIGHT * HEIGHT)[:, None] + down[None, :]
        column = (pixel - line * WIDTH)[:, None] + right[None, :]
        exists = inside[:, None] & (entry < 9 * INPUTS)[None, :]
        exists = exists & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
        seen = tl.load(x + (pixel * CHANNELS)[:, None] + offset[None, :], exists, other=0.0)
        wanted = inside[:, None] & (n < OUTPUTS)[None, :]
        above = tl.load(grad + pixel[:, None] * OUTPUTS + n[None, :], wanted, other=0.0)
        sums = tl.dot(tl.trans(above), seen, sums)
    at = (tl.program_id(0) * OUTPUTS + n)[:, None] * (9 * INPUTS) + entry[None, :]
    tl.store(parts + at, sums, (n < OUTPUTS)[:, None] & (entry < 9 * INPUTS)[None, :])


@triton.jit(do_not_specialize=["programs"])
def filter_sum_kernel(parts, out, programs, SIZE: tl.constexpr, PROGRAMS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sums of all programs, parts (programs, SIZE), for some numbers of the filters, in an order that never
    changes."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    program = tl.arange(0, PROGRAMS)[:, None]
    values = tl.load(parts + program * SIZE + at, (program < programs) & (at < SIZE), other=0.0)
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(out + at, tl.sum(values, 0).to(out.dtype.element_ty), at < SIZE)


def pad_filters_outputs(weight: Tensor, channels: int) -> Tensor:
    """Memory for what `pad_filters` gives."""
    return new(weight, (len(weight), channels, *weight.shape[2:]), weight.dtype)


def pad_filters(weight: Tensor, channels: int) -> Tensor:
    """Filters (D, C, 3, 3), channels last, with zeros behind their channels: (D, channels, 3, 3)."""
    out = pad_filters_outputs(weight, channels)
    grid = (triton.cdiv(out.numel(), BLOCK),)
    sizes = {"SIZE": out.numel(), "INPUTS": weight.size(1), "CHANNELS": channels}
    pad_filters_kernel[grid](weight, out, **sizes, BLOCK=BLOCK, num_warps=4)
    return out


def convolve_outputs(x: Tensor, weight: Tensor, inputs: int, transposed: bool) -> Tensor:
    """Memory for what `convolve` gives."""
    return new(x, (len(x), weight.size(1) if transposed else len(weight), *x.shape[2:]), x.dtype)


def convolve(x: Tensor, weight: Tensor, inputs: int, transposed: bool) -> Tensor:
    """PyTorch's convolution of x (N, C, H, W) with filters (D, C, 3, 3) and padding 1, or the transposed one of
    (N, D, H, W), which gives the gradient of x; `inputs` of the C channels are not zeros by construction."""
    one = [1, 1]
    y: Tensor = torch.ops.aten.convolution(x, weight, None, one, one, one, transposed, [0, 0], 1)
    return y.contiguous(memory_format=torch.channels_last)


def operations(pixels: int, outputs: int, inputs: int) -> int:
    """Floating-point operations of a 3x3 convolution, or of one of its gradients (a multiply-add is two)."""
    return 2 * pixels * outputs * inputs * 9


def convolve_flops(arguments: tuple[Any, ...], out: Tensor) -> int:
    """Those of the recipe's convolution: what is done to the zeros does not count."""
    x, weight, inputs, _ = arguments
    return operations(len(x) * x.size(2) * x.size(3), len(weight), inputs)


def shares(x: Tensor) -> tuple[int, int]:
    """Programs that divide the pixels of x (N, C, H, W), and the tiles of each."""
    tiles = triton.cdiv(x.size(0) * x.size(2) * x.size(3), PIXELS)
    per = triton.cdiv(tiles, PROGRAMS)
    return triton.cdiv(tiles, per), per


def filter_parts_outputs(x: Tensor, grad: Tensor, inputs: int) -> Tensor:
    """Memory for what `filter_parts` gives."""
    return x.new_empty((shares(x)[0], grad.size(1), 9 * inputs), dtype=torch.float32)


def filter_parts(x: Tensor, grad: Tensor, inputs: int) -> Tensor:
    """What each program's pixels add to the gradient of filters (D, inputs, 3, 3), channels last, from x (N, C, H, W),
    of which the first `inputs` channels count, and the outputs' gradient (N, D, H, W): float32 (programs, D,
    9 inputs)."""
    parts = filter_parts_outputs(x, grad, inputs)
    programs, per = shares(x)
    filter_parts_kernel[(programs, triton.cdiv(grad.size(1), FILTERS))](
        x,
        grad,
        parts,
        x.size(0) * x.size(2) * x.size(3),
        per,
        HEIGHT=x.size(2),
        WIDTH=x.size(3),
        INPUTS=inputs,
        CHANNELS=x.size(1),
        OUTPUTS=grad.size(1),
        PIXELS=PIXELS,
        FILTERS=FILTERS,
        LENGTH=LENGTH,
        STAGES=STAGES,
        num_warps=WARPS,
    )
    return parts


def filter_parts_flops(arguments: tuple[Any, ...], out: Tensor) -> int:
    """Those of the gradient of the recipe's filters."""
    x, grad, inputs = arguments
    return operations(len(x) * x.size(2) * x.size(3), grad.size(1), inputs)


def filter_sum_outputs(parts: Tensor, weight: Tensor) -> Tensor:
    """Memory for what `filter_sum` gives."""
    return new(weight, tuple(weight.shape), weight.dtype)


def filter_sum(parts: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the filters, in their type and channels-last memory, from what `filter_parts` gave."""
    out = filter_sum_outputs(parts, weight)
    grid = (triton.cdiv(out.numel(), SUMMED),)
    sizes = {"SIZE": out.numel(), "PROGRAMS": SUMMED_PROGRAMS, "COLUMNS": SUMMED}
    filter_sum_kernel[grid](parts, out, len(parts), **sizes, num_warps=WARPS)
    return out


PAD_FILTERS = define(
    "triton_pad_filters(Tensor weight, int channels) -> Tensor",
    pad_filters,
    pad_filters_outputs,
)
CONVOLVE = define(
    "triton_padded_convolution(Tensor x, Tensor weight, int inputs, bool transposed) -> Tensor",
    convolve,
    convolve_outputs,
    flops=convolve_flops,
)
FILTER_PARTS = define(
    "triton_convolution_filter_parts(Tensor x, Tensor grad, int inputs) -> Tensor",
    filter_parts,
    filter_parts_outputs,
    flops=filter_parts_flops,
)
FILTER_SUM = define(
    "triton_convolution_filter_sum(Tensor parts, Tensor weight) -> Tensor",
    filter_sum,
    filter_sum_outputs,
    sums_traffic,
)


def suits_filters(x: Tensor, inputs: int) -> bool:
    """Whether the gradient of filters for so many channels of x is made by our kernels: in half precision, with whole
    vectors of channels, a filter in one tile, and at least a tile of pixels for each program."""
    narrow = inputs % VECTOR == 0 and 9 * inputs <= LENGTH
    large = x.size(0) * x.size(2) * x.size(3) >= PROGRAMS * PIXELS
    return x.dtype in HALVES and narrow and large


class Convolution(torch.autograd.Function):
    """The convolution of a padded map, with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x (N, padded channels, H, W) with filters (D, C, 3, 3): (N, D, H, W)."""
        wide = PAD_FILTERS(weight.contiguous(memory_format=torch.channels_last), x.size(1))
        ctx.save_for_backward(x, weight, wide)
        y: Tensor = CONVOLVE(x, wide, weight.size(1), False)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of x, all its channels, and of the filters, where they are wanted."""
        x, weight, wide = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx = CONVOLVE(grad, wide, weight.size(1), True) if ctx.needs_input_grad[0] else None
        dw = filter_gradient(x, weight, wide, grad) if ctx.needs_input_grad[1] else None
        return dx, dw


def filter_gradient(x: Tensor, weight: Tensor, wide: Tensor, grad: Tensor) -> Tensor:
    """The gradient of filters (D, C, 3, 3), by our kernels or by PyTorch's, which makes that of `wide` ones too."""
    dw: Tensor
    if suits_filters(x, weight.size(1)):
        dw = FILTER_SUM(FILTER_PARTS(x, grad, weight.size(1)), weight)
        return dw
    one, mask = [1, 1], [False, True, False]
    _, dw, _ = torch.ops.aten.convolution_backward(grad, x, wide, None, one, one, one, False, [0, 0], 1, mask)
    return dw[:, : weight.size(1)].contiguous(memory_format=torch.channels_last)


class PaddedConv2d(nn.Conv2d):
    """A 3x3 convolution that also takes maps with channels of zeros behind its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), or with more channels in channels-last memory, to (N, D, H, W)."""
        if x.size(1) == self.in_channels:
            return super().forward(x)
        y: Tensor = Convolution.apply(x, self.weight)
        return y
