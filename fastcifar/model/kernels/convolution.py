"""3x3 convolutions on a CPU with a quarter of the multiplications, alone or with the 2x2 maximum pooling behind them:
the operators, their gradients, and who uses them.

The method is Winograd's F(m, 3) with tiles of 4, 3 and 2 outputs a side (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016); the kernels are in `convolution.cpp`. Results differ from the definition's by a
relative 1e-6 to 1e-5, gradients of filters by up to 5e-5. On a map of at most 2x2 pixels every output sees every pixel:
there the convolution is a matrix product, with no more multiplications than Winograd's and no transforms. Kernels of
other sizes stay PyTorch's: a matrix product is no faster than its 1x1 convolution.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.model.kernels.build import MULTIPLE, Fused, library, new, pointer
from fastcifar.model.network import ConvGroup

OPERATORS = torch.library.Library("fastcifar", "FRAGMENT")  # type: ignore[no-untyped-call]
SCHEMAS = (
    "convolve(Tensor x, Tensor weight) -> Tensor",
    "convolve_pool(Tensor x, Tensor weight) -> (Tensor, Tensor)",
    "convolve_backward(Tensor x, Tensor weight, Tensor grad, Tensor? chosen, bool[2] wanted) -> (Tensor, Tensor)",
)


def sizes(x: Tensor, outputs: int) -> list[ctypes.c_int]:
    """The sizes that the kernels take: images, height, width, channels in and out, threads."""
    images, inputs, height, width = x.shape
    return [ctypes.c_int(each) for each in (images, height, width, inputs, outputs, torch.get_num_threads())]


def check(code: int) -> None:
    """Raise MemoryError where a kernel says that memory did not suffice."""
    if code:
        raise MemoryError("out of memory in a convolution")


def run(x: Tensor, weight: Tensor, y: Tensor, chosen: Tensor | None) -> None:
    """Fill y, and `chosen` where there is one, from x and the filters."""
    x = x.contiguous(memory_format=torch.channels_last)
    filters = weight.permute(2, 3, 1, 0).contiguous()
    kernel = library("convolution").convolve
    check(kernel(pointer(x), pointer(filters), pointer(y), pointer(chosen), *sizes(x, len(weight))))


def is_tiny(x: Tensor) -> bool:
    """Whether every output of a convolution of x (N, C, H, W) sees every pixel."""
    return max(x.shape[2:]) <= 2


def views(taps: Tensor, height: int, width: int) -> list[Tensor]:
    """Of taps (3, 3, ...) those by which each output of a tiny map, row by row, sees its pixels: (H, W, ...) each."""
    outputs = [(row, column) for row in range(height) for column in range(width)]
    return [taps[1 - row : 1 - row + height, 1 - column : 1 - column + width] for row, column in outputs]


def as_matrix(weight: Tensor, height: int, width: int) -> Tensor:
    """Filters (D, C, 3, 3) as the matrix from all pixels of a tiny map to all outputs: (H W C, H W D)."""
    seen = torch.stack(views(weight.permute(2, 3, 1, 0), height, width), dim=3)
    return seen.reshape(height * width * weight.size(1), -1)


def as_rows(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) in channels-last memory as rows (N, H W C)."""
    return x.permute(0, 2, 3, 1).flatten(1)


def as_maps(rows: Tensor, like: Tensor, channels: int) -> Tensor:
    """Rows (N, H W C) as maps (N, C, H, W) in channels-last memory, of the size of `like`."""
    return rows.view(len(rows), *like.shape[2:], channels).permute(0, 3, 1, 2)


def convolve_tiny(x: Tensor, weight: Tensor) -> Tensor:
    """See `convolve`; x is tiny."""
    return as_maps(as_rows(x) @ as_matrix(weight, *x.shape[2:]), x, len(weight))


