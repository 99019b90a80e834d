"""A profile: figures by layer and by phase, computed from a recording, and the comparison of two profiles."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from fastcifar import stats
from fastcifar.profiling.breakdown import (
    Breakdown,
    GroupTime,
    Item,
    LayerIndex,
    break_down,
    group_times,
    index_layers,
    std,
)
from fastcifar.profiling.op_counter import OpCost
from fastcifar.profiling.recording import Recording
from fastcifar.profiling.roofline import Roofline
from fastcifar.training.annotations import PHASES


@dataclass(frozen=True)
class Layer:
    """The mean cost of one layer in a step; what a container does itself stands as `<name>.self`.

    Kernels, FLOPs and bytes without a direction are those of forward and backward; `share` is of the step,
    `roofline_share` the time needed at the device's ceilings over the time taken.
    """

    name: str
    kind: str
    output: list[int] | None
    parameters: int
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    optimizer_shared: bool  # part of it is a share, by size, in kernels that update other layers too
    total_ms: float
    total_std_ms: float
    share: float
    kernels: int
    flops: int
    forward_flops: int
    backward_flops: int
    bytes: int
    forward_bytes: int
    backward_bytes: int
    activation_bytes: int  # kept for the backward pass
    tflops: float  # TFLOP/s
    gb_per_s: float
    bound: str  # arithmetic, memory or launches, of which a replayed graph has one for all layers
    roofline_share: float


@dataclass(frozen=True)
class Profile:
    """The mean recorded step by layer and phase; times in milliseconds.

    `phases` and `unattributed_ms` add up to `kernel_ms`, so do `items`; the layers' forward and backward add up to
    those phases.
    """

    recipe: str
    batch: int
    steps: int
    kinds: int  # of step, of which this is the mean, weighted by how often a run has them; 1: a single step
    engine: str
    step_ms: float
    step_std_ms: float
    kernel_ms: float
    idle_ms: float
    unattributed_ms: float
    recorded_step_ms: float  # with the profiler: the difference from step_ms is the profiler's own time
    roofline: Roofline
    activation_bytes: int  # kept for the backward pass by all layers and the loss
    held_memory: int  # bytes between steps: the network, the optimizer's state, the images
    peak_memory: int | None  # bytes held at one time at most; None: unknown on this device
    phases: dict[str, float]
    layers: list[Layer]
    kernels: list[GroupTime]
    ops: list[GroupTime]
    items: list[Item]
    step_times_ms: list[float]  # of each recorded step
    layer_times_ms: dict[str, list[float]]  # the total of each layer in each recorded step

    def document(self) -> dict[str, Any]:
        """What `--json` holds."""
        return dataclasses.asdict(self)


def summarize(recording: Recording) -> Profile:
    """The profile of a recording."""
    target = recording.target
    index = index_layers(target.network)
    table = break_down(index, [step.kernels for step in recording.steps], recording.memory.activations)
    step_times_ms = [1000 * step.seconds for step in recording.steps]
    kernel_ms = sum(item.ms for item in table.items)
    step_ms = statistics.fmean(step_times_ms)
    # Kernels are timed in recorded steps, which are slower: where they take longer than a step, no time is idle.
    whole_ms = max(step_ms, kernel_ms)
    return Profile(
        recipe=target.name,
        batch=target.batch,
        steps=len(recording.steps),
        kinds=recording.kinds,
        engine=target.engine,
        step_ms=step_ms,
        step_std_ms=std(step_times_ms),
        kernel_ms=kernel_ms,
        idle_ms=whole_ms - kernel_ms,
        unattributed_ms=sum(item.ms for item in table.items if item.phase is None),
        recorded_step_ms=1000 * statistics.fmean(step.recorded_seconds for step in recording.steps),
        roofline=recording.roofline,
        activation_bytes=sum(recording.memory.activations.values()),
        held_memory=recording.memory.held,
        peak_memory=recording.memory.peak,
        phases={phase: sum(item.ms for item in table.items if item.phase == phase) for phase in PHASES},
        layers=[summarize_layer(name, recording, index, table, whole_ms) for name in table.layer_times_ms],
        kernels=group_times(table.items, "kernel"),
        ops=group_times(table.items, "op"),
        items=table.items,
        step_times_ms=step_times_ms,
        layer_times_ms=table.layer_times_ms,
    )


def summarize_layer(name: str, recording: Recording, index: LayerIndex, table: Breakdown, whole_ms: float) -> Layer:
    """The figures of one layer, in a step of `whole_ms` milliseconds."""
    module = next(module for module, layer in index.names.items() if layer == name)
    forward, backward = (recording.costs.get((phase, module), OpCost()) for phase in ("forward", "backward"))
    flops, size = forward.flops + backward.flops, forward.bytes + backward.bytes
    forward_ms, backward_ms, optimizer_ms = (table.ms(name, phase) for phase in ("forward", "backward", "optimizer"))
    passes_ms = forward_ms + backward_ms
    total_ms = passes_ms + optimizer_ms
    on_cuda = recording.target.device.type == "cuda"
    kernels = table.kernels(name) if on_cuda else forward.kernels + backward.kernels
    return Layer(
        name=name,
        kind=index.kinds[name],
        output=recording.outputs.get(module),
        parameters=index.parameters.get(name, 0),
        forward_ms=forward_ms,
        backward_ms=backward_ms,
        optimizer_ms=optimizer_ms,
        optimizer_shared=name in table.shared_updates,
        total_ms=total_ms,
        total_std_ms=std(table.layer_times_ms[name]),
        share=total_ms / whole_ms if whole_ms else 0.0,
        kernels=kernels,
        flops=flops,
        forward_flops=forward.flops,
        backward_flops=backward.flops,
        bytes=size,
        forward_bytes=forward.bytes,
        backward_bytes=backward.bytes,
        activation_bytes=recording.memory.activations.get(module, 0),
        tflops=flops / passes_ms / 1e9 if passes_ms else 0.0,
        gb_per_s=size / passes_ms / 1e6 if passes_ms else 0.0,
        bound=recording.roofline.bound(flops, size, kernels if recording.target.run_uncaptured is None else 0),
        roofline_share=recording.roofline.share(flops, size, passes_ms),
    )


@dataclass(frozen=True)
class Difference:
    """One layer in two profiles: milliseconds a step, and bytes kept for the backward pass; None where it is in one of
    them alone."""

    name: str
    a_ms: float | None
    b_ms: float | None
    difference_ms: float  # b minus a
    ci95: list[float] | None  # of difference_ms
    ratio: float | None  # b_ms over a_ms
    a_activation_bytes: int | None
    b_activation_bytes: int | None
    difference_activation_bytes: int  # b minus a


@dataclass(frozen=True)
class Comparison:
    """Two profiles measured interleaved: b over a for the whole step, b minus a for each layer."""

    step_ratio: float
    ci95: list[float] | None
    layers: list[Difference]


def compare(a: Profile, b: Profile) -> Comparison:
    """Two profiles of as many steps, measured interleaved: step i of one is paired with step i of the other."""
    ratio = stats.time_ratio(a.step_times_ms, b.step_times_ms)
    names = dict.fromkeys([*a.layer_times_ms, *b.layer_times_ms])
    return Comparison(ratio.effect, as_list(ratio.ci95), [compare_layer(name, a, b) for name in names])


def compare_layer(name: str, a: Profile, b: Profile) -> Difference:
    """One layer in both profiles; one that is missing takes no time and no memory."""
    times_a, times_b = a.layer_times_ms.get(name), b.layer_times_ms.get(name)
    zeros = [0.0] * a.steps
    difference = stats.paired_difference(times_a or zeros, times_b or zeros)
    mean_a, mean_b = (statistics.fmean(times) if times else None for times in (times_a, times_b))
    bytes_a, bytes_b = (
        next((layer.activation_bytes for layer in side.layers if layer.name == name), None) for side in (a, b)
    )
    return Difference(
        name,
        a_ms=mean_a,
        b_ms=mean_b,
        difference_ms=difference.effect,
        ci95=as_list(difference.ci95),
        ratio=mean_b / mean_a if mean_a and mean_b is not None else None,
        a_activation_bytes=bytes_a,
        b_activation_bytes=bytes_b,
        difference_activation_bytes=(bytes_b or 0) - (bytes_a or 0),
    )


def as_list(interval: tuple[float, float] | None) -> list[float] | None:
    """An interval as JSON holds it."""
    return None if interval is None else list(interval)
