"""The breakdown of a step, held against what is known another way."""

from __future__ import annotations

import json
import operator
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call, Cli, few_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastcifar
from fastcifar.cli.display.profile import BYS, report, rows_of, tree
from fastcifar.data.store import load_dataset
from fastcifar.profiling import profiler
from fastcifar.profiling.attribution import NODE, Context, annotated, attribute, split
from fastcifar.profiling.breakdown import Rows
from fastcifar.profiling.op_counter import OpCounter
from fastcifar.profiling.result import Layer, comparison
from fastcifar.profiling.targets import Subject, run_of, subject_of
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.annotations import PHASES

CPU = torch.device("cpu")
PROFILE = ["profile", "tiny", "--dataset", "shapes", "--batch", "8", "--steps", "2", "--threads", "1"]


def subject(name: str, *overrides: str) -> Subject:
    small = ["network.widths=[8, 16, 16]", "training.batch_size=8", *overrides]
    return subject_of(load_recipe(name, *small), load_dataset("shapes"), CPU)


def measured(network: nn.Module, *, image: tuple[int, ...] = (3, 8, 8), batch: int = 4, steps: int = 2) -> Any:
    """The profile of training steps of any network that gives ten logits."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    labels = torch.arange(batch) % 10
    return fastcifar.profile(network, F.cross_entropy, optimizer, torch.randn(batch, *image), labels, steps)


def row(profile: Any, name: str) -> Layer:
    (found,) = [layer for layer in profile.layers if layer.name == name]
    return found


def adds_up(document: dict[str, Any]) -> None:
    """What DESIGN.md promises of a profile's sums."""
    phases, layers = document["phases"], document["layers"]
    assert list(phases) == list(PHASES)
    assert sum(phases.values()) + document["unattributed_ms"] == pytest.approx(document["kernel_ms"], rel=1e-9)
    for phase in ("forward", "backward"):
        assert sum(layer[f"{phase}_ms"] for layer in layers) == pytest.approx(phases[phase], rel=1e-9)
    assert sum(layer["optimizer_ms"] for layer in layers) <= phases["optimizer"] * (1 + 1e-9)
    assert document["idle_ms"] >= 0
    assert document["unattributed_ms"] <= 0.02 * document["kernel_ms"]
    for group in ("kernels", "ops"):
        assert sum(item["ms"] for item in document[group]) == pytest.approx(document["kernel_ms"], rel=1e-9)


# ------------------------------------------------------------------------------------------- attribution, made by hand


