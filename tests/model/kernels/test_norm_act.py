"""Norm and activation kernels against PyTorch's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.model.kernels import norm_act as pointwise
from fastcifar.model.kernels.build import Fused
from fastcifar.model.kernels.convolution import (
    install,
)
from fastcifar.model.network import BatchNorm, ConvGroup
from fastcifar.recipes.schema import Network as NetworkRecipe
from fastcifar.recipes.schema import Norm


@pytest.mark.parametrize(("kind", "definition"), [(0, F.gelu), (1, F.silu)])
def test_activations_are_pytorchs(kind: int, definition: Callable[[Tensor], Tensor]) -> None:
    values = torch.cat([torch.linspace(-40, 40, 8 * 900), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 9, -9])])
    x = values.view(1, 8, -1, 1).to(memory_format=torch.channels_last)
    exact = x.double().requires_grad_()
    definition(exact).backward(torch.full_like(exact, 3))
    assert exact.grad is not None
    expected = definition(exact.detach())
    torch.testing.assert_close(pointwise.activation(x, kind).double(), expected, atol=1e-6, rtol=1e-6)
    found = pointwise.activation_backward(x, torch.full_like(x, 3), kind)
    torch.testing.assert_close(found.double(), exact.grad, atol=2e-6, rtol=1e-6)
    assert pointwise.activation(torch.full((1, 8, 1, 1), math.nan), kind).isnan().all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (5, 24, 7, 7), (3, 40, 9, 4)])
def test_norm_and_activation_in_one(shape: tuple[int, ...], activation: str, threads: int) -> None:
    sections = NetworkRecipe(widths=(shape[1],), convs=(1,), activation=activation)  # type: ignore[arg-type]
    plain = ConvGroup(3, (shape[1],), (3,), sections)
    with torch.no_grad():
        plain.norm1.bias.copy_(torch.linspace(-1, 1, shape[1]))  # type: ignore[operator, union-attr]
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    pointwise.install(fused)
    assert isinstance(fused.norm1, pointwise.NormAct) and isinstance(fused.act1, Fused)
    generator = torch.Generator().manual_seed(0)
    x = (10 + 3 * torch.randn(shape, generator=generator)).to(memory_format=torch.channels_last)
    grad = torch.randn(shape, generator=generator)
    results = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for group, dtype in ((fused, torch.float32), (exact, torch.float64)):
            group.train()
            given = x.to(dtype, copy=True).requires_grad_()
            y = group.act1(group.norm1(given))
            y.backward(grad.to(dtype))
            group.eval()
            with torch.no_grad():
                later = group.act1(group.norm1(given))
            norm = group.norm1
            results.append([y, given.grad, norm.bias.grad, norm.running_mean, norm.running_var, later])
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=2e-4)  # large means cost digits
    given = x.detach().clone().requires_grad_()  # in evaluation mode a gradient can be taken all the same
    fused.act1(fused.norm1(given)).sum().backward()
    assert given.grad is not None and given.grad.isfinite().all()


def test_only_plain_layers_are_replaced() -> None:
    layers = nn.Sequential(nn.GELU(), nn.GELU("tanh"), nn.MaxPool2d(2))
    pointwise.install(layers)
    assert [type(layer) for layer in layers] == [pointwise.FastGelu, nn.GELU, nn.MaxPool2d]
    for x in (torch.randn(2, 3, 8, 8), torch.randn(2, 8, 8, 8), torch.randn(2, 8, 8, 8).double()):
        torch.testing.assert_close(layers[0](x), F.gelu(x), atol=1e-6, rtol=1e-6)
    ghostly = ConvGroup(8, (8, 8), (3, 3), NetworkRecipe(norm=Norm(ghost=2), activation="celu"))
    pointwise.install(ghostly)
    assert type(ghostly.norm1) is BatchNorm and type(ghostly.act2) is nn.CELU


def test_code_of_ones_own_is_left_as_it_is() -> None:
    class Mine(ConvGroup):
        """Might do anything with its layers."""

    recipe_of = NetworkRecipe(widths=(8,), convs=(1,))
    mine, average, tanh = (
        Mine(8, (8,), (3,), recipe_of),
        ConvGroup(8, (8,), (3,), recipe_of),
        ConvGroup(8, (8,), (3,), recipe_of),
    )
    average.pool = nn.AvgPool2d(2)  # type: ignore[assignment]
    tanh.act1 = nn.GELU("tanh")
    for group in (mine, average, tanh):
        install(group)
        pointwise.install(group)
    assert type(mine.pool) is nn.MaxPool2d and type(mine.norm1) is BatchNorm
    assert type(average.pool) is nn.AvgPool2d and not average.conv1.pooled  # type: ignore[union-attr]
    assert type(tanh.act1) is nn.GELU and type(tanh.norm1) is BatchNorm
