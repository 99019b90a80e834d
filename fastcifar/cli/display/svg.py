"""Pictures as SVG that need nothing else: they open in a browser and in an image viewer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcifar.bench.report import Report
    from fastcifar.bench.results import Record
    from fastcifar.profiling.result import Layer, Profile

WIDTH, MARGIN, HEAD = 1400, 12, 64  # pixels
ROWS = (26, 26, 150, 200)  # heights of step, phase, layer and kernel, pixels
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


def icicle(profile: Profile, device: str) -> str:
    """Step, phase, layer, kernel, from top to bottom: width is time, colour what bounds the layer."""
    root = boxes(profile)
    body = list(drawn(root, MARGIN, 0, (WIDTH - 2 * MARGIN) / root.ms))
    height = HEAD + sum(ROWS) + 44
    title = f"{profile.recipe}: one step of {profile.batch} images, {profile.engine} engine, {device}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="DejaVu Sans, Verdana, sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{MARGIN}" y="22" font-size="15">{escape(title)}</text>',
            f'<text x="{MARGIN}" y="42" fill="#555">step, phase, layer, kernel: width is time; '
            f"{profile.step_ms:.2f} ms a step, kernels {profile.kernel_ms:.2f} ms</text>",
            *body,
            *legend(HEAD + sum(ROWS) + 14),
            "</svg>\n",
        ]
    )


def boxes(profile: Profile) -> Box:
    """The tree of a profile: phases and layers in the order of their work, kernels largest first, idle time last."""
    layers = {layer.name: layer for layer in profile.layers}
    whole = profile.kernel_ms + profile.idle_ms
    parts: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for item in profile.items:
        parts[item.phase or "unattributed"][item.layer or item.phase or "unattributed"][item.kernel] += item.ms
    order = [*profile.phases, "unattributed"]
    root = Box("step", whole, PLAIN, f"step: {whole:.3f} ms")
    for phase in sorted(parts, key=order.index):
        below = [layer_box(name, kernels, layers.get(name), phase, whole) for name, kernels in parts[phase].items()]
        root.below.append(parent_box(phase, below, PLAIN, whole, ""))
    if profile.idle_ms > 0:
        root.below.append(Box("idle", profile.idle_ms, IDLE, tip("idle", profile.idle_ms, whole)))
    return root


def layer_box(name: str, kernels: dict[str, float], layer: Layer | None, phase: str, whole: float) -> Box:
    """One layer in one phase, with its kernels."""
    passes = phase in ("forward", "backward")
    color = COLORS[layer.bound] if layer and passes else PLAIN
    below = [Box(kernel, ms, color, tip(f"{name}: {kernel}", ms, whole)) for kernel, ms in kernels.items()]
    below.sort(key=lambda box: -box.ms)
    return parent_box(name, below, color, whole, details(layer) if layer and passes else "")


def parent_box(name: str, below: list[Box], color: str, whole: float, more: str) -> Box:
    """A box around others, as wide as all of them."""
    ms = sum(box.ms for box in below)
    return Box(name, ms, color, tip(name, ms, whole) + more, below)


def tip(name: str, ms: float, whole: float) -> str:
    return f"{name}: {ms:.3f} ms, {100 * ms / whole:.1f} % of the step"


def details(layer: Layer) -> str:
    """The figures of a layer, for its tooltip."""
    shape = "×".join(map(str, layer.output or ())) or "unknown"
    return (
        f"\n{layer.kind}, output {shape}, {layer.parameters:,} parameters\nforward {layer.forward_ms:.3f} ms, "
        f"backward {layer.backward_ms:.3f} ms, update {layer.optimizer_ms:.3f} ms\n{layer.flops / 1e9:.3g} GFLOP, "
        f"{layer.bytes / 1e6:.3g} MB; {layer.tflops:.3g} TFLOP/s, {layer.gb_per_s:.3g} GB/s\n"
        f"{BOUNDS[layer.bound]}, {100 * layer.roofline_share:.0f} % of the roofline"
    )


def drawn(box: Box, x: float, level: int, scale: float) -> Iterable[str]:
    """The box and all below it, as SVG elements."""
    width, height, y = box.ms * scale, ROWS[level], HEAD + sum(ROWS[:level])
    if width < NARROWEST:
        return
    yield f'<g><title>{escape(box.tip)}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height - 1}" '
    yield f'fill="{box.color}" stroke="white" stroke-width="0.5"/>{label(box.name, x, y, width, height)}</g>'
    for child in box.below:
        yield from drawn(child, x, level + 1, scale)
        x += child.ms * scale


def label(name: str, x: float, y: float, width: float, height: float) -> str:
    """A name inside its box: level where it fits, else upright, as much of it as there is room for; or nothing."""
    if len(name) * LETTER + 6 <= width:
        return f'<text x="{x + 3:.2f}" y="{y + 17}">{escape(name)}</text>'
    letters = int((height - 8) / LETTER)
    if width < LINE or letters < 5:
        return ""
    shown = name if len(name) <= letters else name[: letters - 1] + "…"
    across, down = x + width / 2 + 4, y + height - 5
    return f'<text transform="translate({across:.2f} {down}) rotate(-90)">{escape(shown)}</text>'


def legend(y: float) -> Iterable[str]:
    """What the colours mean."""
    x = float(MARGIN)
    for color, text in [*((COLORS[name], text) for name, text in BOUNDS.items()), (PLAIN, "other"), (IDLE, "idle")]:
        yield f'<rect x="{x:.0f}" y="{y}" width="14" height="14" fill="{color}" stroke="#999"/>'
        yield f'<text x="{x + 19:.0f}" y="{y + 11}">{text}</text>'
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