class Tape:
    """Events of the profiler, written by hand: `with tape.host(...)` nests them as calls nest."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.clock = 100.0

    def host(self, name: str, cat: str = "cpu_op", thread: int = 1, own: float = 1.0, **arguments: Any) -> Any:
        tape = self

        class Call:
            def __enter__(self) -> None:
                self.start = tape.clock
                tape.clock += own

            def __exit__(self, *error: object) -> None:
                tape.clock += own
                event = {"ph": "X", "cat": cat, "name": name, "tid": thread, "pid": 1, "ts": self.start}
                tape.events.append({**event, "dur": tape.clock - self.start, "args": arguments})

        return Call()

    def range(self, name: str, thread: int = 1) -> Any:
        return self.host(name, "user_annotation", thread)

    def launch(
        self, number: int, name: str, start: float, duration: float, thread: int = 1, cat: str = "kernel"
    ) -> None:
        with self.host("cudaLaunchKernel", "cuda_runtime", thread, correlation=number):
            pass
        event = {"ph": "X", "cat": cat, "name": name, "tid": 7, "pid": 0, "ts": start, "dur": duration}
        self.events.append({**event, "args": {"correlation": number}})


def cuda_step() -> list[dict[str, Any]]:
    """A step on CUDA: two layers, a kernel that is no operator's child, backward in a thread of its own, overlap."""
    tape = Tape()
    with tape.range("phase: data"), tape.host("aten::index"):
        tape.launch(1, "gather", 1000, 10)
    with tape.range("phase: forward"), tape.range("layer: network"):
        with tape.range("layer: conv"), tape.host("aten::conv2d", **{"Sequence number": 5}):
            tape.launch(2, "winograd", 1010, 30)
            with tape.host("aten::cudnn_convolution"):
                tape.launch(3, "gemm", 1030, 20)  # ten microseconds of it beside the kernel before
        with tape.range("layer: act"):
            with tape.host("aten::empty", **{"Sequence number": 6}):  # makes no node: the number is the next one's
                pass
            with tape.host("aten::gelu", **{"Sequence number": 6}):
                tape.launch(4, "gelu", 1050, 10)
        with tape.host("aten::add", **{"Sequence number": 7}):
            tape.launch(5, "add", 1060, 5)
    with tape.range("phase: loss"), tape.host("aten::cross_entropy_loss", **{"Sequence number": 8}):
        tape.launch(6, "softmax", 1065, 5)
    with tape.range("phase: backward"):
        with tape.host("aten::ones_like"):
            tape.launch(7, "fill", 1070, 1, cat="gpu_memset")
        for number, name, kernel, start, time in [
            (8, "CrossEntropyBackward0", "softmax_backward", 1071, 4),
            (7, "AddBackward0", "copy", 1075, 5),
            (6, "GeluBackward0", "gelu_backward", 1080, 20),
            (5, "ConvolutionBackward0", "wgrad", 1100, 40),
        ]:
            with tape.host(NODE + name, thread=2, **{"Sequence number": number}), tape.host(name, thread=2):
                tape.launch(10 + number, kernel, start, time, thread=2)
        with tape.host(NODE + "torch::autograd::AccumulateGrad", thread=2):
            tape.launch(20, "accumulate", 1140, 2, thread=2)
    with tape.range("phase: optimizer"), tape.range("update: conv.weight conv.bias"), tape.host("aten::_foreach_add_"):
        tape.launch(21, "multi_tensor", 1150, 8)
    tape.events.append({**tape.events[1], "cat": "kernel", "ts": 1200, "dur": 6, "args": {"correlation": 99}})
    random.Random(0).shuffle(tape.events)
    return tape.events


def test_a_cuda_trace_is_attributed_with_overlap() -> None:
    works = attribute(cuda_step(), "cuda")
    times: dict[Any, float] = defaultdict(float)
    for work in works:
        times[work.context.phase, work.context.layer] += work.time
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
        (None, None): 6,  # nobody is known to have launched it
    }
    kernels = {work.kernel: work for work in works}
    assert kernels["winograd"].time == 25  # alone for 20, and half of the 10 beside the next
    assert kernels["gemm"].time == 15
    assert kernels["gemm"].context.op == "aten::conv2d"
    assert kernels["wgrad"].context.op == "ConvolutionBackward0"
    assert kernels["multi_tensor"].context.parameters == ("conv.weight", "conv.bias")


