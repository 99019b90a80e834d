"""FLOPs and bytes by layer, compared with PyTorch's counter and with what can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from profiling_helpers import layer_of, profile_network, small_target
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.profiling.profiler import profile
from fastcifar.profiling.recording import count_ops


@pytest.mark.parametrize("name", ["air94", "hlb"])
def test_flops_are_the_flop_counters_for_every_layer(name: str) -> None:
    target = small_target(name)
    result = profile(target, 2)
    with FlopCounterMode(display=False) as counter:
        target.run()
    by_module = {key.removeprefix("Network."): sum(n.values()) for key, n in counter.get_flop_counts().items()}
    for layer in result.layers:
        if layer.kind in ("Conv2d", "Linear", "Head"):
            assert layer.flops == by_module[layer.name], layer.name
        elif not layer.name.endswith(".self"):
            assert layer.flops == 0
    costs, _ = count_ops(target)
    updates = sum(cost.flops for (phase, _), cost in costs.items() if phase == "optimizer")
    assert sum(layer.flops for layer in result.layers) + updates == counter.get_total_flops()


def test_a_replayed_graph_is_counted_by_its_step_not_captured() -> None:
    target = small_target("tiny")
    replayed = replace(target, run=lambda: None, run_uncaptured=target.run)
    target.run()  # the first step makes the momenta
    costs, outputs = count_ops(target)
    assert costs and outputs and count_ops(replayed) == (costs, outputs)


class Repeated(nn.Module):
    """One layer used `times` times, and a head."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.layer = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        out: Tensor = self.head(x)
        return out


def test_a_layer_used_twice_counts_twice() -> None:
    once, twice = (layer_of(profile_network(Repeated(times), image=(64,)), "layer") for times in (1, 2))
    assert once.parameters == twice.parameters == 64 * 64 + 64
    # The first call's backward makes no gradient of the batch, the second's does.
    forward = 2 * 4 * 64 * 64
    assert (once.forward_flops, once.backward_flops) == (forward, forward)
    assert (twice.forward_flops, twice.backward_flops) == (2 * forward, 3 * forward)
    assert twice.kernels > once.kernels


def test_bytes_are_inputs_weights_and_outputs_once_each() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 10))
    result = profile_network(network, image=(8,), batch=4)
    x, weights, hidden = 4 * 8, 8 * 16 + 16, 4 * 16
    linear, tanh = layer_of(result, "0"), layer_of(result, "1")
    # Backward reads the gradient of the output and the input, and writes the gradients of weight and bias; the input
    # of the network needs none.
    assert linear.forward_bytes == 4 * (x + weights + hidden)
    assert linear.backward_bytes == 4 * (hidden + x + 8 * 16 + 16)
    # The activation reads its input and writes its output, then reads that and its gradient and writes the other.
    assert (tanh.forward_bytes, tanh.backward_bytes) == (4 * 2 * hidden, 4 * 3 * hidden)


class Recomputed(nn.Module):
    """A layer whose forward is computed again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.body, x, use_reentrant=False))
        return out


def test_a_recomputed_layer_counts_its_second_forward() -> None:
    layer = layer_of(profile_network(Recomputed(), image=(64,)), "body.0")
    assert layer.flops == 3 * (2 * 4 * 64 * 64)  # twice forward, once for the gradient of its weights


class Pair(nn.Module):
    """A layer, and one ten times as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.light, self.heavy = (nn.Conv2d(4, width, 3, padding=1) for width in (4, 40))

    def forward(self, x: Tensor) -> Tensor:
        out = self.light(x).mean() + self.heavy(x).mean()
        return out.expand(len(x), 10)


def test_a_layer_ten_times_as_wide_costs_ten_times_the_flops() -> None:
    result = profile_network(Pair(), image=(4, 8, 8))
    light, heavy = layer_of(result, "light"), layer_of(result, "heavy")
    assert light.flops > 0 and heavy.flops == 10 * light.flops
