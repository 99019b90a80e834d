"""Triton kernels of the layers between convolutions in Triton's interpreter, against PyTorch's operators in float64.

Run by `test_triton_layers.py` in a process of its own with TRITON_INTERPRET=1, which Triton reads when kernels are
defined.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastcifar.model.kernels import triton_layers as layers
from fastcifar.model.kernels import triton_norm, triton_pointwise
from fastcifar.model.kernels.build import Fused
from fastcifar.model.kernels.triton_operators import INTERPRETED
from fastcifar.model.network import BatchNorm, ConvGroup, GlobalMax, GlobalMaxMean, Network
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Network as NetworkRecipe
from fastcifar.recipes.schema import Norm

assert INTERPRETED, "to be run with TRITON_INTERPRET=1"
HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {FLOAT: 2e-5, HALF: 2e-3, BRAIN: 1.6e-2}  # a rounding or two of a result about 1, sums in float32


@pytest.fixture(autouse=True)
def unwritten_memory_is_not_a_number() -> Iterator[None]:
    """What a kernel forgets to write must be seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Operators(TorchDispatchMode):
    """Writes down the operators that run, and holds ours against what they say of fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(op._schema.name)
        out = op(*args, **(kwargs or {}))
        if op.namespace == "fastcifar":
            fake = op(*tree_map(lambda a: a.to("meta") if isinstance(a, Tensor) else a, args))
            shapes = [[(each.shape, each.dtype, each.stride()) for each in tree_leaves(given)] for given in (out, fake)]
            assert shapes[0] == shapes[1], op
        return out


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many programs, and many tiles for each, on small maps."""
    for name, elements in (("SUMS", 1024), ("POOLED_SUMS", 512), ("MAPS", 1024), ("SQUARES", 512)):
        monkeypatch.setattr(triton_norm, name, triton_norm.Tile(elements, 4))
    monkeypatch.setattr(triton_norm, "MOST_PROGRAMS", 4)


def group_of(channels: int, activation: str, momentum: float = 0.4) -> ConvGroup:
    """A group of one convolution with a bias that is not zero and running statistics that are not their first."""
    norm = Norm(momentum=momentum, eps=1e-12)
    recipe = NetworkRecipe(widths=(channels,), convs=(1,), activation=activation, norm=norm)  # type: ignore[arg-type]
    group = ConvGroup(3, (channels,), (3,), recipe)
    with torch.no_grad():
        group.norm1.bias.copy_(torch.linspace(-1, 1, channels))
        group.norm1.running_mean.copy_(torch.linspace(1, -1, channels))
        group.norm1.running_var.copy_(torch.linspace(0.5, 2, channels))
    return group


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random maps in channels-last memory."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


