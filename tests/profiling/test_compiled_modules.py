"""Profiles of networks that `torch.compile` compiled, and of layers recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from profiling_helpers import CPU, Tape, assert_adds_up, layer_of, profile_network
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastcifar.profiling.attribution import NODE, attribute
from fastcifar.profiling.recording import WARM_UP_STEPS, settle, time_step
from fastcifar.profiling.targets import ProfileTarget


class Small(nn.Module):
    """A stem, a body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.run_body(self.stem(x)).mean((2, 3)))
        return out

    def run_body(self, x: Tensor) -> Tensor:
        """What a subclass does otherwise."""
        out: Tensor = self.body(x)
        return out


def in_place(network: nn.Module) -> nn.Module:
    """Compiled by its own method."""
    network.compile(backend="aot_eager")
    return network


def wrapped(network: nn.Module) -> nn.Module:
    """Compiled by the function."""
    compiled: nn.Module = torch.compile(network, backend="aot_eager")  # type: ignore[assignment]
    return compiled


@pytest.mark.parametrize("compile_network", [wrapped, in_place])
def test_a_compiled_network_is_one_layer(
    compile_network: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo.utils as dynamo

    compilations: list[int] = []  # at the beginning and the end of each timed step

    def timed(target: ProfileTarget) -> float:
        compilations.append(dynamo.counters["stats"]["unique_graphs"])
        seconds = time_step(target)
        compilations.append(dynamo.counters["stats"]["unique_graphs"])
        return seconds

    plain = profile_network(Small())
    monkeypatch.setattr("fastcifar.profiling.recording.time_step", timed)
    result = profile_network(compile_network(Small()))
    layer = layer_of(result, "network")
    assert result.recipe == "Small" and layer.kind == "Small (compiled)"
    assert [each.name for each in result.layers] == ["network", "loss"]
    for key in ("parameters", "forward_flops", "backward_flops"):
        assert getattr(layer, key) == sum(getattr(each, key) for each in plain.layers), key
    assert layer.output == [4, 10] and layer.forward_ms > 0 and layer.backward_ms > 0 and layer.optimizer_ms > 0
    assert 0 < layer.activation_bytes < result.peak_memory
    assert_adds_up(result.document())
    assert len(set(compilations)) == 1, "a step that was not warmed up, or compiled again to be recorded"


def test_a_compiled_part_is_one_layer() -> None:
    plain, network = profile_network(Small()), Small()
    network.body = wrapped(network.body)  # type: ignore[assignment]
    result = profile_network(network)
    assert [each.name for each in result.layers] == ["network.self", "stem", "body", "head", "loss"]
    body = layer_of(result, "body")
    parts = [layer for layer in plain.layers if layer.name.startswith("body")]
    assert body.kind == "Sequential (compiled)" and body.output == [4, 8, 8, 8]
    assert (body.flops, body.parameters) == tuple(
        sum(getattr(x, key) for x in parts) for key in ("flops", "parameters")
    )
    assert layer_of(result, "stem").flops == layer_of(plain, "stem").flops
    assert min(body.forward_ms, body.backward_ms, body.optimizer_ms) > 0
    assert_adds_up(result.document())


@pytest.mark.parametrize(
    ("compiler", "seconds", "steps"),
    [
        (False, [0.1, 0.1], 2),
        (False, [9, 0.1, 0.11], 3),
        (True, [9, 8, 0.1, 0.1, 0.09], 5),  # compiled twice, which takes as long
        (True, [2.0**-i for i in range(50)], WARM_UP_STEPS),  # never settles
    ],
)
def test_steps_run_until_their_times_settle(
    compiler: bool, seconds: list[float], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(seconds)
    monkeypatch.setattr("fastcifar.profiling.recording.time_call", lambda run, device: next(times))
    monkeypatch.setattr("fastcifar.profiling.recording.compiler_loaded", lambda: compiler)
    settle(ProfileTarget("none", nn.Identity(), lambda: None, 1, CPU, torch.float32))
    assert len(seconds) - len(list(times)) == steps


class Checkpointed(Small):
    """Recomputes its body in the backward pass: the module itself, or a function around its layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.as_function = options.pop("as_function")
        self.options = options

    def run_body(self, x: Tensor) -> Tensor:
        body = (lambda x: self.body(x).tanh()) if self.as_function else self.body
        out: Tensor = checkpoint(body, x, **self.options)
        return out


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_recomputed_layer_owns_its_backward_pass(use_reentrant: bool, as_function: bool) -> None:
    result = profile_network(Checkpointed(use_reentrant=use_reentrant, as_function=as_function), image=(3, 32, 32))
    assert_adds_up(result.document())
    assert result.unattributed_ms == 0
    forward = 4 * 32 * 32 * 2 * 8 * 8 * 9
    first, last = layer_of(result, "body.0"), layer_of(result, "body.2")
    assert (first.forward_flops, first.backward_flops) == (forward, 3 * forward)  # once more, and two gradients
    # Without reentry the last layer's output, which no gradient needs, need not be recomputed.
    stops_early = not use_reentrant and not as_function
    assert (last.forward_flops, last.backward_flops) == (forward, (2 if stops_early else 3) * forward)
    assert layer_of(result, "body.1").backward_ms > 0
    nodes = {item.op: item.layer for item in result.items if item.phase == "backward"}
    assert nodes["GeluBackward0"] == "body.1"
    if as_function:
        assert nodes["TanhBackward0"] == "network.self"


def test_a_recomputed_layer_is_known_where_backward_has_a_thread_of_its_own() -> None:
    """As on CUDA: that thread numbers the nodes it makes from 0, as the main thread did."""
    tape = Tape()
    with tape.range("phase: forward"), tape.range("layer: network"):
        with tape.range("layer: stem"), tape.host("aten::conv2d", **{"Sequence number": 0, "Fwd thread id": 0}):
            tape.launch(1, "stem", 1000, 1)
        with tape.host("CheckpointFunction", **{"Sequence number": 1, "Fwd thread id": 0}), tape.range("layer: body"):
            tape.launch(2, "body", 1010, 2)
    with tape.range("phase: backward"):
        node = {"Sequence number": 1, "Fwd thread id": 1}
        with tape.host(NODE + "CheckpointFunctionBackward", thread=2, **node):
            with (
                tape.range("layer: body", thread=2),
                tape.host("aten::mm", thread=2, **{"Sequence number": 0, "Fwd thread id": 0}),
            ):
                tape.launch(3, "body", 1020, 4, thread=2)
            with tape.host(NODE + "MmBackward0", thread=2, **{"Sequence number": 0, "Fwd thread id": 2}):
                tape.launch(4, "body_backward", 1030, 8, thread=2)
        with tape.host(NODE + "ConvolutionBackward0", thread=2, **{"Sequence number": 0, "Fwd thread id": 1}):
            tape.launch(5, "stem_backward", 1040, 16, thread=2)
    found = [(kernel.scope.phase, kernel.scope.layer, kernel.time) for kernel in attribute(tape.events, "cuda")]
    assert found == [
        ("forward", "stem", 1),
        ("forward", "body", 2),
        ("backward", "body", 4),
        ("backward", "body", 8),
        ("backward", "stem", 16),
    ]
