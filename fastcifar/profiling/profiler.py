"""The cost of one step, layer by layer: the trainer's own step, recorded, counted and taken apart.

`subjects` makes a recipe's step a subject, `profile_module` brings any network, loss and optimizer. A subject's step
runs once to be counted, then by turns as it is, for its time, and recorded, for its parts.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import operator
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastcifar.profiling import roofline
from fastcifar.profiling.attribution import Event, Work, annotated, attribute
from fastcifar.profiling.breakdown import Breakdown, Rows
from fastcifar.profiling.op_counter import OpCost, OpCounter, Scope
from fastcifar.profiling.result import Layer, Profile, spread
from fastcifar.profiling.roofline import Roofline
from fastcifar.profiling.targets import Subject
from fastcifar.system.device import is_oom
from fastcifar.system.timing import time_call
from fastcifar.training.annotations import LAYER, PHASES, ROOT, phase

STEPS = {"cuda": 10}  # recorded steps; elsewhere 5
TIMED_TOGETHER = {"cuda": 5}  # steps in a row that are timed as one, so that the host runs ahead; elsewhere 1
QUIET_KINETO = "99"  # the level of its log above all that PyTorch's recorder says


def profile_module(
    network: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor | tuple[Tensor, ...],
    targets: Any,
    steps: int | None = None,
) -> Profile:
    """Profile training steps of any network on one batch; the steps do train it, so hand in a copy where that matters.

    `loss(network(*inputs), targets)` must give a scalar; `inputs` is a tensor whose first dimension is the batch, or a
    tuple of such. Public as `fastcifar.profile`.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    first = next(iter(network.parameters()), given[0])

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with phase("forward"):
            outputs = network(*given)
        with phase("loss"):
            value = loss(outputs, targets)
        with phase("backward"):
            value.backward()  # type: ignore[no-untyped-call]
        with phase("optimizer"):
            optimizer.step()

    return profile(Subject(type(network).__name__, network, run, len(given[0]), first.device, first.dtype), steps)


def profile(subject: Subject, steps: int | None = None) -> Profile:
    """Measure a subject over so many recorded steps (10 on CUDA, 5 elsewhere)."""
    return measure([subject], steps)[0]


def measure(subjects: list[Subject], steps: int | None = None) -> list[Profile]:
    """The profiles of subjects measured by turns (A B, B A, …), so that drift of the machine hits all alike."""
    return measure_runs([[(subject, 1.0)] for subject in subjects], steps)


def measure_runs(runs: list[list[tuple[Subject, float]]], steps: int | None = None) -> list[Profile]:
    """The profiles of the mean step of runs, each given as its kinds of step and their shares; measured by turns."""
    subject = runs[0][0][0]
    steps = steps or STEPS.get(subject.device.type, 5)
    recorders = [[(Recorder(each), share) for each, share in run] for run in runs]
    for i in range(steps):
        for kinds in recorders if i % 2 == 0 else reversed(recorders):
            for recorder, _ in kinds:
                recorder.time()
                recorder.record()
    blended = [blend(kinds) for kinds in recorders]
    dtypes = {recorder.subject.dtype for recorder in blended}
    ceilings = {dtype: roofline.measure(subject.device, dtype) for dtype in dtypes}
    return [recorder.profile(ceilings[recorder.subject.dtype]) for recorder in blended]


def fitting_batch(subject_for: Callable[[int], Subject], batch: int) -> int:
    """The largest half, quarter, … of a batch that was too large for the memory, whose step runs; at least 1."""
    while batch > 1:
        batch //= 2
        try:
            subject_for(batch).run()
        except (MemoryError, RuntimeError) as error:
            if not is_oom(error):
                raise
        else:
            break
    return batch


