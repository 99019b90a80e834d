"""Pictures as SVG that need nothing else: they open in a browser and in an image viewer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from fastcifar.bench.report import Report
    from fastcifar.bench.results import Record

Document = Mapping[str, Any]  # a part of a command's JSON document

WIDTH, MARGIN, HEAD = 1400, 12, 64  # pixels
ROWS = (26, 26, 150, 200)  # pixels; heights of step, phase, layer and kernel
LETTER, LINE = 6.9, 13  # width and height of a letter of the labels, pixels
NARROWEST = 0.25  # a box below this width would not be seen, pixels
COLORS = {"arithmetic": "#8fc98f", "memory": "#8fb4e3", "launches": "#f0d37a"}
PLAIN, IDLE = "#d9d9d9", "#f5f5f5"
BOUNDS = {
    "arithmetic": "bound by arithmetic",
    "memory": "bound by memory",
    "launches": "bound by launches",
}


@dataclass
class Box:
    """A rectangle of the icicle with those below it, whose widths add up to no more than its own."""

    name: str
    ms: float
    color: str
    tip: str
    below: list[Box] = field(default_factory=list)


def icicle(document: Document) -> str:
    """The icicle plot of a profile's JSON document, as SVG.

    Step, phase, layer, kernel, from top to bottom: width is time, colour is what bounds the layer.
    """
    height = HEAD + sum(ROWS) + 44
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height}",
            "width": str(WIDTH),
            "height": str(height),
            "font-family": "DejaVu Sans, Verdana, sans-serif",
            "font-size": "11",
        },
    )
    draw(svg, "rect", {"width": WIDTH, "height": height, "fill": "white"})
    title = (
        f"{document['recipe']}: one step of {document['batch']} images, {document['engine']} engine, "
        f"{document['device']}"
    )
    subtitle = (
        f"step, phase, layer, kernel: width is time; {document['step_ms']:.2f} ms a step, "
        f"kernels {document['kernel_ms']:.2f} ms"
    )
    draw(svg, "text", {"x": MARGIN, "y": 22, "font-size": 15}, title)
    draw(svg, "text", {"x": MARGIN, "y": 42, "fill": "#555"}, subtitle)
    root = step_box(document)
    draw_box(svg, root, MARGIN, 0, (WIDTH - 2 * MARGIN) / root.ms)
    draw_legend(svg, HEAD + sum(ROWS) + 14)
    ElementTree.indent(svg, "")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def step_box(document: Document) -> Box:
    """The tree of a profile: phases and layers in the order of their work, kernels largest first, idle time last."""
    layers = {layer["name"]: layer for layer in document["layers"]}
    whole = document["kernel_ms"] + document["idle_ms"]
    times: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for item in document["items"]:
        phase = item["phase"] or "unattributed"
        times[phase][item["layer"] or phase][item["kernel"]] += item["ms"]
    order = [*document["phases"], "unattributed"]
    root = Box("step", whole, PLAIN, f"step: {whole:.3f} ms")
    for phase in sorted(times, key=order.index):
        below = [layer_box(name, kernels, layers.get(name), phase, whole) for name, kernels in times[phase].items()]
        root.below.append(parent_box(phase, below, PLAIN, whole))
    if document["idle_ms"] > 0:
        root.below.append(Box("idle", document["idle_ms"], IDLE, tooltip("idle", document["idle_ms"], whole)))
    return root


def layer_box(name: str, kernels: dict[str, float], layer: Document | None, phase: str, whole: float) -> Box:
    """One layer in one phase, with its kernels; `kernels` and `whole` in milliseconds."""
    costs = layer if phase in ("forward", "backward") else None  # what bounds a layer is known of these phases only
    color = COLORS[costs["bound"]] if costs else PLAIN
    below = [Box(kernel, ms, color, tooltip(f"{name}: {kernel}", ms, whole)) for kernel, ms in kernels.items()]
    below.sort(key=lambda box: -box.ms)
    return parent_box(name, below, color, whole, layer_figures(costs) if costs else "")


def parent_box(name: str, below: list[Box], color: str, whole: float, figures: str = "") -> Box:
    """A box around others, as wide as all of them."""
    ms = sum(box.ms for box in below)
    return Box(name, ms, color, tooltip(name, ms, whole) + figures, below)


def tooltip(name: str, ms: float, whole: float) -> str:
    """A name with its time and its share of the step."""
    return f"{name}: {ms:.3f} ms, {100 * ms / whole:.1f} % of the step"


def layer_figures(layer: Document) -> str:
    """The figures of a layer, for its tooltip."""
    shape = "×".join(map(str, layer["output"] or ())) or "unknown"
    return (
        f"\n{layer['kind']}, output {shape}, {layer['parameters']:,} parameters\n"
        f"forward {layer['forward_ms']:.3f} ms, backward {layer['backward_ms']:.3f} ms, "
        f"update {layer['optimizer_ms']:.3f} ms\n"
        f"{layer['flops'] / 1e9:.3g} GFLOP, {layer['bytes'] / 1e6:.3g} MB; "
        f"{layer['tflops']:.3g} TFLOP/s, {layer['gb_per_s']:.3g} GB/s\n"
        f"{BOUNDS[layer['bound']]}, {100 * layer['roofline_share']:.0f} % of the roofline"
    )


def draw(
    parent: ElementTree.Element, tag: str, attributes: dict[str, str | float] | None = None, text: str = ""
) -> ElementTree.Element:
    """Add an element to the picture; numbers that are not whole are rounded to a hundredth."""
    written = {name: f"{v:.2f}" if isinstance(v, float) else str(v) for name, v in (attributes or {}).items()}
    element = ElementTree.SubElement(parent, tag, written)
    element.text = text or None
    return element


def draw_box(parent: ElementTree.Element, box: Box, x: float, level: int, scale: float) -> None:
    """The box and all below it; `scale` is in pixels a millisecond."""
    width, height, y = box.ms * scale, ROWS[level], HEAD + sum(ROWS[:level])
    if width < NARROWEST:
        return
    group = draw(parent, "g")
    draw(group, "title", text=box.tip)
    frame = {"x": float(x), "y": y, "width": width, "height": height - 1}
    draw(group, "rect", {**frame, "fill": box.color, "stroke": "white", "stroke-width": 0.5})
    draw_label(group, box.name, x, y, width, height)
    for child in box.below:
        draw_box(parent, child, x, level + 1, scale)
        x += child.ms * scale


def draw_label(parent: ElementTree.Element, name: str, x: float, y: float, width: float, height: float) -> None:
    """A name inside its box: level where it fits, else upright, as much of it as there is room for; or nothing."""
    if len(name) * LETTER + 6 <= width:
        draw(parent, "text", {"x": x + 3.0, "y": y + 17}, name)
        return
    letters = int((height - 8) / LETTER)
    if width < LINE or letters < 5:
        return
    shown = name if len(name) <= letters else name[: letters - 1] + "…"
    draw(parent, "text", {"transform": f"translate({x + width / 2 + 4:.2f} {y + height - 5}) rotate(-90)"}, shown)


def draw_legend(parent: ElementTree.Element, y: float) -> None:
    """What the colours mean."""
    x = float(MARGIN)
    for color, text in [*((COLORS[name], text) for name, text in BOUNDS.items()), (PLAIN, "other"), (IDLE, "idle")]:
        draw(parent, "rect", {"x": x, "y": y, "width": 14, "height": 14, "fill": color, "stroke": "#999"})
        draw(parent, "text", {"x": x + 19, "y": y + 11}, text)
        x += 40 + LETTER * len(text)


SCATTER = (900, 560)  # pixels
FRAME = (70, 40, 30, 60)  # left, top, right, bottom of the plot, pixels
SERIES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
TICKS = 5


def scatter(runs: list[Record], report: Report) -> str:
    """Accuracy against train time: every run a point, the means with their intervals, the target a line."""
    width, height = SCATTER
    done = [run for run in runs if run["accuracy"] is not None]
    target = report.target
    means = [one for one in report.recipes if one.accuracy and one.train_s]
    ends = [end for one in means if one.train_s for end in one.train_s.ci95 or ()]
    x = axis([*(run["train_s"] for run in done), *ends], FRAME[0], width - FRAME[2])
    ends = [end for one in means if one.accuracy for end in one.accuracy.ci95 or ()]
    accuracies = [100 * value for value in [*(run["accuracy"] for run in done), *ends]]
    y = axis(accuracies + ([target] if target is not None else []), height - FRAME[3], FRAME[1])
    across = FRAME[0] + 400.0  # of the legend
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *grid(x, y),
    ]
    if target is not None:
        line = f'x1="{FRAME[0]}" x2="{width - FRAME[2]}" y1="{y.place(target):.1f}" y2="{y.place(target):.1f}"'
        parts.append(f'<line {line} stroke="#555" stroke-dasharray="6 4"/>')
        parts.append(
            f'<text x="{width - FRAME[2] - 4}" y="{y.place(target) - 5:.1f}" text-anchor="end">{target:g} %</text>'
        )
    for i, one in enumerate(report.recipes):
        color = SERIES[i % len(SERIES)]
        for run in (run for run in done if run["name"] == one.name):
            at = f'cx="{x.place(run["train_s"]):.1f}" cy="{y.place(100 * run["accuracy"]):.1f}"'
            words = f"{one.name}, seed {run['seed']}: {100 * run['accuracy']:.2f} % in {run['train_s']:.3g} s"
            parts.append(
                f'<circle {at} r="3" fill="{color}" fill-opacity="0.45"><title>{escape(words)}</title></circle>'
            )
        parts.append(f'<rect x="{across:.0f}" y="13" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{across + 17:.0f}" y="23">{escape(one.name)}</text>')
        across += 34 + 7.5 * len(one.name)
        if one.accuracy and one.train_s:
            low, high = one.accuracy.ci95 or (one.accuracy.mean, one.accuracy.mean)
            quick, slow = one.train_s.ci95 or (one.train_s.mean, one.train_s.mean)
            middle = (x.place(one.train_s.mean), y.place(100 * one.accuracy.mean))
            for x1, y1, x2, y2 in [
                (x.place(quick), middle[1], x.place(slow), middle[1]),
                (middle[0], y.place(100 * low), middle[0], y.place(100 * high)),
            ]:
                line = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
                parts.append(f'<line {line} stroke="{color}" stroke-width="2.5"/>')
            parts.append(f'<circle cx="{middle[0]:.1f}" cy="{middle[1]:.1f}" r="5" fill="{color}" stroke="white"/>')
    return "\n".join([*parts, "</svg>\n"])


@dataclass(frozen=True)
class Axis:
    """Values `low`..`high` on pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values across the axis."""
        step = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(step))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= step)
        first = math.ceil(self.low / step)
        return [step * i for i in range(first, math.floor(self.high / step) + 1)]


def axis(values: list[float], start: float, end: float) -> Axis:
    """An axis that holds the values with a margin."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start, end)


def grid(x: Axis, y: Axis) -> Iterable[str]:
    """The frame with its ticks and names."""
    width, height = SCATTER
    for value in x.ticks():
        at = x.place(value)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{FRAME[1]}" y2="{height - FRAME[3]}" stroke="#eee"/>'
        yield f'<text x="{at:.1f}" y="{height - FRAME[3] + 18}" text-anchor="middle">{value:.6g}</text>'
    for value in y.ticks():
        at = y.place(value)
        yield f'<line x1="{FRAME[0]}" x2="{width - FRAME[2]}" y1="{at:.1f}" y2="{at:.1f}" stroke="#eee"/>'
        yield f'<text x="{FRAME[0] - 8}" y="{at + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    middle = FRAME[1] + (height - FRAME[1] - FRAME[3]) / 2
    yield f'<text x="{width / 2}" y="{height - 16}" text-anchor="middle">train time, s</text>'
    yield f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">accuracy, %</text>'
    yield f'<text x="{FRAME[0]}" y="24" font-size="14">every run a point; means with their 95 % intervals</text>'
