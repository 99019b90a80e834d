"""What stands between convolutions on a GPU, on Triton kernels: pooling with batch normalisation and activation,
normalisation with activation, activations alone, global pooling; their gradients, and who uses them.

No gradient keeps more than the map that was normalised (after pooling), a byte for each maximum, and a few numbers for
each channel: what lies between is made again in the backward pass, which is cheaper than to read it. Nothing here waits
for the device, and no size depends on data: a CUDA graph can hold all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.model.kernels import triton_norm as norm_operators
from fastcifar.model.kernels import triton_pointwise as pointwise
from fastcifar.model.kernels.build import Fused
from fastcifar.model.kernels.convolution import is_plain_pool
from fastcifar.model.kernels.triton_activations import DEFINITIONS, kind_of
from fastcifar.model.kernels.triton_operators import DTYPES, MOST_NUMBERS, supported
from fastcifar.model.network import BatchNorm, ConvGroup, GlobalMax, GlobalMaxMean, Projection


def suits(x: Tensor) -> bool:
    """Whether the kernels can do it: some images, floating point, channels-last memory, where Triton runs."""
    plain = supported(x) and x.ndim == 4 and x.dtype in DTYPES and x.size(1) <= pointwise.MOST_CHANNELS
    return plain and 0 < x.numel() <= MOST_NUMBERS and x.is_contiguous(memory_format=torch.channels_last)


def channels_last(grad: Tensor) -> Tensor:
    """A gradient (N, C, H, W) in channels-last memory."""
    return grad.contiguous(memory_format=torch.channels_last)


class Activation(torch.autograd.Function):
    """An activation with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        """The activation of x (N, C, H, W)."""
        ctx.save_for_backward(x)
        ctx.kind = kind
        y: Tensor = pointwise.ACTIVATION(x, kind)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        return pointwise.ACTIVATION_BACKWARD(*ctx.saved_tensors, channels_last(grad), ctx.kind), None


