"""The convolution behind the whitening against PyTorch's in float64; run by `test_triton_stem.py`, in a process of its
own: with TRITON_INTERPRET=1 on the CPU, without on a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from operator_shapes import assert_a_graph_repeats, assert_shapes_are_known
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.model.kernels import triton_convolution, triton_whiten
from fastcifar.model.kernels.triton_operators import INTERPRETED
from fastcifar.model.network import Network
from fastcifar.profiling.op_counter import OpCounter
from fastcifar.recipes.schema import Network as NetworkRecipe
from fastcifar.recipes.schema import Whiten

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LAST = torch.channels_last
HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
HALVES = (HALF,) if INTERPRETED else (HALF, BRAIN)  # the interpreter multiplies no matrices in bfloat16
ROUNDING = {FLOAT: 1e-5, HALF: 2e-3, BRAIN: 1.6e-2}
torch.backends.cudnn.allow_tf32 = False


def random(*shape: int, seed: int = 0) -> Tensor:
    """Random maps or filters in channels-last memory."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(DEVICE).contiguous(memory_format=LAST)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps are large enough, and each program has several tiles."""
    monkeypatch.setattr(triton_convolution, "PROGRAMS", 4)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare, with larger absolute errors where the numbers are larger."""
    atol = ROUNDING[dtype] * float(expected.detach().abs().max())
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=ROUNDING[dtype])


@pytest.mark.parametrize(
    ("channels", "padded"), [(3, 3), (6, 6), (12, 12), (23, 23), (24, 32), (27, 32), (32, 32), (47, 47), (54, 64)]
)
def test_channels_are_padded_to_a_multiple_where_that_is_little(channels: int, padded: int) -> None:
    assert triton_convolution.padded_channels(channels) == padded


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("inputs", "channels", "outputs", "shape"),
    [(24, 32, 64, (3, 11, 11)), (24, 32, 64, (5, 7, 9)), (24, 24, 72, (2, 15, 15)), (8, 16, 10, (4, 8, 8))],
)
def test_the_gradient_of_the_filters(
    inputs: int, channels: int, outputs: int, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    images, height, width = shape
    x, grad = random(images, channels, height, width), random(images, outputs, height, width, seed=1)
    x, grad = x.to(dtype), grad.to(dtype)
    weight = random(outputs, inputs, 3, 3).to(dtype)
    assert triton_convolution.suits_filters(x, inputs)
    parts = triton_convolution.FILTER_PARTS(x, grad, inputs)
    assert parts.size(0) > 1
    found = triton_convolution.FILTER_SUM(parts, weight)
    assert found.dtype == dtype and found.is_contiguous(memory_format=LAST)
    exact = torch.nn.grad.conv2d_weight(x[:, :inputs].double(), weight.shape, grad.double(), padding=1)
    close(found, exact, dtype)
    close(parts.sum(0).view(outputs, 3, 3, inputs).permute(0, 3, 1, 2), exact, FLOAT)


def test_which_gradients_of_filters_are_ours() -> None:
    large = torch.empty(100, 32, 31, 31, dtype=HALF, device="meta")
    assert triton_convolution.suits_filters(large, 24)
    assert not triton_convolution.suits_filters(large.float(), 24)
    assert not triton_convolution.suits_filters(large[:10], 24)
    assert not triton_convolution.suits_filters(large, 27) and not triton_convolution.suits_filters(large, 32)


def test_filters_are_padded() -> None:
    weight = random(70, 24, 3, 3)
    wide = triton_convolution.PAD_FILTERS(weight, 32)
    assert wide.is_contiguous(memory_format=LAST)
    assert torch.equal(wide, F.pad(weight, (0, 0, 0, 0, 0, 8)))


def stem(dtype: torch.dtype, **options: Any) -> Network:
    """A network with filters and a bias that are large enough to reach every part of the activation."""
    network = Network(NetworkRecipe(whiten=Whiten(**options), widths=(8,), convs=(1,)), 10)
    network.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.whiten.weight.normal_(generator=torch.Generator().manual_seed(1))
    return network.to(device=DEVICE, dtype=dtype, memory_format=LAST)  # type: ignore[call-overload, no-any-return]


def up_to_the_convolution(network: Network, images: Tensor) -> Tensor:
    y: Tensor = network.group1.conv1(network.act(network.whiten(images)))
    return y


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [*HALVES, FLOAT])
@pytest.mark.parametrize(
    ("frozen", "options"), [(False, {}), (True, {}), (False, {"kernel": 3}), (False, {"kernel": 3, "signs": 1})]
)
def test_whitening_and_convolution(dtype: torch.dtype, frozen: bool, options: dict[str, int]) -> None:
    fused = stem(dtype, **options)
    fused.whiten.bias.requires_grad_(not frozen)  # type: ignore[union-attr]
    exact = copy.deepcopy(fused).double()
    before = {name: tensor.shape for name, tensor in fused.state_dict().items()}
    triton_whiten.install(fused)
    assert {name: tensor.shape for name, tensor in fused.state_dict().items()} == before
    images = random(3, 3, 12, 12).to(dtype)
    assert fused.whiten(images).size(1) > fused.whiten.out_channels
    found, expected = up_to_the_convolution(fused, images), up_to_the_convolution(exact, images.double())
    assert found.dtype == dtype and found.is_contiguous(memory_format=LAST)
    close(found, expected, dtype)
    grad = random(*found.shape, seed=3).to(dtype).contiguous()  # not channels-last
    found.backward(grad)
    expected.backward(grad.double())
    conv, reference = fused.group1.conv1.weight, exact.group1.conv1.weight
    assert conv.grad.shape == conv.shape and conv.grad.stride() == conv.stride() and conv.grad.dtype == dtype
    close(conv.grad, reference.grad, dtype)
    assert (fused.whiten.bias.grad is None) == frozen  # type: ignore[union-attr]
    if not frozen:
        close(fused.whiten.bias.grad, exact.whiten.bias.grad, dtype)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        close(up_to_the_convolution(fused.eval(), images), expected, dtype)


def test_maps_without_zeros_are_taken_too() -> None:
    fused = stem(FLOAT)
    plain = copy.deepcopy(fused)
    triton_whiten.install(fused)
    images = random(2, 3, 9, 9).contiguous().requires_grad_()  # which our kernels do not take
    assert fused.whiten(images).size(1) == 24
    torch.testing.assert_close(up_to_the_convolution(fused, images), up_to_the_convolution(plain, images))


def test_only_plain_convolutions_take_zeros() -> None:
    strided, own, kernels = stem(FLOAT), stem(FLOAT), Network(NetworkRecipe(kernels=((2,), (3,), (3,))), 10)
    strided.group1.conv1.stride = (2, 2)
    own.group1.__class__ = type("Mine", (type(own.group1),), {})
    for network in (strided, own, kernels):
        triton_whiten.install(network)
        assert type(network.whiten) is triton_whiten.WhitenAct and network.whiten.width == 24
        assert type(network.group1.conv1) is nn.Conv2d


@pytest.mark.usefixtures("small")
def test_the_operations_are_those_without_the_zeros() -> None:
    plain = stem(HALF)
    fused = copy.deepcopy(plain)
    triton_whiten.install(fused)
    images = random(3, 3, 12, 12).half()
    with FlopCounterMode(display=False) as counter:
        up_to_the_convolution(plain, images).sum().backward()
    with OpCounter() as ours:
        up_to_the_convolution(fused, images).sum().backward()
    assert sum(cost.flops for cost in ours.costs.values()) == counter.get_total_flops() > 0


def cases() -> list[tuple[Any, tuple[Any, ...]]]:
    """Every operator with arguments of it."""
    x, grad, weight = (random(*shape).half() for shape in ((70, 32, 16, 16), (70, 64, 16, 16), (64, 24, 3, 3)))
    wide = triton_convolution.PAD_FILTERS(weight, 32)
    if INTERPRETED:
        x, grad = x[:2], grad[:2]
    parts = triton_convolution.FILTER_PARTS(x, grad, 24)
    return [
        (triton_convolution.PAD_FILTERS, (weight, 32)),
        (triton_convolution.CONVOLVE, (x, wide, 24, False)),
        (triton_convolution.CONVOLVE, (grad, wide, 24, True)),
        (triton_convolution.FILTER_PARTS, (x, grad, 24)),
        (triton_convolution.FILTER_SUM, (parts, weight)),
    ]


def test_the_shapes_of_what_is_not_computed() -> None:
    assert_shapes_are_known(cases(), triton_convolution)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_the_same_bits_each_time_and_in_a_graph() -> None:
    for operator, arguments in cases():
        expected = operator(*arguments).clone()
        assert torch.equal(operator(*arguments), expected)
        assert_a_graph_repeats(operator, arguments, expected)
