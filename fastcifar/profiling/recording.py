"""Recording: one training step run again and again, counted, timed as it is, and recorded by PyTorch's profiler.

A target's step runs once for its operators to be counted, uncompiled; then until its times settle; then once for its
memory. Then all targets are measured interleaved (A B, B A, ...), so that drift of the machine hits all alike; each
time a step is timed without the profiler and recorded with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.profiling.attribution import Event, KernelTime, annotate, attribute
from fastcifar.profiling.breakdown import index_layers
from fastcifar.profiling.memory import MemoryUse, measure_memory
from fastcifar.profiling.modules import annotate_layers, compiler_loaded, run_uncompiled, walk_modules
from fastcifar.profiling.op_counter import OpCost, OpCounter, OpScope
from fastcifar.profiling.roofline import Roofline, measure_roofline
from fastcifar.profiling.targets import ProfileTarget
from fastcifar.profiling.trace import record_events
from fastcifar.system.timing import time_call

STEPS = {"cuda": 10}  # recorded steps; elsewhere 5
TIMED_TOGETHER = {"cuda": 5}  # steps in a row that are timed as one, so that the host runs ahead; elsewhere 1
SETTLED = 0.75  # a step that takes less than this part of the time of the one before it was not warmed up
WARM_UP_STEPS = 20  # at most


@dataclass(frozen=True)
class StepRecord:
    """One recorded step: its seconds without the profiler and with it, and its kernels."""

    seconds: float
    recorded_seconds: float
    kernels: list[KernelTime]


@dataclass(frozen=True)
class Recording:
    """Everything measured of one target; a `Profile` is computed from it."""

    target: ProfileTarget
    costs: dict[OpScope, OpCost]  # of one step, by phase and module
    outputs: dict[str, list[int]]  # the shape of each module's output
    memory: MemoryUse
    steps: list[StepRecord]
    events: list[Event]  # of the last recorded step
    roofline: Roofline
    kinds: int = 1  # of step, of which this is the mean

    def annotated_events(self) -> list[Event]:
        """The events of the last recorded step with phase and layer, for a trace viewer."""
        return annotate(self.events, index_layers(self.target.network).names)


def record(targets: Sequence[ProfileTarget], steps: int | None = None) -> list[Recording]:
    """Recordings of so many steps (by default 10 on CUDA, 5 elsewhere) of targets on one device, interleaved."""
    device = targets[0].device
    counted = [count_ops(target) for target in targets]
    uncaptured = [warm_up(target) for target in targets]
    memory = [measure_memory(target) for target in targets]
    records: list[list[StepRecord]] = [[] for _ in targets]
    events: list[list[Event]] = [[] for _ in targets]
    order = list(range(len(targets)))
    for i in range(steps or STEPS.get(device.type, 5)):
        for k in order if i % 2 == 0 else reversed(order):
            seconds = time_step(targets[k])
            recorded_seconds, events[k] = record_step(targets[k], targets[k].run)
            kernels = attribute(events[k], device.type, uncaptured[k])
            records[k].append(StepRecord(seconds, recorded_seconds, kernels))
    rooflines = {dtype: measure_roofline(device, dtype) for dtype in {target.dtype for target in targets}}
    return [
        Recording(target, *counted[k], memory[k], records[k], events[k], rooflines[target.dtype])
        for k, target in enumerate(targets)
    ]


def mean_step(recordings: Sequence[Recording], shares: Sequence[float]) -> Recording:
    """The mean step of a run, from recordings of its kinds of step and their shares of the run.

    The target, shapes and events are those of the most frequent kind, the memory that of the kind that needs most.
    """
    _, main = max(zip(shares, recordings, strict=True), key=lambda pair: pair[0])
    steps = [mean_record(kinds, shares) for kinds in zip(*(each.steps for each in recordings), strict=True)]
    costs = mean_costs([each.costs for each in recordings], shares)
    memory = max((each.memory for each in recordings), key=lambda use: use.step or 0)
    return replace(main, costs=costs, memory=memory, steps=steps, kinds=len(recordings))


def mean_record(records: Sequence[StepRecord], shares: Sequence[float]) -> StepRecord:
    """The mean of one step of every kind: times and counts of all kernels weighted by the shares."""
    weighted = list(zip(shares, records, strict=True))
    return StepRecord(
        sum(share * each.seconds for share, each in weighted),
        sum(share * each.recorded_seconds for share, each in weighted),
        [replace(k, time=share * k.time, count=share * k.count) for share, each in weighted for k in each.kernels],
    )


def mean_costs(costs: Sequence[dict[OpScope, OpCost]], shares: Sequence[float]) -> dict[OpScope, OpCost]:
    """The mean costs by phase and module, rounded to whole kernels, FLOPs and bytes."""
    sums: dict[OpScope, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for share, by_scope in zip(shares, costs, strict=True):
        for scope, cost in by_scope.items():
            for i, value in enumerate((cost.kernels, cost.flops, cost.bytes)):
                sums[scope][i] += share * value
    return {scope: OpCost(*map(round, values)) for scope, values in sums.items()}


def count_ops(target: ProfileTarget) -> tuple[dict[OpScope, OpCost], dict[str, list[int]]]:
    """Run one step, uncompiled, to count its operators' costs and to note the shapes of the modules' outputs."""
    outputs: dict[str, list[int]] = {}

    def note_as(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = list(output.shape)

        return note

    hooks = [module.register_forward_hook(note_as(name)) for name, module in walk_modules(target.network)]
    counter = OpCounter()
    # The counter tells autograd's nodes by numbers that count within one thread.
    one_thread = torch.autograd.set_multithreading_enabled(False)
    try:
        with one_thread, run_uncompiled(), annotate_layers(target.network), counter:
            (target.run_uncaptured or target.run)()  # a replayed graph calls no operators
    finally:
        for hook in hooks:
            hook.remove()
    return dict(counter.costs), outputs


def warm_up(target: ProfileTarget) -> list[KernelTime]:
    """Run what happens once: steps that compile and choose kernels; on CUDA a recording that loads the profiler.

    Returns the kernels of the step not captured, where the target's step replays a CUDA graph; else none.
    """
    settle(target)
    if target.device.type == "cuda":
        record_step(target, target.run)
    if target.run_uncaptured is None:
        return []
    _, events = record_step(target, target.run_uncaptured)
    return attribute(events, target.device.type)


def settle(target: ProfileTarget) -> None:
    """Run steps until their times settle: where a compiler is at work until two in a row do, for it may work twice."""
    needed = 2 if compiler_loaded() else 1
    before, alike = float("inf"), 0
    for _ in range(WARM_UP_STEPS):
        seconds = time_call(target.run, target.device)
        alike = alike + 1 if seconds >= SETTLED * before else 0
        if alike == needed:
            return
        before = seconds


def time_step(target: ProfileTarget) -> float:
    """Seconds of a step without the profiler."""
    together = TIMED_TOGETHER.get(target.device.type, 1)
    if together > 1:
        target.run()

    def run_steps() -> None:
        for _ in range(together):
            target.run()

    return time_call(run_steps, target.device) / together


def record_step(target: ProfileTarget, run: Callable[[], None]) -> tuple[float, list[Event]]:
    """Run a step with the profiler: its seconds, and its events."""
    with annotate_layers(target.network):
        return record_events(run, target.device)