class Recorder:
    """One subject's counts, times and recorded steps."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.kinds = 1  # of step, that this is the mean of
        self.rows = Rows(subject.network)
        self.step_times: list[float] = []  # seconds, without the profiler
        self.recorded_times: list[float] = []  # seconds, with it
        self.works: list[list[Work]] = []
        self.plain: list[Work] = []  # of the step not captured
        self.events: list[Event] = []
        self.counts, self.outputs = self.count()
        if subject.device.type == "cuda":  # a first step to choose kernels, a first recording to load the profiler
            subject.run()
            self.record()
            self.recorded_times, self.works = [], []
        if subject.plain is not None:
            _, events = self.recorded(subject.plain)
            self.plain = attribute(events, subject.device.type)

    def count(self) -> tuple[dict[Scope, OpCost], dict[str, list[int]]]:
        """Run one step to count what it asks for, and to see the shapes of the layers' outputs; it warms up too."""
        outputs: dict[str, list[int]] = {}

        def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def note(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    outputs[self.rows.names[name]] = list(output.shape)

            return note

        hooks = [m.register_forward_hook(watch(name or ROOT)) for name, m in self.subject.network.named_modules()]
        counting = OpCounter()
        with layers(self.subject.network), counting:
            self.subject.run()
        for hook in hooks:
            hook.remove()
        return counting.counts, outputs

    def time(self) -> None:
        """Time the step as it is."""
        together = TIMED_TOGETHER.get(self.subject.device.type, 1)
        if together > 1:
            self.subject.run()

        def steps() -> None:
            for _ in range(together):
                self.subject.run()

        self.step_times.append(time_call(steps, self.subject.device) / together)

    def record(self) -> None:
        """Run one recorded step and find out whose work it is."""
        taken, self.events = self.recorded(self.subject.run)
        self.recorded_times.append(taken)
        self.works.append(attribute(self.events, self.subject.device.type, self.plain))

    def recorded(self, run: Callable[[], None]) -> tuple[float, list[Event]]:
        """The seconds that a step takes while it is recorded, and its events."""
        os.environ.setdefault("KINETO_LOG_LEVEL", QUIET_KINETO)
        device = self.subject.device
        use = device.type if device.type == "cuda" else None
        # Not torch.profiler.profile, which imports the compiler (seconds) to do the same.
        with (
            layers(self.subject.network),
            torch.autograd.profiler.profile(use_device=use, use_kineto=True) as recording,
        ):
            taken = time_call(run, device)
        return taken, events_of(recording)

    def profile(self, ceilings: Roofline) -> Profile:
        """All that was measured, on the average."""
        table = Breakdown(self.rows, self.works)
        kernel_ms = sum(item.ms for item in table.items)
        step_ms = 1000 * statistics.fmean(self.step_times)
        phases = {name: sum(item.ms for item in table.items if item.phase == name) for name in PHASES}
        whole = max(step_ms, kernel_ms)
        return Profile(
            recipe=self.subject.name,
            batch=self.subject.batch,
            steps=len(self.works),
            kinds=self.kinds,
            engine=self.subject.engine,
            step_ms=step_ms,
            step_std_ms=1000 * spread(self.step_times),
            kernel_ms=kernel_ms,
            idle_ms=whole - kernel_ms,
            unattributed_ms=sum(item.ms for item in table.items if item.phase is None),
            recorded_step_ms=1000 * statistics.fmean(self.recorded_times),
            roofline=ceilings,
            phases=phases,
            layers=[self.layer(name, table, ceilings, whole) for name in table.names()],
            items=table.items,
            events=annotated(self.events, self.rows.names),
            step_times_ms=[1000 * time for time in self.step_times],
            layer_times_ms={name: table.totals(name) for name in table.names()},
        )

    def layer(self, name: str, table: Breakdown, ceilings: Roofline, whole: float) -> Layer:
        """The row of one layer."""
        counts = [
            count
            for (place, layer), count in self.counts.items()
            if place in ("forward", "backward") and self.rows.names.get(layer or "") == name
        ]
        flops, size = sum(count.flops for count in counts), sum(count.bytes for count in counts)
        forward, backward, optimizer = (table.ms(name, each) for each in ("forward", "backward", "optimizer"))
        passes, total = forward + backward, forward + backward + optimizer
        cuda = self.subject.device.type == "cuda"
        kernels = table.launches(name) if cuda else sum(count.kernels for count in counts)
        return Layer(
            name=name,
            kind=self.rows.kinds[name],
            output=self.outputs.get(name),
            parameters=self.rows.parameters[name],
            forward_ms=forward,
            backward_ms=backward,
            optimizer_ms=optimizer,
            optimizer_shared=name in table.shared,
            total_ms=total,
            total_std_ms=spread(table.totals(name)),
            share=total / whole if whole else 0.0,
            kernels=kernels,
            flops=flops,
            bytes=size,
            tflops=flops / passes / 1e9 if passes else 0.0,
            gb_per_s=size / passes / 1e6 if passes else 0.0,
            bound=ceilings.bound(flops, size, kernels),
            roofline_share=ceilings.share(flops, size, passes),
        )


def blend(kinds: list[tuple[Recorder, float]]) -> Recorder:
    """What the mean step of a run would have recorded, given its kinds of step and their shares; shapes and events
    are those of the most frequent kind."""
    whole = copy.copy(max(kinds, key=lambda kind: kind[1])[0])
    recorders, shares = zip(*kinds, strict=True)
    whole.kinds = len(kinds)

    def mean(series: Iterable[list[float]]) -> list[float]:
        return [sum(map(operator.mul, shares, values)) for values in zip(*series, strict=True)]

    whole.step_times = mean(recorder.step_times for recorder in recorders)
    whole.recorded_times = mean(recorder.recorded_times for recorder in recorders)
    whole.works = [
        [
            dataclasses.replace(work, time=share * work.time, count=share * work.count)
            for works, share in zip(step, shares, strict=True)
            for work in works
        ]
        for step in zip(*(recorder.works for recorder in recorders), strict=True)
    ]
    sums: dict[Scope, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for recorder, share in kinds:
        for place, count in recorder.counts.items():
            asked = (count.kernels, count.flops, count.bytes)
            sums[place] = [before + share * more for before, more in zip(sums[place], asked, strict=True)]
    whole.counts = {place: OpCost(*map(round, asked)) for place, asked in sums.items()}
    return whole


def events_of(recorded: Any) -> list[Event]:
    """The events of a recording, which PyTorch hands out as a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return events


@contextmanager
def layers(network: nn.Module) -> Iterator[None]:
    """While inside, every call of a module of the network is a range with the module's name."""
    open_ranges: list[record_function] = []

    def before(name: str) -> Any:
        def enter(module: nn.Module, inputs: Any) -> None:
            open_ranges.append(record_function(LAYER + name))
            open_ranges[-1].__enter__()  # type: ignore[no-untyped-call]

        return enter

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(before(name or ROOT), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