def replayed_step(kernels: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """A copy of the step's plan, then a graph of these kernels with their durations."""
    tape = Tape()
    with tape.range("phase: data"), tape.host("aten::copy_"):
        tape.launch(1, "copy_plan", 1000, 3)
    with tape.host("cudaGraphLaunch", "cuda_runtime", correlation=2):
        pass
    start = 1010.0
    for name, duration in kernels:
        event = {"ph": "X", "cat": "kernel", "name": name, "tid": 7, "pid": 0, "ts": start, "dur": duration}
        tape.events.append({**event, "args": {"correlation": 2}})
        start += duration + 1
    random.Random(1).shuffle(tape.events)
    return tape.events


def test_kernels_of_a_replay_are_those_of_the_step_not_captured() -> None:
    plain = attribute(cuda_step(), "cuda")[:-1]  # the last one nobody launched
    names = [work.kernel for work in plain]
    captured = names[1:]  # the gather of the plan stays outside
    works = attribute(replayed_step([(name, 2.0) for name in captured]), "cuda", plain)
    assert [work.kernel for work in works] == ["copy_plan", *captured]
    assert works[0].context.phase == "data"
    assert [work.context for work in works[1:]] == [work.context for work in plain[1:]]
    assert {work.time for work in works[1:]} == {2.0}
    strange = ["other" if name == "gelu" else name for name in captured]
    works = attribute(replayed_step([(name, 2.0) for name in strange]), "cuda", plain)
    assert all(work.context == Context() for work in works[1:]), "with another kernel it is another step"
    more = attribute(replayed_step([(name, 2.0) for name in [*names, "a", "b"]]), "cuda", plain)
    assert all(work.context == Context() for work in more[1:]), "a graph of more kernels is another step"


def test_the_trace_for_a_viewer_says_phase_and_row() -> None:
    events = annotated(cuda_step(), {"network": "network.self"})
    by_name = {event["name"]: event["args"] for event in events}
    assert by_name["gemm"] | {"phase": "forward", "layer": "conv"} == by_name["gemm"]
    assert by_name["add"]["layer"] == "network.self"
    assert by_name["gelu_backward"] | {"phase": "backward", "layer": "act"} == by_name["gelu_backward"]
    assert "layer" not in by_name["multi_tensor"] and by_name["multi_tensor"]["phase"] == "optimizer"


intervals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=12)


@given(intervals)
@settings(max_examples=300, deadline=None)
def test_overlap_is_split_evenly(pairs: list[tuple[int, int]]) -> None:
    """Against a clock that ticks in whole microseconds."""
    spans = [(float(start), float(start + length)) for start, length in pairs]
    expected: dict[int, float] = defaultdict(float)
    for tick in range(50):
        running = [i for i, (start, end) in enumerate(spans) if start <= tick < end]
        for i in running:
            expected[i] += 1 / len(running)
    found = split(spans, range(len(spans)))
    assert {i: time for i, time in found.items() if time} == pytest.approx(expected)


def test_an_operators_own_time_is_without_the_operators_it_called() -> None:
    tape = Tape()
    with tape.range("phase: forward"), tape.range("layer: network"), tape.host("outer"):
        for _ in range(2):
            with tape.host("inner", own=4):
                pass
    times: dict[str, float] = defaultdict(float)
    for work in attribute(tape.events, "cpu"):
        times[work.kernel] += work.time
    assert times == {"outer": 2, "inner": 16}


# -------------------------------------------------------------------------------------------- a recipe's step, for real


@pytest.mark.parametrize("name", ["air94", "hlb", "hlb-first"])
def test_a_recipes_step_adds_up(name: str) -> None:
    overrides = ["network.norm.ghost=4"] if name == "hlb-first" else []
    found = profiler.profile(subject(name, *overrides), 2)
    adds_up(found.document())
    json.dumps(found.document(), allow_nan=False)
    convs = [layer for layer in found.layers if layer.kind == "Conv2d" and layer.name != "whiten"]
    assert all(layer.forward_ms > 0 and layer.backward_ms > 0 and layer.optimizer_ms > 0 for layer in convs)
    assert all(layer.optimizer_shared for layer in convs)
    # Kernels are the time in which an operator runs: the union of their intervals, read off the events themselves.
    ops = sorted((e["ts"], e["ts"] + e["dur"]) for e in found.events if e.get("cat") == "cpu_op")
    union, until = 0.0, 0.0
    for start, end in ops:
        union += max(0.0, end - max(start, until))
        until = max(until, end)
    works = attribute(found.events, "cpu")
    assert sum(work.time for work in works) == pytest.approx(union, rel=1e-3)