def run(group: ConvGroup, x: Tensor, grad: Tensor, pooled: bool, steps: int = 2) -> list[Tensor]:
    """What comes out of training steps, and of an evaluation after them."""
    for _ in range(steps):
        group.norm1.bias.grad = None
        given = x.clone().requires_grad_()
        y = group.act1(group.norm1(group.pool(given) if pooled else given))
        y.backward(grad.to(y.dtype))
    group.eval()
    with torch.no_grad():
        later = group.act1(group.norm1(group.pool(x) if pooled else x))
    norm = group.norm1
    running = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [y.detach(), given.grad, norm.bias.grad, *running, later]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Compare each, with larger absolute errors where the numbers are larger."""
    names = ("y", "dx", "dbias", "running mean", "running variance", "batches", "evaluated")
    for name, each, exact in zip(names, found, expected, strict=True):
        atol = tolerance * max(1.0, float(exact.abs().max()))
        message = functools.partial("{}: {}".format, name)
        torch.testing.assert_close(each.double(), exact.double(), atol=atol, rtol=tolerance, msg=message)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize(
    ("shape", "activation", "dtype", "factors", "tiles"),
    [
        ((3, 64, 7, 7), "gelu", FLOAT, FLOAT, "small"),
        ((3, 24, 8, 5), "silu", FLOAT, FLOAT, "small"),
        ((2, 10, 3, 6), "celu", FLOAT, FLOAT, "small"),
        ((1, 256, 5, 4), "gelu", HALF, FLOAT, "small"),
        ((2, 64, 6, 7), "silu", HALF, HALF, "small"),
        ((3, 16, 5, 5), "celu", BRAIN, BRAIN, "small"),
        ((4, 64, 5, 9), "silu", HALF, HALF, "real"),
    ],
)
def test_normalisation_with_what_stands_around_it(
    shape: tuple[int, ...],
    activation: str,
    dtype: torch.dtype,
    factors: torch.dtype,
    pooled: bool,
    tiles: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if tiles == "small":
        small_tiles(monkeypatch)
    plain = group_of(shape[1], activation).to(factors)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    layers.install(fused)
    fused.norm1.pooled = pooled
    assert type(fused.norm1) is layers.NormAct and type(fused.act1) is Fused and type(fused.pool) is Fused
    size = (shape[2] // 2, shape[3] // 2) if pooled else shape[2:]
    x, grad = images(shape, dtype), images((*shape[:2], *size), dtype, seed=1)
    with Operators() as operators:
        found = run(fused, x, grad, pooled)
    ours = {name for name in operators.seen if name.startswith("fastcifar")}
    assert len(ours) == 6 + pooled and not any("batch_norm" in name or "pool2d" in name for name in operators.seen)
    expected = run(exact, x.double(), grad.double(), pooled)
    assert [each.dtype for each in found[:6]] == [dtype, dtype, *[factors] * 3, torch.int64]
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    close(found, expected, max(TOLERANCE[dtype], TOLERANCE[factors]))


@pytest.mark.parametrize("pooled", [True, False])
def test_a_large_mean_costs_no_variance(pooled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    plain = group_of(16, "silu", momentum=1.0)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    layers.install(fused)
    fused.norm1.pooled = pooled
    x = 1000 + images((8, 16, 8, 8), FLOAT)
    grad = images((8, 16, 4, 4) if pooled else (8, 16, 8, 8), FLOAT, seed=1)
    found, expected = run(fused, x, grad, pooled, 1), run(exact, x.double(), grad.double(), pooled, 1)
    torch.testing.assert_close(found[4].double(), expected[4], atol=0, rtol=5e-5)  # means near 1000 are rounded to 3e-5
    close(found, expected, 2e-4)


def test_a_constant_channel_has_no_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    group = group_of(8, "gelu", momentum=1.0)
    layers.install(group)
    x = torch.full((4, 8, 6, 6), 0.1).contiguous(memory_format=torch.channels_last)
    y = group.norm1(x)
    assert group.norm1.running_var.abs().max() == 0
    torch.testing.assert_close(y, F.gelu(group.norm1.bias.detach())[None, :, None, None].expand_as(y))


def test_the_first_of_equal_maxima_has_the_gradient_and_an_odd_border_none() -> None:
    group = group_of(8, "gelu")
    plain = copy.deepcopy(group).double()
    layers.install(group)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (4, 8, 7, 9), generator=generator).float().contiguous(memory_format=torch.channels_last)
    grad = images((4, 8, 3, 4), FLOAT).contiguous()  # not laid out as the kernels want it
    dx = run(group, x, grad, True)[1]
    assert torch.equal(dx == 0, run(plain, x.double(), grad.double(), True)[1] == 0)
    assert dx[:, :, 6].abs().max() == 0 and dx[:, :, :, 8].abs().max() == 0 and dx[:, :, 5].abs().max() > 0


@pytest.mark.parametrize("corner", range(4))
def test_what_is_not_a_number_is_not_hidden(corner: int) -> None:
    group, x = group_of(8, "gelu"), images((2, 8, 4, 4), FLOAT)
    layers.install(group)
    x[0, 3, corner // 2, corner % 2] = torch.nan
    y = group.norm1(x)
    assert y[:, 3].isnan().all() and y[:, :3].isfinite().all()
    assert group.norm1.running_mean[3].isnan() and group.norm1.running_var[3].isnan()
    assert layers.FastGlobalMax()(x)[0].isnan().tolist() == [number == 3 for number in range(8)]


def test_a_frozen_bias_has_no_gradient() -> None:
    x, grad, results = images((2, 8, 4, 4), FLOAT), images((2, 8, 2, 2), FLOAT, seed=1), []
    for frozen in (False, True):
        group = group_of(8, "silu")
        layers.install(group)
        group.norm1.bias.requires_grad_(not frozen)
        results.append(run(group, x, grad, True))
    assert results[0][2] is not None and results[1][2] is None
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BRAIN])
@pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.CELU(0.3)])
def test_activations(act: nn.Module, dtype: torch.dtype) -> None:
    values = torch.cat([torch.linspace(-30, 30, 5000), torch.tensor([0.0, -0.0, 1e4, -1e4, 1e-30, 9])])
    x = values.view(2, 1, -1, 1).expand(2, 2, -1, 1).to(dtype).contiguous(memory_format=torch.channels_last)
    fast = copy.deepcopy(act)
    layers.install(fast)
    assert type(fast) is layers.FastActivation
    found, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    grad = torch.linspace(-3, 3, x.numel()).view(x.shape).to(dtype)  # not in channels-last memory
    fast(found).backward(grad)
    act(exact).backward(grad.double())
    tolerance = {FLOAT: 1e-6, HALF: 1e-3, BRAIN: 8e-3}[dtype]
    torch.testing.assert_close(fast(x).double(), act(x.double()), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.grad.double(), exact.grad, atol=3 * tolerance, rtol=tolerance)


POOLED = [((5, 24, 3, 3), FLOAT), ((3, 256, 4, 2), HALF), ((2, 8, 16, 16), BRAIN)]


@pytest.mark.parametrize(("shape", "dtype"), POOLED)
def test_the_maximum_over_all_pixels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = images(shape, dtype)
    x[0] = 1  # all equal
    grad = images((*shape[:2], 1, 1), dtype, seed=1)[:, :, 0, 0].t().contiguous().t()  # not laid out as expected
    found = x.clone().requires_grad_()
    y = layers.FastGlobalMax()(found)
    y.backward(grad)
    first = F.one_hot(x.flatten(2).max(2).indices, shape[2] * shape[3]).view(shape)
    assert torch.equal(y, GlobalMax()(x)) and torch.equal(found.grad, first * grad[:, :, None, None])
    assert found.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("shape", "dtype"), POOLED)
def test_the_maximum_plus_the_mean_of_all_pixels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, grad = images(shape, dtype), images((*shape[:2], 1, 1), dtype, seed=1)[:, :, 0, 0]
    found, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = layers.FastGlobalMaxMean()(found), F.max_pool2d(exact, shape[2:])[:, :, 0, 0] + exact.mean((2, 3))
    y.backward(grad)
    expected.backward(grad.double())
    assert y.dtype == dtype and found.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(found.grad.double(), exact.grad, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


NETWORKS = (
    ("air94", ()),
    ("hive94", ()),
    ("air94", ("network.kernels=[[3, 1], [1, 3], [2, 3]]", "network.pool=max_mean")),
    ("hive94", ("network.convs=[3, 3, 3]", "network.bottlenecks=[8, 8, 8]", "network.residual=true")),
    ("hlb", ("network.project=8", "network.convs=[3, 1, 2]")),
    ("hlb-first", ("network.project=8", "network.norm.ghost=0", "network.convs=[2, 1, 2]")),
)


@pytest.mark.parametrize(("name", "overrides"), NETWORKS)
def test_a_whole_network_is_the_same(name: str, overrides: tuple[str, ...]) -> None:
    sections = load_recipe(name, "network.widths=[8, 16, 16]", *overrides).network
    plain = Network(sections, 10)
    generator = torch.Generator().manual_seed(0)
    plain.initialize(generator)
    plain.set_whitening([torch.randn(64, 3, 32, 32, generator=generator)])
    plain.to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    layers.install(fused)
    x, results = images((4, 3, 20, 20), FLOAT), []
    with Operators() as operators:
        results.append(outputs(fused, x))
    results.append(outputs(plain, x))
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key], atol=2e-5, rtol=2e-4, msg=lambda text, k=key: f"{k}: {text}")
    plain_operators = {name for name in operators.seen if "batch_norm" in name or "pool2d" in name or "amax" in name}
    assert not plain_operators and ("aten::mean" in operators.seen) == bool(sections.squeeze_excite)
    ours = {f"fastcifar::{op.__name__}" for module in (triton_norm, triton_pointwise) for op in defined(module)}
    alone = {"fastcifar::triton_activation", "fastcifar::triton_activation_backward"}
    assert ours - operators.seen == (set() if sections.project == 0 else alone) and len(ours) == 13


def defined(module: Any) -> list[Any]:
    """The operators that a module defines."""
    return [each for each in vars(module).values() if isinstance(each, torch._ops.OpOverloadPacket)]


def outputs(network: Network, x: Tensor) -> dict[str, Tensor]:
    """Logits in training and in evaluation, all gradients, all buffers."""
    network.train()
    logits = network(x)
    logits.square().sum().backward()
    network.eval()
    with torch.no_grad():
        found = {"logits": logits.detach(), "evaluated": network(x)}
    found |= {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    return found | dict(network.named_buffers())


def test_what_the_kernels_cannot_do_is_done_by_pytorch() -> None:
    group, plain = group_of(8, "silu"), group_of(8, "silu")
    layers.install(group)
    contiguous, wide = torch.randn(2, 8, 6, 6), images((2, 8, 6, 6), FLOAT).double()
    for x in (contiguous, wide):
        group.to(x.dtype), plain.to(x.dtype)
        with Operators() as operators:
            found = run(group, x, torch.ones(2, 8, 3, 3), True)
        assert not any(name.startswith("fastcifar") for name in operators.seen)
        close(found, run(plain, x, torch.ones(2, 8, 3, 3), True), 1e-6)
        group.train(), plain.train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        group.double().train()(torch.randn(1, 3, 2, 2).double())
    group.float().eval()
    given = images((2, 8, 6, 6), FLOAT).requires_grad_()  # in evaluation mode a gradient can be taken all the same
    group.act1(group.norm1(given)).sum().backward()
    assert given.grad is not None and given.grad.abs().max() > 0
    large = images((1, 8, 17, 17), FLOAT)  # more pixels than a byte can number
    for fast, slow in ((layers.FastGlobalMax(), GlobalMax()), (layers.FastGlobalMaxMean(), GlobalMaxMean())):
        assert torch.equal(fast(large), slow(large)) and torch.equal(fast(contiguous), slow(contiguous))


def test_only_plain_layers_are_replaced() -> None:
    class Mine(ConvGroup):
        """Might do anything with its layers."""

    recipe = NetworkRecipe(widths=(8,), convs=(1,))
    mine, average, tanh = (
        Mine(8, (8,), (3,), recipe),
        ConvGroup(8, (8,), (3,), recipe),
        ConvGroup(8, (8,), (3,), recipe),
    )
    ghostly = ConvGroup(8, (8,), (3,), NetworkRecipe(norm=Norm(ghost=2)))
    average.pool = nn.AvgPool2d(2)  # type: ignore[assignment]
    tanh.act1 = nn.GELU("tanh")
    others = nn.Sequential(nn.CELU(0.5), nn.ReLU(), nn.BatchNorm2d(8))
    for module in (mine, average, tanh, ghostly, others):
        layers.install(module)
    assert type(mine.pool) is nn.MaxPool2d and type(mine.norm1) is BatchNorm
    assert type(average.pool) is nn.AvgPool2d and type(average.norm1) is layers.NormAct and not average.norm1.pooled
    assert type(tanh.act1) is nn.GELU and type(tanh.norm1) is BatchNorm and type(tanh.pool) is nn.MaxPool2d
    assert type(ghostly.norm1) is BatchNorm and type(ghostly.act1) is layers.FastActivation
    assert [type(layer) for layer in others] == [nn.CELU, nn.ReLU, nn.BatchNorm2d]
