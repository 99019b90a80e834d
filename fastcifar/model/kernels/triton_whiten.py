"""The whitening convolution with its bias and the activation behind it on CUDA: one kernel forward, and backward two
for the bias while it is trained.

Images need no gradient and the filters are frozen. The backward pass computes what stands before the activation again
from the images (12 MB for 2,000 of them in half precision) instead of reading it (92 MB).

The map may have more channels than there are filters, zeros: see `triton_convolution`, whose convolution takes it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from fastcifar.model.kernels.build import Fused, new
from fastcifar.model.kernels.convolution import is_same_3x3
from fastcifar.model.kernels.triton_activations import DEFINITIONS, activate, kind_of, slope
from fastcifar.model.kernels.triton_convolution import PaddedConv2d, padded_channels
from fastcifar.model.kernels.triton_operators import DTYPES, MOST_NUMBERS, define, sums_traffic, supported
from fastcifar.model.network import ConvGroup, Network

LARGEST_KERNEL = 3  # pixels

# A tile is so many pixels and channels, chosen by measurement on an H100. Forward a thread writes vectors of 16 bytes
# in 32 channels. Backward 8 channels (as many as the tensor cores multiply at once) come one after the other.
PIXELS, COLUMNS = 128, 32
BACKWARD_PIXELS, BACKWARD_COLUMNS = 256, 8
WARPS = 4
SUMMED = 1024  # of 7,508 blocks at once, for 2,000 images of 31 x 31 outputs


@triton.jit
def patches(
    images,
    pixel,
    inside,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    PADDING: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """The numbers under a filter at each pixel of the output, in the order of a filter: (pixels, LENGTH), zeros behind
    the last and outside the image."""
    rows: tl.constexpr = HEIGHT + 2 * PADDING - KERNEL + 1
    columns: tl.constexpr = WIDTH + 2 * PADDING - KERNEL + 1
    line = pixel // columns  # of the outputs of all images
    image = line // rows
    # One number a pixel plus one an entry: the address of each pair is then a single addition.
    first = pixel + line * (WIDTH - columns) + image * ((HEIGHT - rows) * WIDTH) - PADDING * (WIDTH + 1)
    entry = tl.arange(0, LENGTH)
    down, right = entry // (3 * KERNEL), entry // 3 % KERNEL
    exists = inside[:, None] & (entry < 3 * KERNEL * KERNEL)[None, :]
    if PADDING > 0:
        row = (line - image * rows)[:, None] + down[None, :] - PADDING
        column = (pixel - line * columns)[:, None] + right[None, :] - PADDING
        exists = exists & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    at = (first * 3)[:, None] + ((down * WIDTH + right) * 3 + entry % 3)[None, :]
    return tl.load(images + at, exists, other=0.0)


@triton.jit
def filtered(patch, filters, bias, channel, CHANNELS: tl.constexpr, FILTER: tl.constexpr, LENGTH: tl.constexpr):
    """The convolution's outputs in some channels, bias included: float32 (pixels, channels)."""
    entry = tl.arange(0, LENGTH)[:, None]
    exists = (entry < FILTER) & (channel < CHANNELS)[None, :]
    z = tl.dot(patch, tl.load(filters + channel[None, :] * FILTER + entry, exists, other=0.0), input_precision="ieee")
    if bias is not None:
        z += tl.load(bias + channel, channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    return z


@triton.jit(do_not_specialize=["pixels"])
def whiten_kernel(
    images,
    filters,
    bias,
    out,
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ALL: tl.constexpr,
    KERNEL: tl.constexpr,
    PADDING: tl.constexpr,
    LENGTH: tl.constexpr,
    KIND: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """PIXELS pixels of the output a program: ALL channels, of which those behind the first CHANNELS are zeros, for the
    activation of zero is zero."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    patch = patches(images, pixel, inside, HEIGHT, WIDTH, KERNEL, PADDING, LENGTH)
    for start in tl.static_range(0, ALL, COLUMNS):
        channel = start + tl.arange(0, COLUMNS)
        z = filtered(patch, filters, bias, channel, CHANNELS, 3 * KERNEL * KERNEL, LENGTH)
        exists = inside[:, None] & (channel < ALL)[None, :]
        y = activate(z, KIND).to(out.dtype.element_ty)
        tl.store(out + pixel[:, None] * ALL + channel[None, :], y, exists)


@triton.jit(do_not_specialize=["pixels"])
def whiten_backward_kernel(
    images,
    filters,
    bias,
    grad,
    sums,
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ALL: tl.constexpr,
    KERNEL: tl.constexpr,
    PADDING: tl.constexpr,
    LENGTH: tl.constexpr,
    KIND: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of PIXELS pixels of the output the gradient before the activation, summed: into sums (CHANNELS, programs)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    patch = patches(images, pixel, inside, HEIGHT, WIDTH, KERNEL, PADDING, LENGTH)
    for start in tl.static_range(0, CHANNELS, COLUMNS):
        channel = start + tl.arange(0, COLUMNS)
        z = filtered(patch, filters, bias, channel, CHANNELS, 3 * KERNEL * KERNEL, LENGTH)
        exists = inside[:, None] & (channel < CHANNELS)[None, :]
        above = tl.load(grad + pixel[:, None] * ALL + channel[None, :], exists, other=0.0).to(tl.float32)
        at = channel * tl.num_programs(0) + tl.program_id(0)
        tl.store(sums + at, tl.sum(above * slope(z, KIND), 0), channel < CHANNELS)


@triton.jit(do_not_specialize=["blocks"])
def whiten_bias_kernel(sums, out, blocks, BLOCK: tl.constexpr):
    """The sum of a row of sums (channels, blocks) a program: a number of the bias's gradient."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        total += tl.load(sums + tl.program_id(0) * blocks + block, block < blocks, other=0.0)
    tl.store(out + tl.program_id(0), tl.sum(total).to(out.dtype.element_ty))


def output_shape(images: Tensor, filters: Tensor, padding: int) -> tuple[int, int, int, int]:
    """Of the convolution of images (N, 3, H, W) with filters (channels, 3, kernel, kernel)."""
    shrinkage = filters.size(2) - 1 - 2 * padding
    return len(images), len(filters), images.size(2) - shrinkage, images.size(3) - shrinkage


def tiling(images: Tensor, filters: Tensor, padding: int, width: int, kind: str) -> tuple[int, dict[str, Any]]:
    """The pixels of the output, and what the kernels are compiled for but the size of a tile."""
    count, channels, rows, columns = output_shape(images, filters, padding)
    return count * rows * columns, {
        "HEIGHT": images.size(2),
        "WIDTH": images.size(3),
        "CHANNELS": channels,
        "ALL": width,
        "KERNEL": filters.size(2),
        "PADDING": padding,
        "LENGTH": max(16, triton.next_power_of_2(filters[0].numel())),  # tensor cores multiply 16 numbers at once
        "KIND": kind,
        "num_warps": WARPS,
    }


def launch(images: Tensor, filters: Tensor, bias: Tensor | None, padding: int, width: int, kind: str) -> Tensor:
    """The activated convolution (N, width, H', W') of images (N, 3, H, W) with square filters, in their type: `width`
    channels, zeros behind as many as there are filters."""
    out = shapes(images, filters, bias, padding, width)
    pixels, tile = tiling(images, filters, padding, width, kind)
    columns = min(COLUMNS, max(BACKWARD_COLUMNS, triton.next_power_of_2(width)))
    grid = (triton.cdiv(pixels, PIXELS),)
    whiten_kernel[grid](images, filters, bias, out, pixels, **tile, PIXELS=PIXELS, COLUMNS=columns)
    return out


def shapes(images: Tensor, filters: Tensor, bias: Tensor | None, padding: int, width: int, *_: Any) -> Tensor:
    """What `launch` gives, not computed."""
    shape = output_shape(images, filters, padding)
    return new(images, (shape[0], width, *shape[2:]), images.dtype)


def flops(arguments: tuple[Any, ...], out: Tensor) -> int:
    """Those of the convolution (a multiply-add is two), as `torch.utils.flop_counter` counts them: zeros are none."""
    count: int = 2 * (out.numel() // out.size(1)) * arguments[1].numel()
    return count


def launch_backward(images: Tensor, filters: Tensor, bias: Tensor, grad: Tensor, padding: int, kind: str) -> Tensor:
    """What blocks of pixels add to the gradient of the bias, from that of the outputs: float32 (channels, blocks)."""
    sums = backward_shapes(images, filters, bias, grad)
    pixels, tile = tiling(images, filters, padding, grad.size(1), kind)
    tile |= {"PIXELS": BACKWARD_PIXELS, "COLUMNS": BACKWARD_COLUMNS}
    whiten_backward_kernel[(sums.size(1),)](images, filters, bias, grad, sums, pixels, **tile)
    return sums


def backward_shapes(images: Tensor, filters: Tensor, bias: Tensor, grad: Tensor, *_: Any) -> Tensor:
    """What `launch_backward` gives, not computed."""
    pixels = grad.numel() // grad.size(1)
    return images.new_empty((len(filters), triton.cdiv(pixels, BACKWARD_PIXELS)), dtype=torch.float32)


def launch_bias(sums: Tensor, bias: Tensor) -> Tensor:
    """The gradient of the bias (channels,), in its type, from what `launch_backward` gave."""
    out = bias_shapes(sums, bias)
    whiten_bias_kernel[(len(bias),)](sums, out, sums.size(1), BLOCK=SUMMED, num_warps=WARPS)
    return out


def bias_shapes(sums: Tensor, bias: Tensor) -> Tensor:
    """What `launch_bias` gives, not computed."""
    return torch.empty_like(bias)


FORWARD = define(
    "triton_whiten(Tensor images, Tensor filters, Tensor? bias, int padding, int width, str kind) -> Tensor",
    launch,
    shapes,
    flops=flops,
)
BACKWARD = define(
    "triton_whiten_backward(Tensor images, Tensor filters, Tensor bias, Tensor grad, int padding, str kind) -> Tensor",
    launch_backward,
    backward_shapes,
)
BIAS = define("triton_whiten_bias(Tensor sums, Tensor bias) -> Tensor", launch_bias, bias_shapes, sums_traffic)


class Whitening(torch.autograd.Function):
    """The activated convolution with the gradient of its bias."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, filters: Tensor, bias: Tensor | None, padding: int, width: int, kind: str
    ) -> Tensor:
        """See `launch`."""
        ctx.save_for_backward(images, filters, bias)
        ctx.options = padding, kind
        y: Tensor = FORWARD(images, filters, bias, padding, width, kind)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `launch_backward` and `launch_bias`."""
        _, _, bias = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        return None, None, BIAS(BACKWARD(*ctx.saved_tensors, grad, *ctx.options), bias), None, None, None


class WhitenAct(nn.Conv2d):
    """A convolution that does the activation behind it too, by these kernels where they can do it."""

    kind: str
    width: int  # channels that the kernels write, zeros behind its own

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, channels, H', W'), by the kernels to (N, width, H', W')."""
        if not self.suits(x):
            return DEFINITIONS[self.kind](super().forward(x))
        y: Tensor = Whitening.apply(x, self.weight, self.bias, int(self.padding[0]), self.width, self.kind)
        return y

    def suits(self, x: Tensor) -> bool:
        """Whether the kernels can do it: channels-last memory on CUDA, and no gradient wanted but the bias's."""
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return False
        dense = all(each.is_contiguous(memory_format=torch.channels_last) for each in (x, self.weight))
        typed = x.dtype == self.weight.dtype and x.dtype in DTYPES
        images, _, rows, columns = output_shape(x, self.weight, int(self.padding[0]))
        small = images * self.width * rows * columns <= MOST_NUMBERS
        return supported(x, self.weight) and dense and typed and small


def install(network: nn.Module) -> None:
    """Have a network's whitening convolution do the activation behind it too, in place, and give channels of zeros
    where the convolution behind it is faster with them.

    Not where a projection stands between the two (hlb): its convolution has no bias, so nothing is left to fuse.
    """
    if type(network) is not Network or network.recipe.project:
        return
    whiten, act = network.whiten, network.act
    kind = kind_of(act)
    if type(whiten) is nn.Conv2d and whiten.kernel_size[0] <= LARGEST_KERNEL and kind is not None:
        whiten.__class__ = WhitenAct
        whiten.kind = kind  # type: ignore[assignment]
        whiten.width = whiten.out_channels  # type: ignore[assignment]
        act.__class__ = Fused
        group = network.get_submodule("group1")
        if type(group) is ConvGroup and type(group.conv1) is nn.Conv2d and is_same_3x3(group.conv1):
            whiten.width = padded_channels(whiten.out_channels)  # type: ignore[assignment]
            group.conv1.__class__ = PaddedConv2d
