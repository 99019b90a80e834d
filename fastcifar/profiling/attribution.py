"""Whose work is it: the kernels in a recorded step, each with its phase and the layer that caused it.

Reads the events of one step as PyTorch's profiler writes them (Chrome's trace format). On CUDA the work is the kernels,
found from the call that launched them; on a CPU it is every operator's own time, without the operators it called.

How a layer is known: in the forward pass an operator lies inside its layer's range. An autograd node carries the
sequence number that was next when its forward operator ran, so what runs inside a node belongs to the layer of the
last forward operator with that number (operators that make no node carry the number of the one after them).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastcifar.training.annotations import LAYER, PHASE, UPDATE

Event = dict[str, Any]
NODE = "autograd::engine::evaluate_function: "
LOSS = "loss"  # the layer of what the loss causes in the backward pass
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
REPLAY = "cudaGraphLaunch"
ROUNDING = 0.002  # microseconds; what a time of day in microseconds is rounded to, in the file and in a float


@dataclass(frozen=True)
class Context:
    """What a piece of work is part of; None: not known."""

    phase: str | None = None
    layer: str | None = None
    op: str | None = None  # the operator the program called, or the autograd node
    parameters: tuple[str, ...] = ()  # what it updates, in the optimizer's phase; empty: all


@dataclass
class Span:
    """One event on the host: an operator, a range, or a call that launches work on the device; microseconds."""

    event: Event
    start: float
    end: float
    context: Context
    op: Span | None  # the operator around it
    own: list[tuple[float, float]]  # an operator's intervals outside the operators it called

    @property
    def is_op(self) -> bool:
        return bool(self.event["cat"] == "cpu_op")


@dataclass(frozen=True)
class Work:
    """One kernel, or one operator's own time: what it is, what it is part of, and its share of the time.

    `time` is in microseconds; where kernels overlap, it is split evenly, so that all times add up to the time in which
    at least one runs. In the mean over kinds of steps `count` is how often it runs a step.
    """

    kernel: str
    context: Context
    time: float
    count: float = 1.0


class Reader:
    """Reads host events in the order of time, and finds the context of each."""

    def __init__(self) -> None:
        self.stacks: dict[int, list[Span]] = {}
        self.main: int | None = None  # the thread of the step's phases
        self.makers: dict[int, str | None] = {}  # sequence number: the layer of the last forward operator
        self.node_layer: str | None = None  # of the latest node with a number

    def read(self, events: Iterable[Event]) -> list[Span]:
        """The spans of all events on the host, contexts known."""
        cats = ("cpu_op", "user_annotation", *LAUNCHES)
        host = [event for event in events if event.get("ph") == "X" and event.get("cat") in cats]
        return [self.take(event) for event in sorted(host, key=lambda e: (e["ts"], -e["dur"]))]

    def take(self, event: Event) -> Span:
        """One event, later than all before it, or inside them."""
        thread, start = event["tid"], event["ts"]
        stack = self.top_at(thread, start)
        if event["name"].startswith(PHASE):
            self.main = thread
        # The autograd engine has threads of its own: what they do, the main thread waits for in its phase.
        around = stack or (self.top_at(self.main, start) if self.main is not None else [])
        parent = around[-1] if around else None
        end = min(start + event["dur"], stack[-1].end) if stack else start + event["dur"]
        op = parent and (parent if parent.is_op else parent.op)
        span = Span(event, start, end, self.context(event, parent.context if parent else Context()), op, [(start, end)])
        if span.is_op and op is not None and stack:
            cut_out(op.own, start, end)
        stack.append(span)
        return span

    def top_at(self, thread: int, time: float) -> list[Span]:
        """The spans of a thread that are open at that time, innermost last."""
        stack = self.stacks.setdefault(thread, [])
        while stack and stack[-1].end <= time + ROUNDING:
            stack.pop()
        return stack

    def context(self, event: Event, around: Context) -> Context:
        """The context inside an event, from the one around it."""
        name, number = event["name"], event.get("args", {}).get("Sequence number")
        if event["cat"] == "user_annotation":
            if name.startswith(PHASE):
                phase = name.removeprefix(PHASE)
                # The gradient that the backward pass begins with is the loss's.
                return Context(phase, LOSS if phase in ("loss", "backward") else None)
            if name.startswith(LAYER):
                return replace(around, layer=name.removeprefix(LAYER), op=None)
            if name.startswith(UPDATE):
                return replace(around, parameters=tuple(name.removeprefix(UPDATE).split()), op=None)
            return around
        if name.startswith(NODE):
            name = name.removeprefix(NODE)
            if not name.endswith("AccumulateGrad"):  # which has no number, and follows the node whose gradient it takes
                self.node_layer = self.makers.get(number) if number is not None else None
            return replace(around, layer=self.node_layer, op=name)
        if event["cat"] == "cpu_op":
            if number is not None and around.phase in ("forward", "loss"):
                self.makers[number] = around.layer
            return replace(around, op=around.op or name)
        return around


def cut_out(intervals: list[tuple[float, float]], start: float, end: float) -> None:
    """Take start..end out of the last of the intervals, which it lies in."""
    low, high = intervals.pop()
    intervals.extend(part for part in ((low, start), (end, high)) if part[1] > part[0])
    if not intervals:
        intervals.append((high, high))


def attribute(events: list[Event], device: str, plain: Sequence[Work] = ()) -> list[Work]:
    """The work of a recorded step on a device of that type, in the order in which it began.

    A CUDA graph's kernels have one launch in common: kernel i of the replay is kernel i of the same step not captured,
    whose work `plain` is (what stands before the captured part is not in the graph), if all names are the same.
    """
    spans = Reader().read(events)
    if device != "cuda":
        ops = [span for span in spans if span.is_op]
        times = split([interval for op in ops for interval in op.own], [i for i, op in enumerate(ops) for _ in op.own])
        return [Work(op.event["name"], op.context, times.get(i, 0.0)) for i, op in enumerate(ops)]
    launched = {correlation(span.event): span.context for span in spans if correlation(span.event) is not None}
    kernels = sorted((e for e in events if e.get("cat") in KERNELS and e.get("ph") == "X"), key=lambda e: e["ts"])
    times = split([(e["ts"], e["ts"] + e["dur"]) for e in kernels], range(len(kernels)))
    nobody = Context()
    works = [
        Work(event["name"], launched.get(correlation(event), nobody), times.get(i, 0.0))
        for i, event in enumerate(kernels)
    ]
    replays = {correlation(span.event) for span in spans if span.event["name"].startswith(REPLAY)}
    replayed = [i for i, event in enumerate(kernels) if correlation(event) in replays]
    originals = plain[max(0, len(plain) - len(replayed)) :]
    alike = [works[i].kernel for i in replayed] == [work.kernel for work in originals]
    for i, original in zip(replayed, originals, strict=False):
        works[i] = replace(works[i], context=original.context if alike else nobody)
    return works


def correlation(event: Event) -> int | None:
    """The number that a kernel and the call that launched it share."""
    number: int | None = event.get("args", {}).get("correlation") if event["cat"] in (*KERNELS, *LAUNCHES) else None
    return number


def split(intervals: list[tuple[float, float]], owners: Iterable[int]) -> dict[int, float]:
    """The time of each owner of intervals; where several run, each gets an even share."""
    edges = sorted(
        edge
        for (start, end), owner in zip(intervals, owners, strict=True)
        if end > start
        for edge in ((start, 1, owner), (end, 0, owner))
    )
    running: list[int] = []
    times: dict[int, float] = {}
    before = 0.0
    for time, starts, owner in edges:
        for each in running:
            times[each] = times.get(each, 0.0) + (time - before) / len(running)
        before = time
        if starts:
            running.append(owner)
        else:
            running.remove(owner)
    return times


def annotated(events: list[Event], rows: dict[str, str]) -> list[Event]:
    """The events with phase and layer among their arguments, for a viewer; `rows` gives a layer's row in the tables."""
    spans = {id(span.event): span.context for span in Reader().read(events)}
    launched = {correlation(event): spans[id(event)] for event in events if id(event) in spans}
    result = []
    for event in events:
        context = spans.get(id(event))
        if event.get("cat") in KERNELS:
            context = launched.get(correlation(event))
        if context is None or event.get("ph") != "X":
            result.append(event)
            continue
        layer = rows.get(context.layer or "", context.layer)
        known = {key: value for key, value in (("phase", context.phase), ("layer", layer)) if value}
        result.append({**event, "args": {**event.get("args", {}), **known}})
    return result
