"""The optimizer with Triton kernels, held against the plain one in float64, and its launches counted.

Kernels are interpreted in a process of their own (see tests/model/kernels/test_triton_update.py).
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from fastcifar.model.kernels.triton_operators import INTERPRETED
from fastcifar.model.network import Network
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.training import fused_update
from fastcifar.training.annotations import UPDATE
from fastcifar.training.optim import Optimizer, plain_update

interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the first test starts")
STEPS = 4
NARROW = "network.widths=[16, 24, 24]"
FROZEN = "optimizer.whiten_bias.schedule=[[0, 1], [0.5, 0]]"
RECIPES = {
    "air94": load_recipe("air94", NARROW, FROZEN, "network.kernels=[[3, 1], [3, 1], [2, 3]]"),
    "hive94": load_recipe(
        "hive94", NARROW, FROZEN, "optimizer.filters.weight_decay=0.1", "optimizer.filters.renormalize=[[0, 2]]"
    ),
    "hlb": load_recipe("hlb", NARROW),  # no Muon; squeeze-and-excite
}


plain_process = pytest.mark.skipif(INTERPRETED, reason="does not run in that process")
CASES = [("air94", torch.float16), ("hive94", torch.float32), ("hive94", torch.float16), ("hlb", torch.float16)]


@plain_process
def test_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) == 6, done.stdout


def network_of(recipe: Recipe, dtype: torch.dtype) -> Network:
    """A network in channels-last memory and of that type; its norms in float32, where the recipe says so."""
    network = Network(recipe.network, 10)
    network.initialize(torch.Generator().manual_seed(0))
    network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype == torch.float16 and recipe.network.norm.precision == "float32":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    return network


def fake(network: Network) -> Network:
    """The network with fake CUDA tensors for parameters, and gradients of these; only within a `FakeTensorMode`."""
    for module in network.modules():
        for name, each in module.named_parameters(recurse=False):
            tensor = torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda")
            setattr(module, name, nn.Parameter(tensor, requires_grad=each.requires_grad))
    return network


def give_gradients(network: Network) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None


def train(network: Network, optimizer: Optimizer, like: Network) -> list[list[Tensor]]:
    """The parameters before and after each step; the gradients are numbers that the types of `like` have."""
    seen = []
    for step in range(STEPS):
        seen.append([parameter.detach().cpu().double().clone() for parameter in network.parameters()])
        optimizer.begin(step)
        generator = torch.Generator().manual_seed(step)
        for parameter, model in zip(network.parameters(), like.parameters(), strict=True):
            if parameter.requires_grad:
                numbers = torch.randn(parameter.shape, generator=generator).to(model.dtype)
                parameter.grad = torch.empty_like(parameter).copy_(numbers)
        optimizer.update(step)
        assert all(parameter.grad is None for parameter in network.parameters())
    return [*seen, [parameter.detach().cpu().double() for parameter in network.parameters()]]


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=[plain_process, pytest.mark.gpu])]
)
def test_training_follows_that_of_the_plain_optimizer_in_float64(name: str, dtype: torch.dtype, device: str) -> None:
    recipe = RECIPES[name]
    network, exact = network_of(recipe, dtype).to(device), network_of(recipe, torch.float64)
    exact.load_state_dict(network.state_dict())
    fused, plain = (Optimizer(each, recipe.optimizer, STEPS) for each in (network, exact))
    assert fused_update.install(fused)
    assert fused.renormalize == ([False, True] * 2 if name == "hive94" else [True] * 4)
    found, wanted = train(network, fused, network), train(exact, plain, network)
    for i, (each, parameter) in enumerate(network.named_parameters()):
        path = wanted[-1][i] - wanted[0][i]
        if not path.any():
            assert torch.equal(found[-1][i], found[0][i]), each
            continue
        error = (found[-1][i] - wanted[-1][i]).norm()
        rounding = torch.finfo(parameter.dtype).eps * (wanted[-1][i].norm() + path.norm())
        muon = each in fused.groups[0].names and fused.groups[0].muon
        assert error < 2 * rounding + (1e-3 * path.norm() if muon else 0), each
    if name != "hlb":  # whose whitening has no bias
        i = [each for each, _ in network.named_parameters()].index("whiten.bias")
        moved = [not torch.equal(a[i], b[i]) for a, b in itertools.pairwise(found)]
        assert moved == [True] * 2 + [False] * 2


def update(network: Network, optimizer: Optimizer, gradients: list[Tensor]) -> None:
    """The update of the first step by these gradients, which stay where they are."""
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient if parameter.requires_grad else None
    optimizer.update(0)


@pytest.mark.gpu
@plain_process
def test_a_captured_update_is_the_eager_one() -> None:
    recipe, weights = load_recipe("air94"), []
    for captured in (False, True):
        network = network_of(recipe, torch.float16).to("cuda")
        optimizer = Optimizer(network, recipe.optimizer, STEPS)
        assert fused_update.install(optimizer)
        gradients = [torch.empty_like(parameter) for parameter in network.parameters()]
        for i, gradient in enumerate(gradients):
            gradient.copy_(torch.randn(gradient.shape, generator=torch.Generator().manual_seed(i)))
        optimizer.begin(0)
        update(network, optimizer, gradients)  # compiles the kernels
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                update(network, optimizer, gradients)
            graph.replay()
        else:
            update(network, optimizer, gradients)
        weights.append([parameter.detach().clone() for parameter in network.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


@interpreted
def test_a_gradient_that_lies_otherwise_counts_the_same() -> None:
    weights = []
    for memory in (torch.channels_last, torch.contiguous_format):
        network = network_of(RECIPES["air94"], torch.float32)
        optimizer = Optimizer(network, RECIPES["air94"].optimizer, STEPS)
        assert fused_update.install(optimizer)
        for i, parameter in enumerate(network.parameters()):
            if parameter.requires_grad:
                gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
                parameter.grad = gradient.contiguous(memory_format=memory) if gradient.ndim == 4 else gradient
        network.group1.norm1.bias.grad = None  # as where backward never came: counts as zero
        optimizer.begin(0)
        optimizer.update(0)
        weights.append(network.state_dict())
    for name, each in weights[0].items():
        assert torch.equal(each, weights[1][name]), name


@interpreted
def test_parameters_that_are_no_matrices_in_memory_keep_the_plain_update() -> None:
    network = network_of(RECIPES["air94"], torch.float32)
    network.head.weight = nn.Parameter(torch.randn(24, 10).T)
    optimizer = Optimizer(network, RECIPES["air94"].optimizer, STEPS)
    assert not fused_update.install(optimizer) and optimizer.move is plain_update


@plain_process
def test_a_cpu_keeps_the_plain_update() -> None:
    optimizer = Optimizer(network_of(RECIPES["air94"], torch.float32), RECIPES["air94"].optimizer, STEPS)
    assert not fused_update.install(optimizer) and optimizer.move is plain_update


NO_LAUNCH = ("empty", "new_empty", "device", "_record_function")


class Launches(TorchDispatchMode):
    """The operators that launch kernels, by name, and the last range that each is in."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(NO_LAUNCH):
            self.names.append(name)
            if name.startswith("baddbmm"):  # its first argument is copied
                self.names.append("copy")
        return func(*args, **(kwargs or {}))


