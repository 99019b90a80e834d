"""Sums by phase and layer: they add up, whatever the network is like."""

from __future__ import annotations

import json

import pytest
import torch
from profiling_helpers import assert_adds_up, cuda_step, layer_of, profile_network, small_target
from torch import Tensor, nn

from fastcifar.data.store import load_dataset
from fastcifar.profiling.attribution import attribute
from fastcifar.profiling.breakdown import break_down, group_times, index_layers
from fastcifar.profiling.profiler import profile
from fastcifar.profiling.recording import record
from fastcifar.profiling.result import summarize
from fastcifar.profiling.targets import recipe_target
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import choose_engine


@pytest.mark.parametrize("name", ["air94", "hlb", "hlb-first"])
def test_a_recipes_step_adds_up(name: str) -> None:
    overrides = ["network.norm.ghost=4"] if name == "hlb-first" else []
    (recording,) = record([small_target(name, *overrides)], 2)
    result = summarize(recording)
    assert_adds_up(result.document())
    json.dumps(result.document(), allow_nan=False)
    convs = [layer for layer in result.layers if layer.kind == "Conv2d" and layer.name != "whiten"]
    assert convs and all(min(layer.forward_ms, layer.backward_ms, layer.optimizer_ms) > 0 for layer in convs)
    assert all(layer.optimizer_shared for layer in convs)
    # Kernel time is the time in which an operator runs: the union of their intervals, taken from the events directly.
    ops = sorted((e["ts"], e["ts"] + e["dur"]) for e in recording.events if e.get("cat") == "cpu_op")
    union, until = 0.0, 0.0
    for start, end in ops:
        union += max(0.0, end - max(start, until))
        until = max(until, end)
    assert sum(kernel.time for kernel in recording.steps[-1].kernels) == pytest.approx(union, rel=1e-3)


def test_the_update_is_shared_by_size_among_the_layers_it_serves() -> None:
    index = index_layers(small_target("air94").network)
    sizes = index.parameters
    shares = index.update_shares(("group1.conv2.weight", "group2.conv2.weight"))
    assert shares["group1.conv2"] / shares["group2.conv2"] == sizes["group1.conv2"] / sizes["group2.conv2"]
    assert sum(shares.values()) == pytest.approx(1)
    assert "whiten" in index.update_shares(()) and sum(index.update_shares(()).values()) == pytest.approx(1)


def test_items_have_mean_deviation_and_count_over_the_steps() -> None:
    kernels = attribute(cuda_step(), "cuda")
    network = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3), "act": nn.GELU()})
    table = break_down(index_layers(network), [kernels, [*kernels, *kernels]])
    (gelu,) = [item for item in table.items if item.kernel == "gelu"]
    assert (gelu.phase, gelu.layer, gelu.op) == ("forward", "act", "aten::gelu")
    assert gelu.ms == pytest.approx(0.015) and gelu.count == 1.5
    assert gelu.std == pytest.approx(0.01 / 2**0.5)  # of 0.01 and 0.02 ms
    assert table.layer_times_ms["act"] == pytest.approx([0.03, 0.06])
    assert {item.kernel for item in table.items if item.phase is None} == {"gather"}
    by_kernel = {group.name: group for group in group_times(table.items, "kernel")}
    assert by_kernel["gather"].layers == pytest.approx({"data": 0.015, "unattributed": 0.009})
    assert by_kernel["gather"].phases == ["data"] and by_kernel["gather"].kernels == 3


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(x)))
        return out


def test_shared_parameters_are_counted_once() -> None:
    result = profile_network(Tied(), image=(32,))
    assert_adds_up(result.document())
    assert layer_of(result, "first").parameters == 32 * 32 + 32
    assert layer_of(result, "second").parameters == 32  # its bias
    assert layer_of(result, "second").flops > layer_of(result, "first").flops > 0


class Odd(nn.Module):
    """A frozen layer, an activation in place, a layer never called, and work outside all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 8, 3)
        self.act = nn.ReLU(inplace=True)
        self.scale = nn.Conv2d(8, 8, 1)
        self.spare = nn.Conv2d(8, 8, 3)
        self.flat, self.head = nn.Flatten(), nn.Linear(8 * 36, 10)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.scale(self.frozen(x)))
        return self.head(self.flat(x)) * 2


def test_layers_frozen_in_place_or_never_reached() -> None:
    result = profile_network(Odd())
    assert_adds_up(result.document())
    frozen, spare, act = layer_of(result, "frozen"), layer_of(result, "spare"), layer_of(result, "act")
    assert frozen.forward_ms > 0 and frozen.backward_ms == 0 and frozen.optimizer_ms == 0
    assert (frozen.forward_flops, frozen.backward_flops) == (2 * 4 * 8 * 36 * 27, 0)
    assert spare.total_ms == spare.optimizer_ms and spare.flops == 0 and spare.output is None
    assert act.forward_ms > 0 and act.backward_ms > 0 and act.parameters == 0
    assert layer_of(result, "network.self").forward_ms > 0  # the doubling of the logits
    assert layer_of(result, "head").output == [4, 10]


def test_a_bare_layer_is_a_network() -> None:
    result = profile_network(nn.Linear(12, 10), image=(12,))
    assert_adds_up(result.document())
    assert [layer.name for layer in result.layers] == ["network", "loss"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["air94", "hlb"])
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_on_a_gpu_nearly_all_kernels_are_attributed(engine: str, name: str) -> None:
    device = torch.device("cuda")
    target = recipe_target(load_recipe(name), load_dataset("shapes"), device, choose_engine(engine, device))
    assert_adds_up(profile(target, 3).document())
