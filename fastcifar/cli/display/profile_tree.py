"""A profile as a tree of boxes: step, phase, layer, kernel; what its pictures draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastcifar.cli.display.figures import kernel_label, megabytes, ms, number, percent

Record = Mapping[str, Any]  # a part of a profile's JSON document

BOUNDS = {
    "arithmetic": "bound by arithmetic",
    "memory": "bound by memory",
    "launches": "bound by launches",
    "plain": "other or mixed",
    "idle": "idle",
}
# Told apart by the colour-blind (Okabe and Ito, "Color Universal Design", 2008, lightened), and light enough for black
# letters on them.
COLORS = {
    "arithmetic": "#7fcdbb",
    "memory": "#8ec7f0",
    "launches": "#f5cc6a",
    "plain": "#d5d5d5",
    "idle": "#f2f2f2",
}


HARDLY_ATTRIBUTED = 0.9  # share of the kernel time in no layer from which the layers' own figures say nothing


@dataclass
class Box:
    """A part of the step and those below it, whose times add up to no more than its own.

    `lines` say the figures, the first of them name, time and share; `bound` is a key of `BOUNDS`; `label` is what
    stands in the box, where that is not the name.
    """

    name: str
    ms: float
    bound: str
    lines: list[str]
    below: list[Box] = field(default_factory=list)
    label: str = ""

    @property
    def shown(self) -> str:
        """What stands in the box."""
        return self.label or self.name

    @property
    def tip(self) -> str:
        """What is shown on hover."""
        return "\n".join(self.lines)


def step_box(document: Record) -> Box:
    """The tree of a profile: phases and layers in the order of their work, kernels largest first, idle time last."""
    layers = {layer["name"]: layer for layer in document["layers"]}
    whole = whole_ms(document)
    items: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for item in document.get("items") or layer_items(document):
        phase = item["phase"] or "unattributed"
        items[phase][item["layer"] or phase].append(item)
    spread = f"{ms(document['step_ms'])} ± {ms(document['step_std_ms'])} ms a step (mean ± standard deviation)"
    root = Box("step", whole, "plain", [f"step: {ms(whole)} ms", spread])
    for phase in (each for each in dict.fromkeys([*document["phases"], "unattributed", *items]) if each in items):
        below = [layer_box(name, each, layers.get(name), phase, whole) for name, each in items[phase].items()]
        time = sum(box.ms for box in below)
        root.below.append(Box(phase, time, "plain", [headline(phase, time, whole)], below))
    if document["idle_ms"] > 0:
        idle = document["idle_ms"]
        root.below.append(Box("idle", idle, "idle", [headline("idle", idle, whole)]))
    return root


def layer_items(document: Record) -> Iterator[Record]:
    """What stands for the kernels in documents of earlier versions, which have none: one item a layer and phase."""
    for phase in ("forward", "backward", "optimizer"):
        for layer in document["layers"]:
            if layer[f"{phase}_ms"]:
                yield {"phase": phase, "layer": layer["name"], "kernel": "all its kernels", "ms": layer[f"{phase}_ms"]}
    for phase in ("data", "loss"):
        yield {"phase": phase, "layer": None, "kernel": "all its kernels", "ms": document["phases"][phase]}
    yield {"phase": None, "layer": None, "kernel": "all of them", "ms": document["unattributed_ms"]}


def whole_ms(document: Record) -> float:
    """Milliseconds of a step, idle time included."""
    return float(document["kernel_ms"] + document["idle_ms"])


def unattributed_note(document: Record) -> str:
    """Says that hardly anything is known by layer, where that is so, and what is shown in its place; else empty."""
    share = document["unattributed_ms"] / document["kernel_ms"] if document["kernel_ms"] else 0.0
    if share < HARDLY_ATTRIBUTED:
        return ""
    advice = "" if document["engine"] == "eager" else "; --engine eager shows the layers"
    return (
        f"With the {document['engine']} engine {percent(share)} of the kernel time could not be attributed to layers: "
        f"the kernels are shown by name{advice}."
    )


def layer_box(name: str, items: list[Record], layer: Record | None, phase: str, whole: float) -> Box:
    """One layer in one phase, with its kernels; `whole` in milliseconds."""
    bound = bound_of(layer) if layer is not None and phase in ("forward", "backward") else "plain"
    below = [kernel_box(item, bound, whole) for item in items]
    below.sort(key=lambda box: -box.ms)
    time = sum(box.ms for box in below)
    full = name if name == phase else f"{name}, {phase}"
    return Box(name, time, bound, [headline(full, time, whole), *layer_lines(layer, phase)], below)


def bound_of(layer: Record) -> str:
    """What bounds a layer in forward and backward, a key of `BOUNDS`: "plain" where it took no time there, or where
    none of its operations and bytes were counted."""
    known = (layer["flops"] or layer["bytes"]) and layer["forward_ms"] + layer["backward_ms"]
    return str(layer["bound"]) if known else "plain"


def kernel_box(item: Record, bound: str, whole: float) -> Box:
    """One kernel of a layer in one phase."""
    lines = [headline(item["kernel"], item["ms"], whole)]
    if "std" in item:
        lines.append(f"± {ms(item['std'])} ms, {number(item['count'])} times a step")
    if item.get("op", item["kernel"]) != item["kernel"]:
        lines.append(f"of {item['op']}")
    return Box(item["kernel"], item["ms"], bound, lines, label=kernel_label(item["kernel"]))


def headline(name: str, time: float, whole: float) -> str:
    """A name with its time and its share of the step, milliseconds."""
    return f"{name}: {ms(time)} ms, {percent(time / whole if whole else 0.0)} of the step"


def layer_lines(layer: Record | None, phase: str) -> list[str]:
    """The figures of a layer in a phase: spread, shape, cost, bound."""
    if layer is None:
        return []
    shape = "×".join(map(str, (layer["output"] or ())[1:]))
    lines = [
        f"all its phases: {ms(layer['total_ms'])} ± {ms(layer['total_std_ms'])} ms",
        f"{layer['kind']}{f', output {shape}' if shape else ''}, {layer['parameters']:,} parameters",
    ]
    if phase not in ("forward", "backward"):
        return lines
    flops, size = (layer.get(f"{phase}_{cost}") for cost in ("flops", "bytes"))
    if flops is not None and size:  # documents of earlier versions have the sum alone
        lines.append(f"{phase}: {number(flops / 1e9)} GFLOP, {megabytes(size)} MB")
    if (bound := bound_of(layer)) == "plain":
        return lines
    both = f"both directions: {number(layer['tflops'])} TFLOP/s, {number(layer['gb_per_s'])} GB/s"
    return [*lines, both, f"{BOUNDS[bound]}, {percent(layer['roofline_share'], 0)} of the roofline"]


def fold(boxes: list[Box], least: float) -> list[Box]:
    """The boxes, neighbours of less than `least` milliseconds together as one: "3 others".

    A run of narrow ones ends where it is wide enough; one that stands alone stays, for its name says more.
    """
    folded: list[Box] = []
    run: list[Box] = []
    for box in boxes:
        narrow = box.ms < least and box.bound != "idle"
        if not narrow or sum(each.ms for each in run) >= least:
            folded += together(run)
            run = []
        if narrow:
            run.append(box)
        else:
            folded.append(box)
    return folded + together(run)


def together(run: list[Box]) -> list[Box]:
    """Neighbours as one box; nothing, or the box itself, where there are not two."""
    if len(run) < 2:
        return run
    time, bounds = sum(box.ms for box in run), {box.bound for box in run}
    lines = [f"{len(run)} others: {ms(time)} ms", f"{run[0].name} … {run[-1].name}"]
    return [Box(f"{len(run)} others", time, bounds.pop() if len(bounds) == 1 else "plain", lines)]
