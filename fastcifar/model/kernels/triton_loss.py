"""The loss of a batch and its metrics on CUDA: two small kernels forward, one backward.

Sums are taken in the same order each time: one number a block, then one program over all blocks.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.model.kernels.triton_operators import DTYPES, define, supported

MOST_CLASSES = 1024
# 2,000 x 10 logits are 40 KB: latency counts, not bandwidth. Tiles of 1,024 numbers (64 rows of 10 classes) are 8 a
# thread, and 32 programs for 2,000 images.
TILE = 1024
WARPS = 4


@triton.jit
def row_tile(logits, images, CLASSES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The program's rows, whether they exist, the columns, and the logits (ROWS, COLUMNS) in float32 from which each
    row's largest is subtracted; -inf behind the last class."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < images
    column = tl.arange(0, COLUMNS)
    exists = inside[:, None] & (column < CLASSES)[None, :]
    x = tl.load(logits + row[:, None] * CLASSES + column[None, :], exists, other=float("-inf")).to(tl.float32)
    return row, inside, column, x - tl.max(x, 1)[:, None]


@triton.jit(do_not_specialize=["images"])
def loss_kernel(
    logits,
    labels,
    weights,
    partial,
    images,
    smoothing,
    CLASSES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of ROWS images the sum of losses and the number of correct predictions, into partial (2, programs)."""
    row, inside, column, x = row_tile(logits, images, CLASSES, COLUMNS, ROWS)
    label = tl.load(labels + row, inside, other=0)
    target = tl.sum(tl.where(column[None, :] == label[:, None], x, 0.0), 1)
    loss = tl.log(tl.sum(tl.exp(x), 1)) - target
    if smoothing > 0:
        loss += smoothing * (target - tl.sum(tl.where((column < CLASSES)[None, :], x, 0.0), 1) / CLASSES)
    if weights is not None:
        loss *= tl.load(weights + row, inside, other=0.0)
    predicted = tl.min(tl.where(x == 0, column[None, :], COLUMNS), 1)  # the first of the largest
    correct = inside & (predicted == label)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0)))
    tl.store(partial + tl.num_programs(0) + tl.program_id(0), tl.sum(correct.to(tl.float32)))


@triton.jit(do_not_specialize=["blocks", "images"])
def metrics_kernel(partial, loss, metrics, blocks, images, BLOCK: tl.constexpr):
    """Sum up partial (2, blocks): the loss, and what the metrics increase by; one program."""
    losses, correct = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        losses += tl.load(partial + block, block < blocks, other=0.0)
        correct += tl.load(partial + blocks + block, block < blocks, other=0.0)
    total = tl.sum(losses)
    tl.store(loss, total)
    tl.store(metrics, tl.load(metrics) + total)
    tl.store(metrics + 1, tl.load(metrics + 1) + tl.sum(correct))
    tl.store(metrics + 2, tl.load(metrics + 2) + images)


@triton.jit(do_not_specialize=["images"])
def loss_backward_kernel(
    logits,
    labels,
    weights,
    grad,
    out,
    images,
    smoothing,
    CLASSES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gradient of ROWS images' logits from that of the loss, a scalar: softmax less the smoothed label."""
    row, inside, column, x = row_tile(logits, images, CLASSES, COLUMNS, ROWS)
    label = tl.load(labels + row, inside, other=0)
    exponential = tl.exp(x)
    softmax = exponential / tl.sum(exponential, 1)[:, None]
    smoothed = tl.where(column[None, :] == label[:, None], 1 - smoothing, 0.0) + smoothing / CLASSES
    factor = tl.load(grad)
    if weights is not None:
        factor = factor * tl.load(weights + row, inside, other=0.0)[:, None]
    exists = inside[:, None] & (column < CLASSES)[None, :]
    result = ((softmax - smoothed) * factor).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * CLASSES + column[None, :], result, exists)


def tiling(logits: Tensor) -> tuple[int, dict[str, int]]:
    """How many programs share the rows of logits (B, classes), and their tiles."""
    images, classes = logits.shape
    columns = triton.next_power_of_2(classes)
    rows = max(1, TILE // columns)
    return triton.cdiv(images, rows), {"CLASSES": classes, "COLUMNS": columns, "ROWS": rows}


def launch_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """The sums of losses and the correct predictions of the blocks of a batch: float32 (2, blocks)."""
    partial = loss_shapes(logits)
    blocks, tile = tiling(logits)
    loss_kernel[(blocks,)](logits, labels, weights, partial, len(logits), smoothing, **tile, num_warps=WARPS)
    return partial


def loss_shapes(logits: Tensor, *_: Any) -> Tensor:
    """What `launch_loss` gives, not computed."""
    return logits.new_empty((2, tiling(logits)[0]), dtype=torch.float32)


def launch_metrics(partial: Tensor, metrics: Tensor, images: int) -> Tensor:
    """The loss of a batch of images, a float32 scalar, from what `launch_loss` gave; the metrics are increased."""
    loss = metrics_shapes(partial)
    metrics_kernel[(1,)](partial, loss, metrics, partial.size(1), images, BLOCK=TILE, num_warps=WARPS)
    return loss


def metrics_shapes(partial: Tensor, *_: Any) -> Tensor:
    """What `launch_metrics` gives, not computed."""
    return partial.new_empty(())


def launch_backward(logits: Tensor, labels: Tensor, weights: Tensor | None, grad: Tensor, smoothing: float) -> Tensor:
    """The gradient of the logits (B, classes), of their type, from that of the summed loss, a scalar."""
    out = backward_shapes(logits)
    blocks, tile = tiling(logits)
    tensors = (logits, labels, weights, grad, out)
    loss_backward_kernel[(blocks,)](*tensors, len(logits), smoothing, **tile, num_warps=WARPS)
    return out


def backward_shapes(logits: Tensor, *_: Any) -> Tensor:
    """What `launch_backward` gives, not computed."""
    return torch.empty_like(logits)


LOSS = define(
    "triton_loss(Tensor logits, Tensor labels, Tensor? weights, float smoothing) -> Tensor", launch_loss, loss_shapes
)
METRICS = define(
    "triton_metrics(Tensor partial, Tensor(a!) metrics, int images) -> Tensor", launch_metrics, metrics_shapes
)
BACKWARD = define(
    "triton_loss_backward(Tensor logits, Tensor labels, Tensor? weights, Tensor grad, float smoothing) -> Tensor",
    launch_backward,
    backward_shapes,
)


class Loss(torch.autograd.Function):
    """The loss with its gradient; the metrics are increased on the way."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None, metrics: Tensor
    ) -> Tensor:
        """See `loss_and_metrics`."""
        ctx.save_for_backward(logits, labels, weights)
        ctx.smoothing = smoothing
        loss: Tensor = METRICS(LOSS(logits, labels, weights, smoothing), metrics, len(logits))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `launch_backward`."""
        return BACKWARD(*ctx.saved_tensors, grad, ctx.smoothing), None, None, None, None


def suits(logits: Tensor) -> bool:
    """Whether the kernels can do it."""
    return supported(logits) and logits.dtype in DTYPES and logits.size(1) <= MOST_CLASSES


def loss_and_metrics(
    plain: Callable[..., Tensor],
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float,
    weights: Tensor | None,
    metrics: Tensor,
) -> Tensor:
    """See `training.step.loss_and_metrics`, which is `plain` and does what the kernels do not: other types, very many
    classes."""
    if not suits(logits):
        return plain(logits, labels, label_smoothing, weights, metrics)
    loss: Tensor = Loss.apply(logits.contiguous(), labels, label_smoothing, weights, metrics)
    return loss