@pytest.mark.parametrize("name", ["air94", "hlb"])
def test_flops_are_the_flop_counters_for_every_layer(name: str) -> None:
    chosen = subject(name)
    found = profiler.profile(chosen, 2)
    with FlopCounterMode(display=False) as counter:
        chosen.run()
    whole = counter.get_flop_counts()
    forward = {key.removeprefix("Network."): sum(counts.values()) for key, counts in whole.items()}
    for layer in found.layers:
        if layer.kind in ("Conv2d", "Linear", "Head"):
            assert layer.flops == forward[layer.name], layer.name
        elif not layer.name.endswith(".self"):
            assert layer.flops == 0
    updates = sum(count.flops for (phase, _), count in chosen_counts(chosen).items() if phase == "optimizer")
    assert sum(layer.flops for layer in found.layers) + updates == counter.get_total_flops()


def chosen_counts(chosen: Subject) -> Any:
    counting = OpCounter()
    with profiler.layers(chosen.network), counting:
        chosen.run()
    return counting.counts


def test_a_step_that_was_recorded_is_the_step_that_trains() -> None:
    """The ranges and the recording change nothing in what is computed, and leave nothing behind."""
    plain, recorded = subject("tiny"), subject("tiny")
    before = [len(module._forward_hooks) for module in recorded.network.modules()]
    recorder = profiler.Recorder(recorded)  # counts one step
    recorder.record()
    plain.run()
    plain.run()
    for a, b in zip(plain.network.state_dict().values(), recorded.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [len(module._forward_hooks) for module in recorded.network.modules()] == before


def test_the_update_is_shared_by_size_among_the_layers_it_serves() -> None:
    rows = Rows(subject("air94").network)
    sizes = rows.parameters
    shares = rows.shares(("group1.conv2.weight", "group2.conv2.weight"))
    assert shares["group1.conv2"] / shares["group2.conv2"] == sizes["group1.conv2"] / sizes["group2.conv2"]
    assert sum(shares.values()) == pytest.approx(1)
    assert "whiten" in rows.shares(()) and sum(rows.shares(()).values()) == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------- any network


class Twice(nn.Module):
    """One layer used `times` times, and nothing else."""

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
    once, twice = (row(measured(Twice(times), image=(64,)), "layer") for times in (1, 2))
    assert once.parameters == twice.parameters == 64 * 64 + 64
    # The first call's backward makes no gradient of the batch, the second's does.
    forward = 2 * 4 * 64 * 64
    assert once.flops == 2 * forward
    assert twice.flops == 2 * forward + 3 * forward
    assert twice.kernels > once.kernels


def test_a_heavier_layer_shows_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.light, self.heavy = (nn.Conv2d(16, width, 3, padding=1) for width in (16, 160))

        def forward(self, x: Tensor) -> Tensor:
            out = self.light(x).mean() + self.heavy(x).mean()
            return out.expand(len(x), 10)

    found = measured(Pair(), image=(16, 32, 32), batch=16, steps=4)
    light, heavy = row(found, "light"), row(found, "heavy")
    assert heavy.flops == 10 * light.flops
    assert heavy.total_ms > 3 * light.total_ms
    adds_up(found.document())


def test_shared_parameters_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.second(self.first(x)))
            return out

    found = measured(Tied(), image=(32,))
    adds_up(found.document())
    assert row(found, "first").parameters == 32 * 32 + 32
    assert row(found, "second").parameters == 32  # its bias
    assert row(found, "second").flops > row(found, "first").flops > 0


def test_layers_frozen_in_place_or_never_reached() -> None:
    class Odd(nn.Module):
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

    found = measured(Odd())
    adds_up(found.document())
    frozen, spare, act = row(found, "frozen"), row(found, "spare"), row(found, "act")
    assert frozen.forward_ms > 0 and frozen.backward_ms == 0 and frozen.optimizer_ms == 0
    assert frozen.flops == 2 * 4 * 8 * 36 * 27
    assert spare.total_ms == spare.optimizer_ms and spare.flops == 0 and spare.output is None
    assert act.forward_ms > 0 and act.backward_ms > 0 and act.parameters == 0
    assert row(found, "network.self").forward_ms > 0  # the doubling of the logits
    assert row(found, "head").output == [4, 10]


