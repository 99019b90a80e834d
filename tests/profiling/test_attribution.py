"""Attribution of recorded events, on steps written by hand."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiling_helpers import Tape, cuda_step

from fastcifar.profiling.attribution import KernelTime, Scope, annotate, attribute, matched_scopes, split_overlap


def test_a_cuda_trace_is_attributed_with_overlap() -> None:
    kernels = attribute(cuda_step(), "cuda")
    times: dict[Any, float] = defaultdict(float)
    for kernel in kernels:
        times[kernel.scope.phase, kernel.scope.layer] += kernel.time
    assert times == {
        ("data", None): 10,
        ("forward", "conv"): 40,
        ("forward", "act"): 10,
        ("forward", "network"): 5,
        ("loss", "loss"): 5,
        ("backward", "loss"): 5,  # its own node, and the gradient that everything begins with
        ("backward", "network"): 5,
        ("backward", "act"): 20,
        ("backward", "conv"): 42,
        ("optimizer", None): 8,
        (None, None): 6,  # no call is known to have launched it
    }
    by_name = {kernel.kernel: kernel for kernel in kernels}
    assert by_name["winograd"].time == 25  # alone for 20, and half of the 10 beside the next
    assert by_name["gemm"].time == 15
    assert by_name["gemm"].scope.op == "aten::conv2d"
    assert by_name["wgrad"].scope.op == "ConvolutionBackward0"
    assert by_name["multi_tensor"].scope.parameters == ("conv.weight", "conv.bias")


def replayed_step(kernels: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """A copy of the step's plan, then a graph of these kernels with their durations."""
    tape = Tape()
    with tape.range("phase: data"), tape.host("aten::copy_"):
        tape.launch(1, "copy_plan", 1000, 3)
    with tape.host("cudaGraphLaunch", "cuda_runtime", correlation=2):
        pass
    start = 1010.0
    for name, duration in kernels:
        tape.kernel(2, name, start, duration)
        start += duration + 1
    random.Random(1).shuffle(tape.events)
    return tape.events


def test_kernels_of_a_replay_are_those_of_the_step_not_captured() -> None:
    eager = attribute(cuda_step(), "cuda")[:-1]  # without the last, whose launch is unknown
    names = [kernel.kernel for kernel in eager]
    captured = names[1:]  # the gather of the plan stays outside
    kernels = attribute(replayed_step([(name, 2.0) for name in captured]), "cuda", eager)
    assert [kernel.kernel for kernel in kernels] == ["copy_plan", *captured]
    assert kernels[0].scope.phase == "data"
    assert [kernel.scope for kernel in kernels[1:]] == [kernel.scope for kernel in eager[1:]]
    assert {kernel.time for kernel in kernels[1:]} == {2.0}


def test_a_replay_with_a_few_other_kernels_is_the_same_step() -> None:
    eager = attribute(cuda_step(), "cuda")[:-1]
    names, scopes = [kernel.kernel for kernel in eager], [kernel.scope for kernel in eager]
    inside = next(i for i in range(1, len(names)) if scopes[i - 1] == scopes[i])
    border = next(i for i in range(2, len(names)) if scopes[i - 1] != scopes[i])

    def replayed(names: list[str]) -> list[Scope]:
        kernels = attribute(replayed_step([(name, 2.0) for name in names]), "cuda", eager)
        return [kernel.scope for kernel in kernels[1:]]

    for at, scope in ((inside, scopes[inside]), (border, Scope())):
        more = [*names[:at], "other", *names[at:]]
        assert replayed(more) == [*scopes[:at], scope, *scopes[at:]]
        fewer = [*names[:at], *names[at + 1 :]]
        assert replayed(fewer) == [*scopes[:at], *scopes[at + 1 :]]
    replaced = ["other" if name == "gelu" else name for name in names]
    assert [a == b for a, b in zip(replayed(replaced), scopes, strict=True)] == [name != "gelu" for name in names]
    assert replayed(["x", "y"]) == [Scope(), Scope()]


def test_setting_memory_is_known_by_any_of_its_names() -> None:
    names = ["a", "Memset (Device)", "b"]
    scopes = matched_scopes(
        ["a", "memset32", "b"], [KernelTime(name, Scope(layer=str(i)), 1.0) for i, name in enumerate(names)]
    )
    assert [scope.layer for scope in scopes] == ["0", "1", "2"]


def test_the_trace_for_a_viewer_has_phase_and_layer() -> None:
    events = annotate(cuda_step(), {"network": "network.self"})
    by_name = {event["name"]: event["args"] for event in events}
    assert by_name["gemm"] | {"phase": "forward", "layer": "conv"} == by_name["gemm"]
    assert by_name["add"]["layer"] == "network.self"
    assert by_name["gelu_backward"] | {"phase": "backward", "layer": "act"} == by_name["gelu_backward"]
    assert "layer" not in by_name["multi_tensor"] and by_name["multi_tensor"]["phase"] == "optimizer"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_overlap_is_split_evenly(pairs: list[tuple[int, int]]) -> None:
    """Compared with a clock that ticks in whole microseconds."""
    spans = [(float(start), float(start + length)) for start, length in pairs]
    expected: dict[int, float] = defaultdict(float)
    for tick in range(50):
        running = [i for i, (start, end) in enumerate(spans) if start <= tick < end]
        for i in running:
            expected[i] += 1 / len(running)
    times = split_overlap(spans, range(len(spans)))
    assert {i: time for i, time in times.items() if time} == pytest.approx(expected)


def test_an_operators_own_time_is_without_the_operators_it_called() -> None:
    tape = Tape()
    with tape.range("phase: forward"), tape.range("layer: network"), tape.host("outer"):
        for _ in range(2):
            with tape.host("inner", own=4):
                pass
    times: dict[str, float] = defaultdict(float)
    for kernel in attribute(tape.events, "cpu"):
        times[kernel.kernel] += kernel.time
    assert times == {"outer": 2, "inner": 16}