class Maximum(torch.autograd.Function):
    """The maximum over all pixels, plus their mean where `mean`, with its gradient. That of the maximum goes to the
    first of equal ones (as in pooling; that of `torch.amax` is shared by them)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: bool) -> Tensor:
        """x (N, C, H, W) to (N, C)."""
        y: Tensor
        y, chosen = pointwise.GLOBAL_MAX(x, mean)
        ctx.save_for_backward(chosen)
        ctx.mean, ctx.size = mean, x.shape[2:]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        return pointwise.GLOBAL_MAX_BACKWARD(grad.contiguous(), *ctx.saved_tensors, ctx.mean, *ctx.size), None


class Normalization(torch.autograd.Function):
    """Batch normalisation by the batch's own statistics with the activation behind it, and with 2x2 maximum pooling in
    front of it where `norm.pooled`; and its gradient. The running statistics of `norm` are updated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, norm: NormAct) -> Tensor:
        """x (N, C, H, W) to the same, or to (N, C, H // 2, W // 2)."""
        ctx.norm, ctx.size, chosen = norm, x.shape[2:], None
        if norm.pooled:
            part = norm_operators.pooled_split(x)
            x, chosen, parts = norm_operators.POOL_STATISTICS(x)
        else:
            part = norm_operators.plain_split(x)
            parts = norm_operators.STATISTICS(x)
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        pixels = norm_operators.pixels_of(x)
        factors = norm_operators.UPDATE_STATISTICS(parts, *running, norm.momentum, pixels, part.per * part.rows)
        ctx.save_for_backward(x, chosen, *factors, bias)
        y: Tensor = norm_operators.NORMALIZE(x, *factors, bias, norm.eps, norm.kind)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of x and of the bias, which autograd drops where the bias is frozen."""
        x, chosen, *factors = ctx.saved_tensors
        eps, kind = ctx.norm.eps, ctx.norm.kind
        grad = channels_last(grad)
        parts = norm_operators.GRADIENT_SUMS(x, grad, *factors, eps, kind)
        dbias, means = norm_operators.BIAS_GRADIENT(parts, factors[-1], norm_operators.pixels_of(x))
        if chosen is None:
            dx = norm_operators.NORMALIZE_BACKWARD(x, grad, *factors, means, eps, kind)
        else:
            dx = norm_operators.POOL_NORMALIZE_BACKWARD(x, chosen, grad, *factors, means, eps, kind, *ctx.size)
        return dx, dbias, None


class NormAct(BatchNorm):
    """Batch normalisation that does the activation behind it too, and 2x2 maximum pooling in front of it where
    `pooled`, on these kernels where they can do it."""

    kind: str  # of the activation
    pooled: bool

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same, or to (N, C, H // 2, W // 2)."""
        if not self.suits(x):
            return DEFINITIONS[self.kind](super().forward(F.max_pool2d(x, 2) if self.pooled else x))
        y: Tensor
        if self.training:
            y = Normalization.apply(x, self.bias, self)
        else:
            operator = norm_operators.POOL_NORMALIZE if self.pooled else norm_operators.NORMALIZE
            y = operator(x, self.running_mean, self.running_var, self.bias, self.eps, self.kind)
        return y

    def suits(self, x: Tensor) -> bool:
        """Whether the kernels can do it: a single pixel has no statistics, and fixed ones have no gradient here."""
        if not suits(x):
            return False
        if not self.training:
            differentiable = torch.is_grad_enabled() and (x.requires_grad or self.bias.requires_grad)
            return not differentiable and (not self.pooled or min(x.shape[2:]) > 1)
        factor = 2 if self.pooled else 1
        return x.size(0) * (x.size(2) // factor) * (x.size(3) // factor) > 1


class FastActivation(nn.Module):
    """An activation on these kernels where they can do it."""

    kind: str

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same; PyTorch's own for anything else."""
        y: Tensor = Activation.apply(x, self.kind) if suits(x) else DEFINITIONS[self.kind](x)
        return y


def few_pixels(x: Tensor) -> bool:
    """Whether the kernels can pool all pixels of these maps."""
    return suits(x) and x.size(2) * x.size(3) <= pointwise.MOST_PIXELS


class FastGlobalMax(GlobalMax):
    """The maximum over all pixels on these kernels where they can do it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        y: Tensor = Maximum.apply(x, False) if few_pixels(x) else super().forward(x)
        return y


class FastGlobalMaxMean(GlobalMaxMean):
    """The maximum over all pixels plus their mean on these kernels where they can do it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        y: Tensor = Maximum.apply(x, True) if few_pixels(x) else super().forward(x)
        return y


def install(network: nn.Module) -> None:
    """Have a network's norms with what stands around them, its activations and its last pooling use these kernels, in
    place."""
    for group in [module for module in network.modules() if type(module) in (ConvGroup, Projection)]:
        assert isinstance(group, (ConvGroup, Projection))
        for norm, act in group.pairs():
            kind = kind_of(act)
            if kind is not None and is_plain_norm(norm):
                norm.__class__ = NormAct
                norm.kind, norm.pooled = kind, False  # type: ignore[assignment]
                act.__class__ = Fused
        if isinstance(group, ConvGroup) and type(group.norm1) is NormAct and is_plain_pool(group.pool):
            group.norm1.pooled = True
            group.pool.__class__ = Fused  # type: ignore[assignment]
    for module in network.modules():
        if (kind := kind_of(module)) is not None:
            module.__class__ = FastActivation
            module.kind = kind  # type: ignore[assignment]
        elif type(module) is GlobalMax:
            module.__class__ = FastGlobalMax
        elif type(module) is GlobalMaxMean:
            module.__class__ = FastGlobalMaxMean


def is_plain_norm(norm: nn.Module) -> bool:
    """Whether this is a BatchNorm of ours whose whole batch is normalised."""
    return type(norm) is BatchNorm and not norm.ghost