def test_bytes_are_inputs_weights_and_outputs_once_each() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 10))
    found = measured(network, image=(8,), batch=4)
    x, weights, hidden = 4 * 8, 8 * 16 + 16, 4 * 16
    forward = x + weights + hidden
    # Backward reads the gradient of the output and the input, and writes the gradients of weight and bias; the input
    # of the network needs none.
    backward = hidden + x + 8 * 16 + 16
    assert row(found, "0").bytes == 4 * (forward + backward)
    # The activation reads its input and writes its output, then reads that and its gradient and writes the other.
    assert row(found, "1").bytes == 4 * (2 * hidden + 3 * hidden)


def test_a_bare_layer_is_a_network() -> None:
    found = measured(nn.Linear(12, 10), image=(12,))
    adds_up(found.document())
    assert [layer.name for layer in found.layers] == ["network", "loss"]


def test_recomputed_layers_keep_their_work() -> None:
    from torch.utils.checkpoint import checkpoint

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(checkpoint(self.body, x, use_reentrant=False))
            return out

    found = measured(Recomputed(), image=(64,))
    adds_up(found.document())
    forward = 2 * 4 * 64 * 64
    assert row(found, "body.0").flops == 3 * forward  # twice forward, once for the gradient of its weights


# ------------------------------------------------------------------------------------------------------------ comparing


def test_two_recipes_by_turns() -> None:
    a, b = profiler.measure([subject("hlb"), subject("hlb-nose")], 3)
    found = comparison(a, b)
    assert a.steps == b.steps == 3
    by_name = {item.name: item for item in found.layers}
    gone = by_name["group1.squeeze_excite.self"]
    assert gone.b_ms is None and gone.ratio is None and gone.a_ms is not None
    assert gone.difference_ms == pytest.approx(-gone.a_ms)
    assert found.ci95 is not None and found.ci95[0] <= found.step_ratio <= found.ci95[1]


def test_ceilings_bound_what_they_should() -> None:
    from fastcifar.profiling.roofline import Roofline, measure

    ceilings = Roofline(tflops=1.0, gb_per_s=100.0, launch_ms=0.01)
    assert ceilings.bound(2e9, 1e6, 1) == "arithmetic"  # 2 ms, 0.01 ms, 0.01 ms
    assert ceilings.bound(2e6, 1e8, 1) == "memory"
    assert ceilings.bound(2e6, 1e3, 5) == "launches"
    assert ceilings.share(2e9, 1e6, 4.0) == pytest.approx(0.5)
    here = measure(CPU, torch.float32)
    assert 1e-3 < here.tflops < 100 and 0.1 < here.gb_per_s < 1e4 and 0 < here.launch_ms < 10


# --------------------------------------------------------------------------------------------------------- what is seen


@pytest.fixture(scope="module")
def shown() -> Any:
    return profiler.profile(subject("hlb"), 2)


@pytest.mark.parametrize("width", [20, 40, 80, 140, 200])
@pytest.mark.parametrize("by", BYS)
def test_every_view_fits_its_width(shown: Any, by: str, width: int) -> None:
    from rich.console import Console

    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report(shown, "a device", "shapes", width, by))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    if width >= 40:
        assert " ms " in text and "share" in text
        assert ("whiten" if by == "layer" else "forward" if by == "phase" else "conv") in text.lower()
    if by == "layer" and width >= 140:
        assert all(heading in text for heading in ("forward", "backward", "update", "output", "bound by", "roofline"))


def test_the_tree_folds_and_sorts(shown: Any) -> None:
    folded = {row.name: row for row in tree(shown.layers, 1)}
    assert "group1" in folded and not any("." in name for name in folded)
    assert sum(row.sum("total") for row in folded.values()) == pytest.approx(sum(x.total_ms for x in shown.layers))
    ordered = rows_of(shown, "total", None)
    times = [row.sum("total") for row in ordered]
    assert times == sorted(times, reverse=True) and len(ordered) == len(shown.layers)