@plain_process
@pytest.mark.parametrize(("name", "step"), [("air94", 0), ("air94", 199), ("hive94", 1), ("fast94", 0), ("fast94", 1)])
def test_a_step_has_few_launches(name: str, step: int) -> None:
    """Over fake CUDA tensors. Momenta, packing, filters, all other parameters, and the products of Newton-Schulz: the
    Gram matrix, three polynomials, two of them applied to it (two products each), the product of three, the result."""
    recipe = load_recipe(name)
    network = network_of(recipe, torch.float16)
    with FakeTensorMode():
        fake(network)
        optimizer = Optimizer(network, recipe.optimizer, 200)
        assert fused_update.install(optimizer)
        optimizer.begin(step)
        counts = {}
        for move in (plain_update, fused_update.fused_update):
            give_gradients(network)
            optimizer.move = move
            with Launches() as launches:
                optimizer.update(step)
            counts[move] = launches.names
    fused = counts[fused_update.fused_update]
    assert sorted(set(fused)) == [
        "bmm",
        "triton_gram_polynomial",
        "triton_muon_momentum",
        "triton_muon_pack",
        "triton_muon_update",
        "triton_sgd",
    ]
    assert len(fused) == 15, fused
    assert len(counts[plain_update]) <= 65, counts[plain_update]


@plain_process
def test_each_launch_is_attributed_to_all_its_parameters() -> None:
    recipe = load_recipe("air94")
    network = network_of(recipe, torch.float16)
    with FakeTensorMode():
        fake(network)
        optimizer = Optimizer(network, recipe.optimizer, 200)
        assert fused_update.install(optimizer)
        optimizer.begin(0)
        give_gradients(network)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            optimizer.update(0)
    ranges = [event.name.removeprefix(UPDATE).split() for event in profiler.events() if event.name.startswith(UPDATE)]
    filters, others = sorted(ranges, key=len)
    assert sorted(filters) == sorted(optimizer.groups[0].names)
    assert sorted(filters + others) == sorted(name for name, p in network.named_parameters() if p.requires_grad)
