"""What the tests of profiles share: targets, checks of sums, and a recording written by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastcifar
from fastcifar.data.store import load_dataset
from fastcifar.profiling.attribution import NODE, KernelTime, attribute
from fastcifar.profiling.memory import MemoryUse
from fastcifar.profiling.op_counter import OpCost
from fastcifar.profiling.recording import Recording, StepRecord
from fastcifar.profiling.result import Layer, Profile, compare, summarize
from fastcifar.profiling.roofline import Roofline
from fastcifar.profiling.targets import ProfileTarget, recipe_target
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.annotations import PHASES
from fastcifar.training.engine import EAGER, Engine

CPU = torch.device("cpu")
FIXTURE = Path(__file__).parents[1] / "bench" / "fixtures" / "format1" / "profile.json"  # of an earlier version


def small_target(name: str, *overrides: str, engine: Engine = EAGER) -> ProfileTarget:
    """A step of a recipe with narrow layers and eight images."""
    small = ["network.widths=[8, 16, 16]", "training.batch_size=8", *overrides]
    return recipe_target(load_recipe(name, *small), load_dataset("shapes"), CPU, engine)


def profile_network(network: nn.Module, *, image: tuple[int, ...] = (3, 8, 8), batch: int = 4, steps: int = 2) -> Any:
    """The profile of training steps of any network that gives ten logits."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    labels = torch.arange(batch) % 10
    return fastcifar.profile(network, F.cross_entropy, optimizer, torch.randn(batch, *image), labels, steps)


def layer_of(profile: Profile, name: str) -> Layer:
    """The layer of that name."""
    (layer,) = [layer for layer in profile.layers if layer.name == name]
    return layer


def assert_adds_up(document: dict[str, Any]) -> None:
    """What DESIGN.md promises of a profile's sums."""
    phases, layers, kernel_ms = document["phases"], document["layers"], document["kernel_ms"]
    assert list(phases) == list(PHASES)
    assert sum(phases.values()) + document["unattributed_ms"] == pytest.approx(kernel_ms, rel=1e-9)
    for phase in ("forward", "backward"):
        assert sum(layer[f"{phase}_ms"] for layer in layers) == pytest.approx(phases[phase], rel=1e-9)
    assert sum(layer["optimizer_ms"] for layer in layers) <= phases["optimizer"] * (1 + 1e-9)
    assert document["idle_ms"] >= 0
    assert document["unattributed_ms"] <= 0.02 * kernel_ms
    for group in ("kernels", "ops", "items"):
        assert sum(item["ms"] for item in document[group]) == pytest.approx(kernel_ms, rel=1e-9)
    assert sum(layer["activation_bytes"] for layer in layers) == document["activation_bytes"]
    assert document["activation_bytes"] < document["peak_memory"] and document["held_memory"] < document["peak_memory"]
    for layer in layers:
        for cost in ("flops", "bytes"):
            assert layer[cost] == layer[f"forward_{cost}"] + layer[f"backward_{cost}"]
        times = document["layer_times_ms"][layer["name"]]
        assert len(times) == document["steps"] and sum(times) / len(times) == pytest.approx(layer["total_ms"], abs=1e-9)
    assert sum(document["step_times_ms"]) / document["steps"] == pytest.approx(document["step_ms"])


class Tape:
    """Events of the profiler, written by hand: `with tape.host(...)` nests them as calls nest."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.clock = 100.0

    @contextmanager
    def host(
        self, name: str, cat: str = "cpu_op", thread: int = 1, own: float = 1.0, **arguments: Any
    ) -> Iterator[None]:
        """An event on the host with `own` microseconds before and after what is inside it."""
        start = self.clock
        self.clock += own
        yield
        self.clock += own
        event = {"ph": "X", "cat": cat, "name": name, "tid": thread, "pid": 1, "ts": start}
        self.events.append({**event, "dur": self.clock - start, "args": arguments})

    def range(self, name: str, thread: int = 1) -> Any:
        """A range of `training.annotations`."""
        return self.host(name, "user_annotation", thread)

    def kernel(self, number: int, name: str, start: float, duration: float, cat: str = "kernel") -> None:
        """A kernel on the device, of the launch of that number; microseconds."""
        event = {"ph": "X", "cat": cat, "name": name, "tid": 7, "pid": 0, "ts": start, "dur": duration}
        self.events.append({**event, "args": {"correlation": number}})

    def launch(
        self, number: int, name: str, start: float, duration: float, thread: int = 1, cat: str = "kernel"
    ) -> None:
        """A call that launches a kernel, and the kernel."""
        with self.host("cudaLaunchKernel", "cuda_runtime", thread, correlation=number):
            pass
        self.kernel(number, name, start, duration, cat)


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
    tape.kernel(99, "gather", 1200, 6)  # no call is known to have launched it
    random.Random(0).shuffle(tape.events)
    return tape.events


class ConvAct(nn.Module):
    """The network of `cuda_step`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv(x)) + x.mean()
        return out


