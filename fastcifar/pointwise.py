"""GELU and pooling on a CPU in one pass over the memory each: the operators, their gradients, and who uses them.

The kernels are in `pointwise.cpp`. GELU differs from PyTorch's by an absolute 1e-6 at most, pooling not at all.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar import native
from fastcifar.native import pointer

OPERATORS = torch.library.Library("fastcifar", "FRAGMENT")  # type: ignore[no-untyped-call]
LANES = 8  # channels come in multiples of it


def run(name: str, *tensors: Tensor, sizes: tuple[int, ...] = ()) -> None:
    """Call a kernel with the tensors' addresses, the sizes and the number of threads."""
    whole = [ctypes.c_int(size) for size in (*sizes, torch.get_num_threads())]
    count = [] if sizes else [ctypes.c_long(tensors[0].numel())]
    native.library("pointwise")[name](*map(pointer, tensors), *count, *whole)


def gelu(x: Tensor) -> Tensor:
    """x times the share of a normal distribution below x, in memory laid out alike."""
    y = torch.empty_like(x)
    run("gelu", x, y)
    return y


def gelu_backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x (N, C, H, W) from that of GELU's outputs."""
    dx = torch.empty_like(x)
    run("gelu_backward", x, grad.contiguous(memory_format=torch.channels_last), dx)
    return dx


def pool(x: Tensor) -> Tensor:
    """The maxima (N, C, H // 2, W // 2) of the 2x2 squares of x (N, C, H, W)."""
    n, c, h, w = x.shape
    y = torch.empty((n, c, h // 2, w // 2), memory_format=torch.channels_last)
    run("pool", x, y, sizes=(n, h, w, c))
    return y


def pool_backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x (N, C, H, W) from that of its maxima: the first of a square, by rows, gets it."""
    n, c, h, w = x.shape
    dx = torch.empty_like(x)
    run("pool_backward", x, grad.contiguous(memory_format=torch.channels_last), dx, sizes=(n, h, w, c))
    return dx


for schema, kernel in {
    "gelu(Tensor x) -> Tensor": gelu,
    "gelu_backward(Tensor x, Tensor grad) -> Tensor": gelu_backward,
    "pool(Tensor x) -> Tensor": pool,
    "pool_backward(Tensor x, Tensor grad) -> Tensor": pool_backward,
}.items():
    OPERATORS.define(schema)  # type: ignore[no-untyped-call]
    OPERATORS.impl(kernel.__name__, kernel, "CPU")  # type: ignore[no-untyped-call]


class Gelu(torch.autograd.Function):
    """The operator `gelu` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """See `gelu`."""
        ctx.save_for_backward(x)
        y: Tensor = torch.ops.fastcifar.gelu(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """See `gelu_backward`."""
        dx: Tensor = torch.ops.fastcifar.gelu_backward(*ctx.saved_tensors, grad)
        return dx


class Pool(torch.autograd.Function):
    """The operator `pool` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """See `pool`."""
        ctx.save_for_backward(x)
        y: Tensor = torch.ops.fastcifar.pool(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """See `pool_backward`."""
        dx: Tensor = torch.ops.fastcifar.pool_backward(*ctx.saved_tensors, grad)
        return dx


def suits(x: Tensor) -> bool:
    """Whether the kernels can do it: images in float32 and channels-last memory on a CPU, with whole vectors."""
    plain = x.dtype == torch.float32 and x.is_cpu and x.ndim == 4 and x.size(1) % LANES == 0
    return plain and x.is_contiguous(memory_format=torch.channels_last)


class FastGelu(nn.GELU):
    """GELU on these kernels where they can do it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        y: Tensor = Gelu.apply(x) if suits(x) else super().forward(x)
        return y


class FastMaxPool2d(nn.MaxPool2d):
    """2x2 maximum pooling on these kernels where they can do it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H // 2, W // 2)."""
        y: Tensor = Pool.apply(x) if suits(x) else super().forward(x)
        return y


PLAIN_POOL = (2, 2, 0, 1, False, False)


def install(network: nn.Module) -> None:
    """Have a network's GELU and 2x2 pooling use these kernels, in place.

    Raises MachineError where the kernels cannot be compiled.
    """
    native.library("pointwise")
    for module in network.modules():
        if type(module) is nn.GELU and module.approximate == "none":
            module.__class__ = FastGelu
        elif type(module) is nn.MaxPool2d:
            how = (module.kernel_size, module.stride, module.padding, module.dilation)
            if (*how, module.return_indices, module.ceil_mode) == PLAIN_POOL:
                module.__class__ = FastMaxPool2d
