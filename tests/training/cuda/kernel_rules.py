"""What PyTorch's operators launch on CUDA: kernels, bytes and FLOPs of an operator, and what sort of work it is.

An operator is one kernel that reads each input once and writes each output (and each input that it changes) once,
unless a rule says otherwise. The rules are read from PyTorch's CUDA sources; what cuDNN and cuBLAS do inside (split
sums, changed layouts) cannot be known without a GPU and is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fake_cuda import Facts, Operator

SORTS = ("convolution", "pooling", "norm", "activation", "augmentation", "loss", "optimizer", "copies", "other")


@dataclass(frozen=True)
class Work:
    """What an operator does on the device."""

    kernels: int = 1
    bytes: int = 0
    flops: int = 0  # of convolutions


def total(tensors: tuple[Facts, ...]) -> int:
    """Bytes of all of them."""
    return sum(tensor.bytes for tensor in tensors)


def plain(op: Operator) -> Work:
    """Each input is read once, each output and changed input written once."""
    return Work(1, total(op.inputs) + total(op.outputs) + total(op.written), op.flops)


def nothing(op: Operator) -> Work:
    """No kernel."""
    return Work(0)


def overwrite(op: Operator) -> Work:
    """What is written is not read before."""
    return Work(1, total(op.inputs) + total(op.outputs))


def convolution(op: Operator) -> Work:
    """(input, weight, bias, ...)."""
    image, weight, bias = op.args[:3]
    result = op.outputs[0]
    flops = 2 * result.numel * (weight.numel // weight.shape[0])
    one = image.bytes + weight.bytes + result.bytes
    return Work(1, one, flops) if bias is None else Work(2, one + 2 * result.bytes + bias.bytes, flops)


def convolution_backward(op: Operator) -> Work:
    """(gradient, input, weight, bias sizes, ..., output mask)."""
    gradient, image, weight = op.args[:3]
    wanted = op.args[-1]
    flops = 2 * gradient.numel * (weight.numel // weight.shape[0])
    parts = (weight.bytes + image.bytes, image.bytes + weight.bytes, 0)  # beside the gradient, for each that is wanted
    moved = sum(gradient.bytes + part for part, want in zip(parts, wanted, strict=True) if want)
    copied = [each for each in (gradient, image, weight) if not each.channels_last]
    moved += 2 * total(tuple(copied))
    return Work(sum(wanted) + len(copied), moved, flops * (wanted[0] + wanted[1]))


def batch_norm(op: Operator) -> Work:
    """(input, weight, bias, running mean, running variance, training, ...)."""
    image = op.args[0].bytes
    return Work(3, 3 * image) if op.args[5] else Work(2, 2 * image)


def batch_norm_backward(op: Operator) -> Work:
    """The largest input is the image, of the size of the gradient."""
    return Work(2, 5 * max(each.bytes for each in op.inputs))


def gather(op: Operator) -> Work:
    """(images, [index tensors]): the gathered bytes are read, not all images."""
    indices = [each for each in op.args[1] if each is not None]
    alike = len({(each.shape, each.stride) for each in indices}) == 1
    copied = [] if alike else [each for each in indices if not each.contiguous]
    kernels = 1 + len(copied)
    size = 8 * max(each.numel for each in indices)
    moved = len(copied) * size + total(tuple(copied)) + len(indices) * size + 2 * total(op.outputs)
    return Work(kernels, moved)


def scatter(op: Operator) -> Work:
    """(images, [index tensors], values): the values' places are written, not all images."""
    indices = tuple(each for each in op.args[1] if each is not None)
    return Work(1, total(indices) + 2 * op.args[2].bytes)


def resized(op: Operator) -> Work:
    """(input, size, ...)."""
    return Work(3, 3 * op.args[0].bytes + 3 * total(op.outputs))


def zero_and_scatter(op: Operator) -> Work:
    """The gradient is filled with zeros, then added into where it belongs."""
    return Work(2, total(op.inputs[:1]) + total(op.inputs[-1:]) + 2 * total(op.outputs))


def added_product(op: Operator) -> Work:
    """(summand, a, b)."""
    return Work(2, total(op.inputs[1:]) + 2 * op.inputs[0].bytes + 2 * total(op.outputs))


