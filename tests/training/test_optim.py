"""Optimizers, held against PyTorch's own and against their definitions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcifar.model.network import Network
from fastcifar.recipes.parse import load_recipe, recipe_names
from fastcifar.recipes.schema import Ema as EmaRecipe
from fastcifar.training.optim import Ema, Optimizer, parameter_groups, plain_update, renormalized_steps

STEPS = 8


def network_of(name: str, *overrides: str) -> Network:
    network = Network(load_recipe(name, *overrides).network, 10)
    network.initialize(torch.Generator().manual_seed(0))
    return network


def give_gradients(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_every_trained_parameter_is_in_one_group() -> None:
    for name in recipe_names():
        network = network_of(name)
        members = parameter_groups(network)
        assert sum(map(len, members.values())) == sum(p.requires_grad for p in network.parameters())
        for (section, share), parameters in members.items():
            assert share == 1
            assert all((p.ndim > 1) == (section in ("filters", "head")) for p in parameters.values())


def test_sgd_is_pytorchs_sgd() -> None:
    """The whole of `hlb`, whose parameters all learn by SGD, with its schedule."""
    settings = load_recipe("hlb", "network.widths=[8, 8, 8]")
    ours, theirs = (Network(settings.network, 10) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(ours, settings.optimizer, STEPS)
    groups = []
    for (section, _), parameters in parameter_groups(theirs).items():
        part = getattr(settings.optimizer, section)
        groups.append({"params": list(parameters.values()), "weight_decay": part.weight_decay, "section": part})
    reference = torch.optim.SGD(groups, lr=1, momentum=0.85, nesterov=True)
    from fastcifar.recipes.schedule import over_steps

    for step in range(STEPS):
        for network in (ours, theirs):
            give_gradients(network, step)
        optimizer.begin(step)
        optimizer.update(step)
        for group in reference.param_groups:
            group["lr"] = group["section"].lr * over_steps(group["section"].schedule, STEPS)[step]
        reference.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_a_frozen_bias_has_no_gradient_and_does_not_move() -> None:
    network = network_of("tiny")
    settings = load_recipe("tiny", "optimizer.whiten_bias.schedule=[[0, 1], [0.5, 0]]")
    optimizer = Optimizer(network, settings.optimizer, STEPS)
    bias, seen = network.whiten.bias, []
    momentum, frozen = optimizer.groups[-1].momenta[0], torch.tensor(0.0)
    assert bias is not None
    for step in range(STEPS):
        optimizer.begin(step)
        network(torch.randn(4, 3, 32, 32)).sum().backward()
        assert (bias.grad is not None) == (step < STEPS // 2)
        optimizer.update(step)
        seen.append(bias.detach().clone())
        if step == STEPS // 2 - 1:
            frozen = momentum.clone()
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True] * (STEPS // 2 - 1) + [False] * (STEPS // 2)
    assert frozen.any() and torch.equal(momentum, frozen)  # it is not updated at a rate of zero, but not at all


def test_frozen_groups_stay_put_and_those_behind_them_learn_on() -> None:
    """Group 1 for half of the run, group 2 for three quarters; their rates fall to zero in that time."""
    recipe = load_recipe(
        "tiny", "optimizer.freeze=[0.5, 0.75, 1]", "optimizer.whiten_bias.schedule=[[0, 1], [0.25, 0]]"
    )
    network = Network(recipe.network, 10)
    optimizer = Optimizer(network, recipe.optimizer, 8)
    names = {name: p for name, p in network.named_parameters() if p.requires_grad}
    moved: dict[str, list[int]] = {name: [] for name in names}
    for step in range(8):
        before = {name: p.detach().clone() for name, p in names.items()}
        optimizer.begin(step)
        network(torch.randn(4, 3, 32, 32)).sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in names.values())
        optimizer.update(step)
        for name, p in names.items():
            moved[name] += [] if torch.equal(p, before[name]) else [step]
    ends = {"whiten": 2, "group1": 4, "group2": 6, "group3": 8, "head": 8}
    assert moved == {name: list(range(ends[name.partition(".")[0]])) for name in names}
    rates = {names[0]: rate for names, rate in zip([g.names for g in optimizer.groups], optimizer.rates.T, strict=True)}
    peak = recipe.optimizer.filters.lr
    torch.testing.assert_close(rates["group1.conv1.weight"][:5], peak * torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    assert optimizer.rate(1) == pytest.approx(peak * 7 / 8)  # of what is trained to the end


def test_a_projection_is_frozen_with_the_group_that_it_feeds() -> None:
    recipe = load_recipe("hlb", "optimizer.freeze=[0.5, 1, 1]")
    shares = {
        name: share
        for (_, share), members in parameter_groups(Network(recipe.network, 10), recipe.optimizer.freeze).items()
        for name in members
    }
    assert shares["project.conv.weight"] == shares["project.norm.bias"] == shares["group1.conv1.weight"] == 0.5
    assert shares["group2.conv1.weight"] == shares["head.weight"] == 1


def test_muon_sets_the_norm_of_filters_before_it_moves_them() -> None:
    network = network_of("tiny")
    settings = load_recipe("tiny", "optimizer.filters.lr=0")
    optimizer = Optimizer(network, settings.optimizer, 4)
    give_gradients(network, 0)
    optimizer.groups[0].trained_steps = 4  # a rate of zero would freeze them
    optimizer.update(0)
    for parameter in parameter_groups(network)["filters", 1.0].values():
        assert float(parameter.detach().norm()) == pytest.approx(len(parameter) ** 0.5, rel=1e-4)


def test_hive94_renormalises_at_the_anchors_steps() -> None:
    flags = renormalized_steps(load_recipe("hive94").optimizer.filters.renormalize, 243)
    expected, last = [], 0
    for count in range(1, 244):  # as in cifar10_speedrun.py
        expected.append(count - last >= 2 + int(15 * count / 243))
        last = count if expected[-1] else last
    assert flags == expected


def test_the_average_follows_its_definition() -> None:
    network = network_of("tiny")
    ema = Ema(network, EmaRecipe(start=0.5, decay=0.9, every=2), 10)
    expected: Tensor | None = None
    for step in range(10):
        with torch.no_grad():
            network.head.weight.copy_(torch.full_like(network.head.weight, float(step)))
            network.group1.norm1.running_mean.fill_(step)
        ema.update(step)
        if step >= 5 and (step + 1) % 2 == 0:
            now = torch.tensor(float(step))
            expected = now if expected is None else 0.9 * expected + 0.1 * now
    ema.apply()
    assert expected is not None
    assert float(network.head.weight[0, 0]) == pytest.approx(float(expected))
    assert float(network.group1.norm1.running_mean[0]) == pytest.approx(float(expected))


def test_no_average_leaves_the_network_as_it_is() -> None:
    network = network_of("tiny")
    before = network.head.weight.detach().clone()
    ema = Ema(network, EmaRecipe(), 10)
    ema.update(9)
    ema.apply()
    assert torch.equal(network.head.weight, before)


def test_state_and_restore_go_on_as_if_nothing_had_happened() -> None:
    settings = load_recipe("tiny")
    straight, broken = network_of("tiny"), network_of("tiny")
    one, two = Optimizer(straight, settings.optimizer, STEPS), Optimizer(broken, settings.optimizer, STEPS)
    for step in range(STEPS):
        for network, optimizer in ((straight, one), (broken, two)):
            optimizer.begin(step)
            give_gradients(network, step)
            optimizer.update(step)
        if step == 4:
            state, weights = two.state(), broken.state_dict()
            again = network_of("tiny")
            again.load_state_dict(weights)
            broken, two = again, Optimizer(again, settings.optimizer, STEPS)
            two.restore([[m.clone() for m in group] for group in state])
    for mine, other in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_reset_optimizer_begins_anew_in_the_same_memory() -> None:
    settings = load_recipe("hive94", "network.widths=[8, 8, 8]")
    network, fresh = (network_of("hive94", "network.widths=[8, 8, 8]") for _ in range(2))
    used = Optimizer(network, settings.optimizer, STEPS)
    addresses = [m.data_ptr() for group in used.state() for m in group]
    for step in range(STEPS):
        used.begin(step)
        give_gradients(network, step)
        used.update(step)
    assert all(bool(group.momenta[0].any()) for group in used.groups)
    network.load_state_dict(fresh.state_dict())
    used.reset()
    assert [m.data_ptr() for group in used.state() for m in group] == addresses
    new = Optimizer(fresh, settings.optimizer, STEPS)
    for step in range(STEPS):
        for one, optimizer in ((network, used), (fresh, new)):
            optimizer.begin(step)
            give_gradients(one, step)
            optimizer.update(step)
    for (name, mine), other in zip(network.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_an_average_begins_anew_in_every_run() -> None:
    network = network_of("tiny")
    ema = Ema(network, EmaRecipe(start=0.5, decay=0.9), 4)
    for first in (0.0, 100.0):
        for step in range(4):
            with torch.no_grad():
                network.head.weight.fill_(first + step)
            ema.update(step)
        assert float(ema.averages[-1][0, 0]) == pytest.approx(first + 0.9 * 2 + 0.1 * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_many_tensors_share_a_launch_where_they_have_one_type(dtype: torch.dtype) -> None:
    """PyTorch takes a scalar on the device in one launch only in the type of the tensors (ForeachBinaryOpScalarTensor):
    the rates have it."""
    network = network_of("hive94", "network.widths=[8, 8, 8]").to(dtype)
    optimizer = Optimizer(network, load_recipe("hive94").optimizer, STEPS)
    optimizer.begin(0)
    with torch.no_grad(), Recorder() as recorder:
        plain_update(optimizer.groups, optimizer.now, renormalize=False)
    scaled = [args for name, args in recorder.calls if name == "_foreach_mul_" and isinstance(args[1], Tensor)]
    assert len(scaled) == len(optimizer.groups)
    assert {each.dtype for args in scaled for each in (*args[0], args[1])} == {dtype}


def test_groups_of_two_types_have_rates_in_float32() -> None:
    """As where norms are in float32, and other biases in half precision."""
    network = network_of("tiny")
    network.half()
    network.group1.norm1.float()
    optimizer = Optimizer(network, load_recipe("tiny").optimizer, STEPS)
    assert {group.name: group.dtype for group in optimizer.groups} == {
        "filters": torch.float16,
        "head": torch.float16,
        "biases": torch.float32,
        "whiten_bias": torch.float16,
    }


class Recorder(TorchDispatchMode):
    """Keeps the name and the arguments of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))