def test_the_picture_is_as_wide_as_the_step(shown: Any) -> None:
    from fastcifar.cli.display.svg import MARGIN, WIDTH, icicle

    document = ET.fromstring(icicle(shown, "a <device> & more"))
    space = {"s": "http://www.w3.org/2000/svg"}
    boxes = [
        (float(r.attrib["y"]), float(r.attrib["x"]), float(r.attrib["width"]), g.findtext("s:title", "", space))
        for g in document.findall("s:g", space)
        for r in g.findall("s:rect", space)
    ]
    levels = sorted({y for y, *_ in boxes})
    assert len(levels) == 4
    widths = {y: sum(width for y0, _, width, _ in boxes if y0 == y) for y in levels}
    assert widths[levels[0]] == pytest.approx(WIDTH - 2 * MARGIN)
    assert widths[levels[1]] == pytest.approx(widths[levels[0]], rel=5e-3)
    assert all(x + width <= WIDTH - MARGIN + 0.1 for _, x, width, _ in boxes)
    whole = shown.kernel_ms + shown.idle_ms
    forward = next(width for y, _, width, tip in boxes if y == levels[1] and tip.startswith("forward"))
    assert forward == pytest.approx(shown.phases["forward"] / whole * widths[levels[0]], abs=0.02)


def test_the_command_in_a_pipe(cli: Cli, tmp_path: Path) -> None:
    done = cli(*PROFILE, "--trace", "step.json", "--svg", "step.svg", COLUMNS="40")
    assert done.code == 0 and max(map(len, done.out.splitlines()[1:])) <= 40
    assert not {"USDT", "STAGE", "kineto"} & set(done.err.split()), "the profiler's own chatter"
    assert all(line.startswith("Warning: This machine is busy") for line in done.err.splitlines())
    ET.parse(tmp_path / "step.svg")
    events = [e for e in json.loads((tmp_path / "step.json").read_text())["traceEvents"] if e["ph"] == "X"]
    named = [e for e in events if "layer" in e.get("args", {})]
    assert {e["args"]["phase"] for e in named} == {"forward", "loss", "backward"}
    by_thread = defaultdict(list)
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        if event.get("cat") in ("cpu_op", "user_annotation"):
            stack = by_thread[event["tid"]]
            while stack and stack[-1] <= event["ts"] + 0.01:
                stack.pop()
            assert not stack or event["ts"] + event["dur"] <= stack[-1] + 0.01, "slices must nest"
            stack.append(event["ts"] + event["dur"])


def test_the_commands_documents(cli: Cli) -> None:
    one = cli(*PROFILE, "--json").document
    assert {"command", "version", "torch", "device", "recipe", "batch", "steps", "engine", "roofline"} <= set(one)
    assert one["batch"] == 8 and one["steps"] == 2 and one["recipe"] == "tiny" and one["dataset"] == "shapes"
    adds_up(one)
    bound = ["--set", "b:network.whiten.kernel=3", "--set", "network.widths=[8, 8, 8]"]
    two = cli(*PROFILE, "--vs", "tiny", *bound, "--json").document
    for side in ("a", "b"):
        adds_up(two[side])
    outputs = [next(x["output"] for x in two[side]["layers"] if x["name"] == "whiten") for side in ("a", "b")]
    assert outputs == [[8, 24, 31, 31], [8, 54, 30, 30]]
    whole = two["comparison"]
    assert whole["ci95"][0] <= whole["step_ratio"] <= whole["ci95"][1]
    whiten = next(item for item in whole["layers"] if item["name"] == "whiten")
    assert whiten["difference_ms"] == pytest.approx(whiten["b_ms"] - whiten["a_ms"])