def foreach(op: Operator) -> Work:
    """One kernel for all tensors on the fast path, one a tensor (a product and a sum are one) on the slow path."""
    lists = [each for each in op.args if isinstance(each, list) and each and isinstance(each[0], Facts)]
    first = lists[0]
    alike = all(
        (a.shape, a.stride, a.dtype) == (b.shape, b.stride, first[0].dtype)
        for other in lists
        for a, b in zip(first, other, strict=True)
    )
    scalars = [each for each in op.args if isinstance(each, Facts)]
    fast = alike and all(each.dtype == first[0].dtype for each in scalars)
    return Work(1 if fast else len(first), plain(op).bytes)


def foreach_norm(op: Operator) -> Work:
    """A zeroed list of partial sums, the sums, their roots."""
    return Work(3, plain(op).bytes)


@dataclass(frozen=True)
class Rule:
    """Operators that are not one plain kernel."""

    names: tuple[str, ...]
    work: Callable[[Operator], Work]
    reason: str


RULES = (
    Rule(
        ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
        nothing,
        "memory is taken, and nothing is written",
    ),
    Rule(("copy_", "fill_", "zero_"), overwrite, "the old content is not read"),
    Rule(("convolution",), convolution, "cuDNN's convolution; a bias is added afterwards, in place"),
    Rule(
        ("convolution_backward",),
        convolution_backward,
        "one kernel for each gradient that is wanted (the bias's is a sum of PyTorch's); what is not in channels-last "
        "memory is copied first",
    ),
    Rule(
        ("cudnn_batch_norm", "native_batch_norm"),
        batch_norm,
        "statistics, their update, then the images again; in evaluation the scale, then the images",
    ),
    Rule(
        ("cudnn_batch_norm_backward", "native_batch_norm_backward"),
        batch_norm_backward,
        "two sums over images and gradient, then both again for the gradient of the images",
    ),
    Rule(
        ("max_pool2d_with_indices_backward",),
        zero_and_scatter,
        "the gradient is filled with zeros first; the kernel reads gradient and int64 indices, not the images",
    ),
    Rule(("nll_loss_backward",), zero_and_scatter, "the gradient is filled with zeros first"),
    Rule(
        ("index",),
        gather,
        "several index tensors must be strided alike: expanded ones are copied to int64 tensors of the full shape",
    ),
    Rule(("index_put_",), scatter, "only what is put is read and written"),
    Rule(
        ("_upsample_bilinear2d_aa",),
        resized,
        "there is no channels-last kernel with antialiasing: images are copied to contiguous memory and back",
    ),
    Rule(("baddbmm",), added_product, "its first argument is copied to the result, which cuBLAS then reads"),
    Rule(("_foreach_norm",), foreach_norm, "partial sums are zeroed, taken, and added up"),
)
FOREACH = Rule(
    ("_foreach_*",),
    foreach,
    "the fast path wants lists of equal shapes, strides and types, and a scalar tensor of the same type",
)
BY_NAME = {name: rule for rule in RULES for name in rule.names}


def work_of(op: Operator) -> Work:
    """Kernels, bytes and FLOPs of an operator, by its rule or as a plain one; none for what stays on the host."""
    if op.is_view or not any(each.device == "cuda" for each in (*op.inputs, *op.outputs)):
        return Work(0)
    if op.moved is not None:
        return Work(1, op.moved, op.flops)
    if op.name in BY_NAME:
        return BY_NAME[op.name].work(op)
    return FOREACH.work(op) if op.name.startswith("_foreach_") else plain(op)


PHASES = {"data": "augmentation", "loss": "loss", "optimizer": "optimizer"}
WORDS = (  # in the name of an operator or of the autograd node it belongs to, the first that is found
    ("pool", "pooling"),
    ("amax", "pooling"),
    ("norm", "norm"),
    ("conv", "convolution"),
    ("elu", "activation"),
    ("silu", "activation"),
    ("act", "activation"),
    ("copy", "copies"),
    ("clone", "copies"),
)


def sort_of(op: Operator) -> str:
    """One of `SORTS`: what an operator works for, by the phase of the step, its name, its autograd node."""
    if op.phase in PHASES:
        return PHASES[op.phase]
    names = f"{op.name} {op.node}".lower()
    return next((sort for word, sort in WORDS if word in names), "other")
