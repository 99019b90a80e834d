"""Pictures as SVG that need nothing else: they open in a browser and in an image viewer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from fastcifar.bench.report import label
from fastcifar.cli.display.chart import Axis, axis, draw

if TYPE_CHECKING:
    from fastcifar.bench.records import RunRecord
    from fastcifar.bench.report import Report, Summary

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


def scatter(runs: list[RunRecord], report: Report) -> str:
    """Accuracy against train time as SVG: every run a point, the means with their intervals, the target a line."""
    width, height = SCATTER
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "font-family": "DejaVu Sans, Verdana, sans-serif",
            "font-size": "12",
        },
    )
    draw(svg, "rect", {"width": width, "height": height, "fill": "white"})
    x, y = scatter_axes(runs, report)
    draw_grid(svg, x, y)
    if report.target is not None:
        draw_target(svg, y, report.target)
    across = FRAME[0] + 400.0  # of the legend
    for i, summary in enumerate(report.recipes):
        color = SERIES[i % len(SERIES)]
        name = label(summary.name, summary.fraction)
        for run in runs:
            if (run.name, run.fraction) == (summary.name, summary.fraction):
                draw_run(svg, x, y, run, color)
        draw(svg, "rect", {"x": across, "y": 13, "width": 12, "height": 12, "fill": color})
        draw(svg, "text", {"x": across + 17, "y": 23}, name)
        across += 34 + 7.5 * len(name)
        draw_mean(svg, x, y, summary, color)
    ElementTree.indent(svg, "")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def scatter_axes(runs: list[RunRecord], report: Report) -> tuple[Axis, Axis]:
    """Axes of train times in seconds and of accuracies in percent that hold all runs, intervals and the target."""
    times = [run.train_s for run in runs if run.train_s is not None]
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    for summary in report.recipes:
        times += summary.train_s.ci95 or () if summary.train_s else ()
        accuracies += summary.accuracy.ci95 or () if summary.accuracy else ()
    percents = [100 * accuracy for accuracy in accuracies] + ([] if report.target is None else [report.target])
    width, height = SCATTER
    return axis(times, FRAME[0], width - FRAME[2]), axis(percents, height - FRAME[3], FRAME[1])


def draw_grid(svg: ElementTree.Element, x: Axis, y: Axis) -> None:
    """The ticks, the names of the axes and the title."""
    width, height = SCATTER
    for value in x.ticks():
        at, bottom = x.place(value), height - FRAME[3]
        draw(svg, "line", {"x1": at, "x2": at, "y1": FRAME[1], "y2": bottom, "stroke": "#eee"})
        draw(svg, "text", {"x": at, "y": bottom + 18, "text-anchor": "middle"}, f"{value:.6g}")
    for value in y.ticks():
        at = y.place(value)
        draw(svg, "line", {"x1": FRAME[0], "x2": width - FRAME[2], "y1": at, "y2": at, "stroke": "#eee"})
        draw(svg, "text", {"x": FRAME[0] - 8, "y": at + 4, "text-anchor": "end"}, f"{value:.6g}")
    middle = FRAME[1] + (height - FRAME[1] - FRAME[3]) / 2
    draw(svg, "text", {"x": width / 2, "y": height - 16, "text-anchor": "middle"}, "train time, s")
    upright = {"transform": f"translate(18 {middle}) rotate(-90)", "text-anchor": "middle"}
    draw(svg, "text", {**upright}, "accuracy, %")
    title = "every run a point; means with their 95 % intervals"
    draw(svg, "text", {"x": FRAME[0], "y": 24, "font-size": 14}, title)


def draw_target(svg: ElementTree.Element, y: Axis, target: float) -> None:
    """The target as a dashed line; `target` in percent."""
    at, right = y.place(target), SCATTER[0] - FRAME[2]
    draw(svg, "line", {"x1": FRAME[0], "x2": right, "y1": at, "y2": at, "stroke": "#555", "stroke-dasharray": "6 4"})
    draw(svg, "text", {"x": right - 4, "y": at - 5, "text-anchor": "end"}, f"{target:g} %")


def draw_run(svg: ElementTree.Element, x: Axis, y: Axis, run: RunRecord, color: str) -> None:
    """A finished run as a point with its figures as the tooltip."""
    if run.accuracy is None or run.train_s is None:
        return
    center = {"cx": x.place(run.train_s), "cy": y.place(100 * run.accuracy)}
    point = draw(svg, "circle", {**center, "r": 3, "fill": color, "fill-opacity": "0.45"})
    words = f"{label(run.name, run.fraction)}, seed {run.seed}: {100 * run.accuracy:.2f} % in {run.train_s:.3g} s"
    draw(point, "title", text=words)


def draw_mean(svg: ElementTree.Element, x: Axis, y: Axis, summary: Summary, color: str) -> None:
    """The means of a recipe with their intervals as a cross; nothing where its times are of several machines."""
    if summary.accuracy is None or summary.train_s is None:
        return
    low, high = summary.accuracy.ci95 or (summary.accuracy.mean, summary.accuracy.mean)
    fast, slow = summary.train_s.ci95 or (summary.train_s.mean, summary.train_s.mean)
    across, down = x.place(summary.train_s.mean), y.place(100 * summary.accuracy.mean)
    stroke = {"stroke": color, "stroke-width": "2.5"}
    draw(svg, "line", {"x1": x.place(fast), "y1": down, "x2": x.place(slow), "y2": down, **stroke})
    draw(svg, "line", {"x1": across, "y1": y.place(100 * low), "x2": across, "y2": y.place(100 * high), **stroke})
    draw(svg, "circle", {"cx": across, "cy": down, "r": 5, "fill": color, "stroke": "white"})
