"""Our convolutions against PyTorch's, in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.model.kernels import norm_act as pointwise
from fastcifar.model.kernels.convolution import (
    WinogradConv2d,
    convolve,
    convolve_backward,
    convolve_pool,
    install,
    is_supported,
)
from fastcifar.model.network import ConvGroup
from fastcifar.recipes.schema import Network as NetworkRecipe


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "height", "width"),
    [
        *((1, 8, 8, 1, 1), (3, 8, 24, 1, 2), (4, 16, 8, 2, 1), (7, 24, 40, 2, 2)),  # tiny: matrix products
        *((3, 8, 24, 2, 5), (2, 24, 8, 4, 4), (5, 16, 40, 7, 3), (9, 32, 16, 15, 15), (130, 8, 16, 3, 3)),
        *((3, 8, 8, height, 14 - height) for height in range(1, 14)),  # every way to cut a line into tiles
        (131, 16, 8, 5, 5),  # blocks of tiles of all kinds, the last of them smaller
    ],
)
def test_kernels_compute_the_convolution(
    images: int, inputs: int, outputs: int, height: int, width: int, threads: int
) -> None:
    generator = torch.Generator().manual_seed(images)
    x, weight, grad = (
        torch.randn(*shape, generator=generator).to(memory_format=torch.channels_last)
        for shape in (
            (images, inputs, height, width),
            (outputs, inputs, 3, 3),
            (images, outputs, height, width),
        )
    )
    exact = [each.double().requires_grad_() for each in (x, weight)]
    expected = F.conv2d(*exact, padding=1)
    expected.backward(grad.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = convolve(x, weight)
        dx, dw = convolve_backward(x, weight, grad, None, [True, True])
        only_x = convolve_backward(x, weight, grad, None, [True, False])
        only_w = convolve_backward(x, weight, grad, None, [False, True])
    finally:
        torch.set_num_threads(before)
    assert exact[0].grad is not None and exact[1].grad is not None
    assert relative(y, expected.detach()) < 1e-5
    assert relative(dx, exact[0].grad) < 1e-5
    assert relative(dw, exact[1].grad) < 5e-5
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in (y, dx, dw))
    assert torch.equal(only_x[0], dx) and not only_x[1].numel()
    assert torch.equal(only_w[1], dw) and not only_w[0].numel()


@pytest.mark.parametrize("side", [(2, 2), (4, 8), (7, 7), (9, 6), (3, 14), (15, 31)])
@pytest.mark.parametrize(("outputs", "threads"), [(8, 1), (16, 3), (40, 2)])
def test_convolution_and_pooling_in_one(side: tuple[int, int], outputs: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare_pooled(side, outputs)
    finally:
        torch.set_num_threads(before)


def compare_pooled(side: tuple[int, int], outputs: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    x = torch.randn(5, 24, *side, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, 24, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    exact = [each.double().requires_grad_() for each in (x, weight)]
    expected = F.max_pool2d(F.conv2d(*exact, padding=1), 2)
    grad = torch.randn(expected.shape, generator=generator)
    expected.backward(grad.double())
    y, chosen = convolve_pool(x, weight)
    dx, dw = convolve_backward(x, weight, grad, chosen, [True, True])
    assert exact[0].grad is not None and exact[1].grad is not None
    assert relative(y, expected.detach()) < 1e-5
    assert relative(dx, exact[0].grad) < 1e-5
    assert relative(dw, exact[1].grad) < 5e-5


def test_pooling_takes_the_first_of_several_and_shows_what_is_no_number() -> None:
    x = torch.zeros(2, 8, 10, 7).to(memory_format=torch.channels_last)
    weight = torch.ones(8, 8, 3, 3)
    y, chosen = convolve_pool(x, weight)
    assert not y.any() and not chosen.any()
    x[0, 0, 1, 1] = math.nan  # a training that diverged must look like one
    assert convolve_pool(x, weight)[0][0, 0, 0, 0].isnan()


def test_the_layer_takes_whatever_a_convolution_takes() -> None:
    layer = nn.Conv2d(8, 16, 3, padding="same", bias=False)
    fast = nn.Conv2d(8, 16, 3, padding="same", bias=False)
    fast.load_state_dict(layer.state_dict())
    install(fast)
    assert isinstance(fast, WinogradConv2d)
    x = torch.randn(4, 8, 9, 9)
    for given in (x, x.to(memory_format=torch.channels_last), x[::2], x.transpose(2, 3), x[:, :, 1:, ::2]):
        torch.testing.assert_close(fast(given), layer(given), atol=1e-5, rtol=1e-4)
    assert torch.equal(fast.double()(x.double()), layer.double()(x.double()))


def test_what_the_kernels_cannot_do_is_pytorchs() -> None:
    """Nothing, single lines, other channels: what PyTorch answers, or its error."""
    group = ConvGroup(8, (8,), (3,), NetworkRecipe(widths=(8,), convs=(1,)))
    fast = copy.deepcopy(group)
    install(fast)
    pointwise.install(fast)
    assert fast.conv1.pooled  # type: ignore[union-attr]
    for each in (group.eval(), fast.eval()):
        assert each(torch.zeros(0, 8, 6, 6)).shape == (0, 8, 3, 3)
        for wrong in (torch.zeros(2, 8, 1, 4), torch.zeros(2, 16, 4, 4)):
            with pytest.raises(RuntimeError):
                each(wrong)
    fast.requires_grad_(False)
    fast.norm1.bias.requires_grad_(True)  # type: ignore[union-attr]
    fast(torch.randn(2, 8, 4, 4)).sum().backward()
    assert fast.norm1.bias.grad is not None  # type: ignore[union-attr]


def test_only_what_the_kernels_can_do_is_replaced() -> None:
    def made(**changes: object) -> nn.Conv2d:
        return nn.Conv2d(
            **{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, "bias": False} | changes
        )  # type: ignore[arg-type]

    assert is_supported(made()) and is_supported(made(padding="same"))
    others: list[dict[str, object]] = [
        {"in_channels": 12},
        {"out_channels": 4},
        {"kernel_size": 5},
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"bias": True},
        {"padding": 0},
        {"padding_mode": "reflect"},
    ]
    assert not any(is_supported(made(**change)) for change in others)