def convolve_tiny_backward(x: Tensor, weight: Tensor, grad: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    """See `convolve_backward`; x is tiny."""
    size, inputs, outputs = x.shape[2:], x.size(1), len(weight)
    dx = dw = x.new_empty(0)
    if wanted[0]:
        dx = as_maps(as_rows(grad) @ as_matrix(weight, *size).T, x, inputs)
    if wanted[1]:
        parts = (as_rows(x).T @ as_rows(grad)).view(*size, inputs, size.numel(), outputs).unbind(3)
        dw = torch.zeros_like(weight, memory_format=torch.channels_last)
        for taps, part in zip(views(dw.permute(2, 3, 1, 0), *size), parts, strict=True):
            taps += part
    return dx, dw


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, C, H, W) with filters (D, C, 3, 3) and padding 1: (N, D, H, W), float32 in channels-last memory."""
    if is_tiny(x):
        return convolve_tiny(x.contiguous(memory_format=torch.channels_last), weight)
    y = new(x, (len(x), len(weight), *x.shape[2:]))
    run(x, weight, y, None)
    return y


def convolve_pool(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima of the 2x2 squares of `convolve`, (N, D, H // 2, W // 2), and which of the four each is, uint8."""
    shape = (len(x), len(weight), x.size(2) // 2, x.size(3) // 2)
    y, chosen = new(x, shape), new(x, shape, torch.uint8)
    run(x, weight, y, chosen)
    return y, chosen


def convolve_backward(
    x: Tensor, weight: Tensor, grad: Tensor, chosen: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the filters, where wanted (else empty), from that of the outputs, or of the maxima."""
    x, grad = (each.contiguous(memory_format=torch.channels_last) for each in (x, grad))
    if chosen is None and is_tiny(x):
        return convolve_tiny_backward(x, weight, grad, wanted)
    filters = weight.permute(2, 3, 0, 1).contiguous()
    dx = torch.empty_like(x) if wanted[0] else None
    df = x.new_empty((3, 3, x.size(1), len(weight))) if wanted[1] else None
    kernel = library("convolution").convolve_backward
    tensors = (x, filters, grad, chosen, dx, df)
    check(kernel(*map(pointer, tensors), *sizes(x, len(weight))))
    none = x.new_empty(0)
    # The memory of the gradient is laid out like that of the filters, which is what the optimizer expects.
    dw = none if df is None else df.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    return none if dx is None else dx, dw


for schema, kernel in zip(SCHEMAS, (convolve, convolve_pool, convolve_backward), strict=True):
    OPERATORS.define(schema)  # type: ignore[no-untyped-call]
    OPERATORS.impl(kernel.__name__, kernel, "CPU")  # type: ignore[no-untyped-call]


class Convolution(torch.autograd.Function):
    """The operator `convolve`, or `convolve_pool`, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pooled: bool) -> Tensor:
        """See `convolve` and `convolve_pool`."""
        y: Tensor
        if pooled:
            y, chosen = torch.ops.fastcifar.convolve_pool(x, weight)
        else:
            y, chosen = torch.ops.fastcifar.convolve(x, weight), None
        ctx.save_for_backward(x, weight, chosen)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """See `convolve_backward`."""
        x, weight, chosen = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:2])
        dx, dw = torch.ops.fastcifar.convolve_backward(x, weight, grad, chosen, wanted)
        return dx if wanted[0] else None, dw if wanted[1] else None, None


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution with padding 1 that runs on these kernels where it can: in float32 on a CPU.

    With `pooled` it also does the 2x2 maximum pooling of the layer behind it.
    """

    pooled = False

    def supports(self, x: Tensor) -> bool:
        """Whether the kernels can do it: some images in float32 on a CPU, with something to pool."""
        plain = x.dtype == self.weight.dtype == torch.float32 and x.is_cpu and x.ndim == 4 and x.numel() > 0
        return plain and x.size(1) == self.in_channels and (not self.pooled or min(x.shape[2:]) > 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H, W), or what pooling makes of it."""
        if not self.supports(x):
            plain = super().forward(x)
            return F.max_pool2d(plain, 2) if self.pooled else plain
        y: Tensor = Convolution.apply(x, self.weight, self.pooled)
        return y


def install(network: nn.Module) -> None:
    """Have the 3x3 convolutions of a network, and the pooling behind them, use these kernels, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d and is_supported(module):
            module.__class__ = WinogradConv2d
    for module in network.modules():
        if type(module) is ConvGroup and isinstance(module.conv1, WinogradConv2d) and is_plain_pool(module.pool):
            module.conv1.pooled = True
            module.pool.__class__ = Fused  # type: ignore[assignment]


def is_plain_pool(layer: nn.Module) -> bool:
    """Whether this is the maximum of 2x2 squares and nothing else."""
    if type(layer) is not nn.MaxPool2d:
        return False
    how = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.return_indices, layer.ceil_mode)
    return how == (2, 2, 0, 1, False, False)


def is_supported(layer: nn.Conv2d) -> bool:
    """Whether the kernels know a convolution: 3x3 with padding 1, on whole vectors of channels."""
    return is_same_3x3(layer) and layer.in_channels % MULTIPLE == layer.out_channels % MULTIPLE == 0


def is_same_3x3(layer: nn.Conv2d) -> bool:
    """Whether a convolution is 3x3 with padding 1 and nothing else."""
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.bias is None
    padded = layer.padding in ("same", (1, 1)) and layer.padding_mode == "zeros"
    return plain and padded and layer.kernel_size == (3, 3)


def flops(x: Tensor, weight: Tensor, out_val: Any = None) -> int:
    """The operations that the definition of the convolution asks for (a multiply-add is two), whatever is run."""
    return 2 * x.size(0) * x.size(2) * x.size(3) * weight.numel()


def backward_flops(
    x: Tensor, weight: Tensor, grad: Tensor, chosen: Tensor | None, wanted: list[bool], out_val: Any = None
) -> int:
    """The same for the gradients that are wanted."""
    return flops(x, weight) * sum(wanted)
