"""Attribution: the kernels of a recorded step, each with the phase and the layer that caused it.

Reads the events of one step as PyTorch's profiler writes them (Chrome's trace format). On CUDA the kernels are found
from the call that launched them; on a CPU every operator counts as a kernel, with its own time, without the operators
it called.

How a layer is known: in the forward pass an operator lies inside its layer's range. An autograd node carries the
sequence number that was next when its forward operator ran, so what runs inside a node belongs to the layer of the
last forward operator with that number (operators that make no node carry the number of the one after them). A layer
that is recomputed in the backward pass makes its nodes there; where the backward pass has a thread of its own, that
thread numbers them anew, and a node says which thread made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from fastcifar.training.annotations import LAYER, PHASE, UPDATE

Event = dict[str, Any]
NODE = "autograd::engine::evaluate_function: "
MAKER = "Fwd thread id"  # of a node: the thread of the operator that made it; of an operator 0
LOSS = "loss"  # the layer of what the loss causes in the backward pass
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
REPLAY = "cudaGraphLaunch"
ROUNDING = 0.002  # microseconds; what a time of day in microseconds is rounded to, in the file and in a float


@dataclass(frozen=True)
class Scope:
    """What an event is part of; None: unknown."""

    phase: str | None = None
    layer: str | None = None
    op: str | None = None  # the operator that the program called, or the autograd node
    parameters: tuple[str, ...] = ()  # what it updates, in the optimizer's phase; empty: all


@dataclass
class Span:
    """One event on the host: an operator, a range, or a call that launches a kernel; microseconds."""

    event: Event
    start: float
    end: float
    scope: Scope
    op: Span | None  # the operator around it
    own: list[tuple[float, float]]  # an operator's intervals outside the operators it called

    @property
    def is_op(self) -> bool:
        return bool(self.event["cat"] == "cpu_op")


@dataclass(frozen=True)
class KernelTime:
    """One execution of a kernel (on a CPU: an operator's own time) with its scope and its share of the time.

    `time` is in microseconds; where kernels overlap, it is split evenly, so that all times add up to the time in which
    at least one runs. In the mean of several kinds of steps `count` is how often it runs in a step.
    """

    kernel: str
    scope: Scope
    time: float
    count: float = 1.0


class EventReader:
    """Reads host events in order of time, and finds the scope of each."""

    def __init__(self) -> None:
        self.stacks: dict[int, list[Span]] = {}  # the open spans of each thread, innermost last
        self.main_thread: int | None = None  # the thread of the step's phases
        # By whether the main thread numbered it, and the sequence number: the layer of the last forward operator.
        self.forward_layers: dict[tuple[bool, int], str | None] = {}
        self.node_layer: str | None = None  # of the latest node with a number
        self.first_maker: int | None = None  # the thread that made the first node, the main one, as nodes name it

    def read(self, events: Iterable[Event]) -> list[Span]:
        """The spans of all events on the host, with their scopes."""
        cats = ("cpu_op", "user_annotation", *LAUNCHES)
        host = [event for event in events if event.get("ph") == "X" and event.get("cat") in cats]
        return [self.add(event) for event in sorted(host, key=lambda e: (e["ts"], -e["dur"]))]

    def add(self, event: Event) -> Span:
        """The span of one event that starts later than all before it, or inside them."""
        thread, start = event["tid"], event["ts"]
        stack = self.open_spans(thread, start)
        if event["name"].startswith(PHASE):
            self.main_thread = thread
        # The autograd engine has threads of its own: what they do, the main thread waits for in its phase.
        around = stack or (self.open_spans(self.main_thread, start) if self.main_thread is not None else [])
        parent = around[-1] if around else None
        end = min(start + event["dur"], stack[-1].end) if stack else start + event["dur"]
        op = parent and (parent if parent.is_op else parent.op)
        span = Span(event, start, end, self.scope(event, parent.scope if parent else Scope()), op, [(start, end)])
        if span.is_op and op is not None and stack:
            cut_out(op.own, start, end)
        stack.append(span)
        return span

    def open_spans(self, thread: int, time: float) -> list[Span]:
        """The spans of a thread that are open at that time, innermost last."""
        stack = self.stacks.setdefault(thread, [])
        while stack and stack[-1].end <= time + ROUNDING:
            stack.pop()
        return stack

    def scope(self, event: Event, around: Scope) -> Scope:
        """The scope inside an event, from the one around it."""
        name = event["name"]
        if event["cat"] == "user_annotation":
            return annotation_scope(name, around)
        if name.startswith(NODE):
            node = name.removeprefix(NODE)
            if not node.endswith("AccumulateGrad"):  # which has no number, and follows the node whose gradient it takes
                self.node_layer = self.layer_of_node(event["args"])
            return replace(around, layer=self.node_layer, op=node)
        if event["cat"] == "cpu_op":
            self.note_number(event, around.layer)
            return replace(around, op=around.op or name)
        return around

    def note_number(self, event: Event, layer: str | None) -> None:
        """Note the layer of an operator that has a number, which is that of the node it makes."""
        arguments = event.get("args", {})
        number = arguments.get("Sequence number")
        if number is not None and not arguments.get(MAKER):  # which nodes have, whose numbers are those they were given
            self.forward_layers[event["tid"] == self.main_thread, number] = layer

    def layer_of_node(self, arguments: Mapping[str, Any]) -> str | None:
        """The layer of the forward operator that made a node, by the node's arguments."""
        number, maker = arguments.get("Sequence number"), arguments.get(MAKER)
        if number is None:
            return None
        if self.first_maker is None:
            self.first_maker = maker
        return self.forward_layers.get((maker == self.first_maker, number))


def annotation_scope(name: str, around: Scope) -> Scope:
    """The scope inside one of the ranges of `training.annotations`."""
    if name.startswith(PHASE):
        phase = name.removeprefix(PHASE)
        # The gradient that the backward pass begins with is the loss's.
        return Scope(phase, LOSS if phase in ("loss", "backward") else None)
    if name.startswith(LAYER):
        return replace(around, layer=name.removeprefix(LAYER), op=None)
    if name.startswith(UPDATE):
        return replace(around, parameters=tuple(name.removeprefix(UPDATE).split()), op=None)
    return around


def cut_out(intervals: list[tuple[float, float]], start: float, end: float) -> None:
    """Take start..end out of the last of the intervals, in which it lies."""
    low, high = intervals.pop()
    intervals.extend(part for part in ((low, start), (end, high)) if part[1] > part[0])
    if not intervals:
        intervals.append((high, high))


def attribute(events: list[Event], device_type: str, uncaptured: Sequence[KernelTime] = ()) -> list[KernelTime]:
    """The kernels of a step recorded on a device of that type, in the order in which they began.

    `uncaptured` are the kernels of the same step not captured, where this one replays a CUDA graph.
    """
    spans = EventReader().read(events)
    if device_type != "cuda":
        return attribute_operators(spans)
    kernels = sorted((e for e in events if e.get("cat") in KERNELS and e.get("ph") == "X"), key=lambda e: e["ts"])
    return attribute_replay(kernels, spans, attribute_kernels(kernels, spans), uncaptured)


def attribute_operators(spans: list[Span]) -> list[KernelTime]:
    """Every operator's own time, on a CPU."""
    ops = [span for span in spans if span.is_op]
    times = split_overlap([part for op in ops for part in op.own], [i for i, op in enumerate(ops) for _ in op.own])
    return [KernelTime(op.event["name"], op.scope, times.get(i, 0.0)) for i, op in enumerate(ops)]


def attribute_kernels(kernels: list[Event], spans: list[Span]) -> list[KernelTime]:
    """CUDA kernels, each with the scope of the call that launched it."""
    launches = {correlation(span.event): span.scope for span in spans if correlation(span.event) is not None}
    times = split_overlap([(e["ts"], e["ts"] + e["dur"]) for e in kernels], range(len(kernels)))
    return [
        KernelTime(event["name"], launches.get(correlation(event), Scope()), times.get(i, 0.0))
        for i, event in enumerate(kernels)
    ]


def attribute_replay(
    kernels: list[Event], spans: list[Span], times: list[KernelTime], uncaptured: Sequence[KernelTime]
) -> list[KernelTime]:
    """The same times, those of a replayed CUDA graph with the scopes of the step not captured.

    A graph's kernels have one launch in common, so they are told by their order: the longest common subsequence of
    names says which kernel of the replay is which of the step not captured (one may set memory by a kernel where the
    other does not). One that is in the replay alone has the scope of its neighbours, if they have the same.
    """
    replays = {correlation(span.event) for span in spans if span.event["name"].startswith(REPLAY)}
    replayed = [i for i, event in enumerate(kernels) if correlation(event) in replays]
    scopes = matched_scopes([times[i].kernel for i in replayed], uncaptured)
    result = list(times)
    for i, scope in zip(replayed, scopes, strict=True):
        result[i] = replace(times[i], scope=scope)
    return result


def matched_scopes(names: Sequence[str], originals: Sequence[KernelTime]) -> list[Scope]:
    """The scopes of kernels of those names, from the same kernels in nearly the same order."""
    matcher = SequenceMatcher(None, list(map(kind_of, names)), [kind_of(each.kernel) for each in originals], False)
    scopes: list[Scope | None] = [None] * len(names)
    for start, original, length in matcher.get_matching_blocks():
        scopes[start : start + length] = [each.scope for each in originals[original : original + length]]
    before = after = Scope()
    following = []  # of each kernel, the scope of the next one that is known
    for scope in reversed(scopes):
        after = scope or after
        following.append(after)
    for i, after in enumerate(reversed(following)):
        before = scopes[i] or before
        scopes[i] = before if before == after else scopes[i] or Scope()
    return [scope or Scope() for scope in scopes]


def kind_of(name: str) -> str:
    """The name of a kernel, one for all that set memory: in a graph the driver may use another one."""
    return "memset" if name.lower().startswith("memset") else name


def correlation(event: Event) -> int | None:
    """The number that a kernel and the call that launched it share."""
    number: int | None = event.get("args", {}).get("correlation") if event["cat"] in (*KERNELS, *LAUNCHES) else None
    return number


def split_overlap(intervals: list[tuple[float, float]], keys: Iterable[int]) -> dict[int, float]:
    """The time in the intervals of each key; while several are open, each gets an even share."""
    edges = sorted(
        edge
        for (start, end), key in zip(intervals, keys, strict=True)
        if end > start
        for edge in ((start, 1, key), (end, 0, key))
    )
    running: list[int] = []
    times: dict[int, float] = {}
    before = 0.0
    for time, starts, key in edges:
        for open_key in running:
            times[open_key] = times.get(open_key, 0.0) + (time - before) / len(running)
        before = time
        if starts:
            running.append(key)
        else:
            running.remove(key)
    return times


def annotate(events: list[Event], layer_names: Mapping[str, str]) -> list[Event]:
    """The events with phase and layer among their arguments, for a trace viewer.

    `layer_names` gives the name in the tables for the name of a module.
    """
    spans = {id(span.event): span.scope for span in EventReader().read(events)}
    launches = {correlation(event): spans[id(event)] for event in events if id(event) in spans}
    result = []
    for event in events:
        scope = spans.get(id(event))
        if event.get("cat") in KERNELS:
            scope = launches.get(correlation(event))
        if scope is None or event.get("ph") != "X":
            result.append(event)
            continue
        layer = layer_names.get(scope.layer or "", scope.layer)
        known = {key: value for key, value in (("phase", scope.phase), ("layer", layer)) if value}
        result.append({**event, "args": {**event.get("args", {}), **known}})
    return result