def scaled(kernels: list[KernelTime], factor: float) -> list[KernelTime]:
    """The same kernels in so much more time."""
    return [replace(kernel, time=factor * kernel.time) for kernel in kernels]


def fixed_recording(factor: float = 1.0) -> Recording:
    """Two recordings of `cuda_step`, made by hand: the second step takes a tenth more; `factor` scales the conv."""
    target = ProfileTarget("handmade", ConvAct(), lambda: None, 64, torch.device("cuda"), torch.float16, "eager")
    kernels = [
        replace(kernel, time=factor * kernel.time) if kernel.scope.layer == "conv" else kernel
        for kernel in attribute(cuda_step(), "cuda")
    ]
    extra = 0.082 * (factor - 1)  # milliseconds that the conv's kernels take more
    return Recording(
        target=target,
        costs={
            ("forward", "conv"): OpCost(2, 28_311_552, 3_932_160),
            ("backward", "conv"): OpCost(2, 28_311_552, 2_359_296),
            ("forward", "act"): OpCost(1, 0, 2_097_152),
            ("backward", "act"): OpCost(1, 0, 3_145_728),
            ("forward", "network"): OpCost(1, 0, 1_048_576),
        },
        outputs={"conv": [64, 8, 32, 32], "act": [64, 8, 32, 32], "network": [64, 8, 32, 32]},
        memory=MemoryUse({"conv": 786_432, "act": 2_097_152, "loss": 2_560}, held=1_000_000, step=5_242_880),
        steps=[
            StepRecord((0.2 + extra) / 1000, (0.25 + extra) / 1000, kernels),
            StepRecord((0.22 + 1.2 * extra) / 1000, (0.27 + extra) / 1000, scaled(kernels, 1.1)),
        ],
        events=cuda_step(),
        roofline=Roofline(tflops=100.0, gb_per_s=1000.0, launch_ms=0.002),
    )


def fixed_document() -> dict[str, Any]:
    """The JSON document of `profile` for `fixed_recording`."""
    common = {"command": "profile", "version": "0", "torch": "2", "device": "Some GPU", "dataset": "cifar10"}
    return {**common, **summarize(fixed_recording()).document()}


def fixed_comparison() -> dict[str, Any]:
    """The JSON document of `profile --vs` for two recordings made by hand: b's convolution takes twice the time."""
    a, b = (summarize(fixed_recording(factor)) for factor in (1.0, 2.0))
    common = {"command": "profile", "version": "0", "torch": "2", "device": "Some GPU", "dataset": "cifar10"}
    return {**common, "a": a.document(), "b": b.document(), "comparison": asdict(compare(a, b))}


def named(document: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The document with another name in all places."""
    text = json.dumps(document).replace(json.dumps(old), json.dumps(new))
    changed: dict[str, Any] = json.loads(text)
    return changed


def large_document(layers: int = 2000) -> dict[str, Any]:
    """A profile of so many layers: those of the earlier version's document over and over, ten kernels a layer."""
    document = json.loads(FIXTURE.read_text())
    few = [layer for layer in document["layers"] if layer["total_ms"] > 0]
    document["layers"] = [{**few[i % len(few)], "name": f"stage{i // 10}.layer{i}"} for i in range(layers)]
    document["items"] = [
        {
            "phase": phase,
            "layer": layer["name"],
            "kernel": f"kernel{k}",
            "op": "aten::op",
            "ms": layer[f"{phase}_ms"] / 10,
            "std": 0.01,
            "count": 1,
        }
        for phase in ("forward", "backward")
        for layer in document["layers"]
        for k in range(10)
    ]
    document["kernel_ms"] = sum(item["ms"] for item in document["items"])
    for layer in document["layers"]:
        layer["share"] = layer["total_ms"] / (document["kernel_ms"] + document["idle_ms"])
    return document


def unattributed(document: dict[str, Any]) -> dict[str, Any]:
    """The profile as if no kernel had been attributed to a layer, as of a replayed graph."""
    nothing = dict.fromkeys(("forward_ms", "backward_ms", "optimizer_ms", "total_ms", "share", "flops", "bytes"), 0)
    return {
        **document,
        "engine": "graph",
        "unattributed_ms": document["kernel_ms"],
        "phases": dict.fromkeys(document["phases"], 0.0),
        "layers": [{**layer, **nothing} for layer in document["layers"]],
        "items": [{**item, "phase": None, "layer": None} for item in document["items"]],
    }