def test_a_checkpoint_is_profiled(call: Call) -> None:
    quick = ["--set", "network.widths=[8, 8, 8]", "--set", "training.epochs=0.05", "--set", "evaluation.views=none"]
    assert call("train", "tiny", "--dataset", "shapes", *quick, "--out", "run", "--quiet").code == 0
    done = call("profile", "--checkpoint", "run", "--batch", "8", "--steps", "2", "--json")
    assert done.document["recipe"] == "tiny"
    assert next(x for x in done.document["layers"] if x["name"] == "group1.conv2")["output"] == [8, 8, 15, 15]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--by", "layers"], 2, "did you mean 'layer'"),
        (["--sort", "totl"], 2, "did you mean 'total'"),
        (["--vs", "tyni"], 2, "did you mean 'tiny'"),
        (["--vs", "tiny", "--set", "c:training.epochs=3"], 2, "'c'"),
        (["--vs", "tiny", "--svg", "x.svg"], 2, "--vs"),
        (["--steps", "1"], 2, "--steps"),
        (["--batch", "0"], 2, "--batch"),
        (["--device", "cuda:9"], 4, "cuda:9"),
        (["--dataset", "nowhere"], 3, "nowhere"),
        (["--svg", "no/such/folder/x.svg"], 3, "x.svg"),
        (["--trace", "/dev/full"], 3, "/dev/full"),
        (["--checkpoint", "run"], 2, "--checkpoint"),
    ],
)
def test_what_cannot_be_is_said(call: Call, arguments: list[str], code: int, words: str) -> None:
    done = call("profile", "tiny", *([] if "--dataset" in arguments else ["--dataset", "shapes"]), *arguments)
    assert done.code == code and words in done.err and "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_out_of_memory_names_a_batch_that_fits(tmp_path: Path) -> None:
    """With a real limit on the memory of a real process."""
    limited = (
        "import resource, sys; from fastcifar.cli import app; import torch; from fastcifar.profiling import plan;"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096;"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2);"
        "sys.argv = ['fastcifar', *sys.argv[1:]]; app.main()"
    )
    arguments = ["profile", "tiny", "--dataset", "shapes", "--batch", "10000", "--threads", "1"]
    narrow = ["--set", "network.widths=[4, 4, 4]"]
    command = [sys.executable, "-c", limited, *arguments, *narrow]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 4, done.stderr
    assert "Out of memory on cpu with 10000 images a step" in done.stderr and "--batch " in done.stderr
    assert int(done.stderr.split("--batch ")[1].split()[0]) in (5000, 2500, 1250, 625)


@pytest.mark.gpu
@pytest.mark.parametrize("which", ["eager", "graph"])
def test_on_a_gpu_nearly_all_kernels_have_an_owner(which: str) -> None:
    for name in ("air94", "hlb"):
        chosen = subject_of(load_recipe(name), load_dataset("shapes"), torch.device("cuda"), engine=which)
        document = profiler.profile(chosen, 3).document()
        adds_up(document)
        assert all(layer["kernels"] == round(layer["kernels"]) for layer in document["layers"])


def test_a_whole_run_is_the_mean_of_its_kinds_of_step() -> None:
    sets = ["training.batch_size=8", "training.epochs=2", "data.resolution=[[0, 16], [0.25, 16], [0.25, 32]]"]
    found = load_recipe("tiny", *sets)
    images = few_shapes(64, 8)
    kinds = run_of(found, images, torch.device("cpu"))
    shares = [share for _, share in kinds]
    assert sum(shares) == pytest.approx(1) and len(kinds) == 3  # small; large; large without the whitening's bias
    assert sorted(shares) == [0.125, 0.25, 0.625]
    (whole,) = profiler.measure_runs([kinds], 2)
    parts = [profiler.measure([subject], 2)[0] for subject, _ in kinds]
    flops = {layer.name: layer.flops for layer in whole.layers}
    for layer in flops:
        each = [next(row.flops for row in part.layers if row.name == layer) for part in parts]
        assert flops[layer] == pytest.approx(sum(map(operator.mul, shares, each)), abs=1)
    assert whole.kinds == 3 and {part.kinds for part in parts} == {1}
    assert sum(whole.phases.values()) + whole.unattributed_ms == pytest.approx(whole.kernel_ms)
