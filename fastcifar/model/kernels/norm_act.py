"""What stands between convolutions on a CPU: batch normalisation with the activation behind it in one operator, and
activations alone; the operators, their gradients, and who uses them.

The kernels are in `norm_act.cpp`. Activations differ from PyTorch's by an absolute 1e-6 at most.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.model.kernels.build import MULTIPLE, Fused, library, pointer
from fastcifar.model.network import BatchNorm, ConvGroup, Projection

OPERATORS = torch.library.Library("fastcifar", "FRAGMENT")  # type: ignore[no-untyped-call]
# Activations by the numbers that the kernels know, and their definitions.
KINDS: dict[type[nn.Module], tuple[int, Callable[[Tensor], Tensor]]] = {nn.GELU: (0, F.gelu), nn.SiLU: (1, F.silu)}
SCHEMAS = (
    "activation(Tensor x, int kind) -> Tensor",
    "activation_backward(Tensor x, Tensor grad, int kind) -> Tensor",
    "statistics(Tensor x) -> (Tensor, Tensor)",
    "scale_shift(Tensor x, Tensor scale, Tensor shift, int kind) -> Tensor",
    "normalized_backward(Tensor x, Tensor scale, Tensor shift, Tensor bias, Tensor grad, int kind) -> (Tensor, Tensor)",
)


def call(
    name: str, tensors: tuple[Tensor, ...], pixels: int, channels: int | None = None, kind: int | None = None
) -> None:
    """Run a kernel on the tensors' numbers with all threads; raises MemoryError where memory does not suffice."""
    kernel = library("norm_act")[name]
    first = [] if kind is None else [ctypes.c_int(kind)]
    last = [ctypes.c_int(each) for each in (channels, torch.get_num_threads()) if each is not None]
    if kernel(*first, *map(pointer, tensors), ctypes.c_long(pixels), *last):
        raise MemoryError("out of memory in a normalisation")


def pixels_of(x: Tensor) -> tuple[int, int]:
    """The pixels of all images (N, C, H, W), and their channels."""
    return x.numel() // x.size(1), x.size(1)


def activation(x: Tensor, kind: int) -> Tensor:
    """The activation of each number, in memory laid out alike."""
    y = torch.empty_like(x)
    call("activation", (x, y), x.numel(), kind=kind)
    return y


def activation_backward(x: Tensor, grad: Tensor, kind: int) -> Tensor:
    """The gradient of x (N, C, H, W) from that of its activations."""
    dx = torch.empty_like(x)
    call("activation_backward", (x, grad.contiguous(memory_format=torch.channels_last), dx), x.numel(), kind=kind)
    return dx


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the (biased) variance of each channel of x (N, C, H, W): (C,) each."""
    mean, variance = x.new_empty(x.size(1)), x.new_empty(x.size(1))
    call("statistics", (x, mean, variance), *pixels_of(x))
    return mean, variance


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor, kind: int) -> Tensor:
    """The activation of x * scale + shift, for x (N, C, H, W) and factors (C,)."""
    y = torch.empty_like(x)
    call("scale_shift", (x, scale, shift, y), *pixels_of(x), kind=kind)
    return y


def normalized_backward(
    x: Tensor, scale: Tensor, shift: Tensor, bias: Tensor, grad: Tensor, kind: int
) -> tuple[Tensor, Tensor]:
    """The gradients of x (N, C, H, W) and of the bias (C,) from that of `scale_shift`, whose factors come from the
    statistics of x and from the bias."""
    dx, dbias = torch.empty_like(x), torch.empty_like(bias)
    grad = grad.contiguous(memory_format=torch.channels_last)
    call("normalized_backward", (x, scale, shift, bias, grad, dx, dbias), *pixels_of(x), kind=kind)
    return dx, dbias


for schema, operator in zip(
    SCHEMAS, (activation, activation_backward, statistics, scale_shift, normalized_backward), strict=True
):
    OPERATORS.define(schema)  # type: ignore[no-untyped-call]
    OPERATORS.impl(operator.__name__, operator, "CPU")  # type: ignore[no-untyped-call]


class Activation(torch.autograd.Function):
    """The operator `activation` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int) -> Tensor:
        """See `activation`."""
        ctx.save_for_backward(x)
        ctx.kind = kind
        y: Tensor = torch.ops.fastcifar.activation(x, kind)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """See `activation_backward`."""
        return torch.ops.fastcifar.activation_backward(*ctx.saved_tensors, grad, ctx.kind), None


class Normalization(torch.autograd.Function):
    """Batch normalisation by the batch's own statistics with the activation behind it, and its gradient.

    Of what lies between the two nothing is kept: the backward pass makes it again, which is cheaper than to read it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, eps: float, kind: int) -> tuple[Tensor, Tensor, Tensor]:
        """The activations of x (N, C, H, W), normalised and shifted by the bias; the mean and the variance (C,)."""
        mean, variance = torch.ops.fastcifar.statistics(x)
        scale = torch.rsqrt(variance + eps)
        shift = bias - mean * scale
        y: Tensor = torch.ops.fastcifar.scale_shift(x, scale, shift, kind)
        ctx.save_for_backward(x, scale, shift, bias)
        ctx.kind = kind
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """See `normalized_backward`."""
        dx, dbias = torch.ops.fastcifar.normalized_backward(*ctx.saved_tensors, grad, ctx.kind)
        return dx, dbias, None, None


def suits(x: Tensor) -> bool:
    """Whether the kernels can do it: images in float32 and channels-last memory on a CPU, with whole vectors."""
    plain = x.dtype == torch.float32 and x.is_cpu and x.ndim == 4 and x.size(1) % MULTIPLE == 0
    return plain and x.is_contiguous(memory_format=torch.channels_last)


class FastGelu(nn.GELU):
    """GELU on these kernels where they can do it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        y: Tensor = Activation.apply(x, KINDS[nn.GELU][0]) if suits(x) else super().forward(x)
        return y


class NormAct(BatchNorm):
    """Batch normalisation that does the activation behind it too, on these kernels where they can do it."""

    act: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        kind, definition = KINDS[self.act]
        pixels = x.numel() // x.size(1)
        # Fixed statistics have no gradient here, and a single pixel has no statistics.
        differentiable = torch.is_grad_enabled() and (x.requires_grad or self.bias.requires_grad)
        possible = pixels > 1 if self.training else not differentiable
        if not (possible and suits(x) and self.bias.dtype == torch.float32):
            return definition(super().forward(x))
        y: Tensor
        if not self.training:
            scale = torch.rsqrt(self.running_var + self.eps)
            y = torch.ops.fastcifar.scale_shift(x, scale, self.bias - self.running_mean * scale, kind)
            return y
        y, mean, variance = Normalization.apply(x, self.bias, self.eps, kind)
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * (pixels / (pixels - 1)), self.momentum or 0.0)
        return y


def install(network: nn.Module) -> None:
    """Have a network's activations, and the norms in front of them, use these kernels, in place."""
    for group in [module for module in network.modules() if type(module) in (ConvGroup, Projection)]:
        assert isinstance(group, (ConvGroup, Projection))
        for norm, act in group.pairs():
            if type(norm) is BatchNorm and not norm.ghost and is_supported(act):
                norm.__class__ = NormAct
                norm.act = type(act)  # type: ignore[assignment]
                act.__class__ = Fused
    for module in network.modules():
        if type(module) is nn.GELU and is_supported(module):
            module.__class__ = FastGelu


def is_supported(act: nn.Module) -> bool:
    """Whether this is an activation that the kernels know, by its definition."""
    return type(act) in KINDS and getattr(act, "approximate", "none") == "none"
