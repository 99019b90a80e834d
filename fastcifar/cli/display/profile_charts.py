"""The charts of a profile's page: the passes of each layer as bars, two profiles' differences, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from fastcifar.cli.display.chart import Element, draw
from fastcifar.cli.display.figures import interval, ms, number, percent, shorten, signed
from fastcifar.cli.display.html import inline, legend

Record = Mapping[str, Any]  # a part of a profile's JSON document

PASSES = {"forward": "forward_ms", "backward": "backward_ms", "update": "optimizer_ms"}
MOST_BARS = 60
MOST_DIFFERENCES = 60

# -------------------------------------------------------------------------------------------------------------- strips


class Strip:
    """A row of a chart: bars and lines on a scale from `low` to `high`, as wide as there is room."""

    def __init__(self, low: float, high: float) -> None:
        """An empty one."""
        self.low, self.high = low, high
        self.svg = Element("svg", {"class": "strip", "width": "100%", "height": "13"})

    def place(self, value: float) -> str:
        """Where a value is, in percent of the width."""
        return f"{100 * (value - self.low) / ((self.high - self.low) or 1.0):.4g}%"

    def bar(self, start: float, end: float, series: int, tip: str, kind: str = "bar") -> None:
        """A bar from one value to another, in the colour of a series."""
        low, high = sorted((start, end))
        width = f"{100 * (high - low) / ((self.high - self.low) or 1.0):.4g}%"
        place: dict[str, str | float] = {"x": self.place(low), "width": width, "height": "100%"}
        mark = draw(self.svg, "rect", {"class": f"{kind} s{series}", "data-series": series, **place})
        draw(mark, "title", text=tip)

    def line(self, kind: str, start: float, end: float) -> None:
        """A line along the middle, or across where it starts where it ends."""
        y1, y2 = ("0%", "100%") if start == end else ("50%", "50%")
        draw(self.svg, "line", {"class": kind, "x1": self.place(start), "x2": self.place(end), "y1": y1, "y2": y2})


def strip_rows(rows: Sequence[tuple[str, Strip, str]], unit: str) -> Markup:
    """Names, strips and figures below one another, the unit of the figures above them."""
    head = Markup('<span class="head">{}</span>').format(unit)
    each = (
        Markup('<div><span class="name">{}</span>{}<span class="value">{}</span></div>\n').format(
            name, Markup(ElementTree.tostring(strip.svg, encoding="unicode")), figures
        )
        for name, strip, figures in rows
    )
    return Markup('<div class="bars">{}\n{}</div>\n').format(head, Markup("").join(each))


# -------------------------------------------------------------------------------------------------------------- passes


def pass_bars(layers: Sequence[Record]) -> Markup:
    """Forward, backward and update of each layer, one after the other, in the network's order.

    Where there are more than `MOST_BARS` layers, neighbours share a bar.
    """
    together = math.ceil(len(layers) / MOST_BARS) or 1
    groups = [layers[i : i + together] for i in range(0, len(layers), together)]
    longest = max((sum(layer["total_ms"] for layer in group) for group in groups), default=0.0)
    rows = []
    for group in groups:
        strip, name, end = Strip(0.0, longest), group_name(group), 0.0
        for series, (phase, key) in enumerate(PASSES.items()):
            start, end = end, end + sum(layer[key] for layer in group)
            if end > start:
                strip.bar(start, end, series, f"{name}, {phase}: {ms(end - start)} ms")
        rows.append((name, strip, ms(end)))
    return legend(list(PASSES)) + strip_rows(rows, "ms a step")


def group_name(group: Sequence[Record]) -> str:
    """What a bar is called that several layers share."""
    first, last = group[0]["name"], group[-1]["name"]
    return str(first) if len(group) == 1 else f"{first} … {last}"


# --------------------------------------------------------------------------------------------------------- differences


def difference_bars(differences: Sequence[Record]) -> Markup:
    """b minus a of each layer with its interval, in the network's order; the largest where there are many."""
    largest = sorted(differences, key=lambda item: -abs(item["difference_ms"]))[:MOST_DIFFERENCES]
    shown = [item for item in differences if item in largest] if len(differences) > MOST_DIFFERENCES else differences
    values = [0.0, *(item["difference_ms"] for item in shown)]
    values += [bound for item in shown for bound in item["ci95"] or ()]
    rows = []
    for item in shown:
        strip, difference = Strip(min(values), max(values)), item["difference_ms"]
        tip = f"{item['name']}: {signed(difference)} ms, 95 % interval {interval(item['ci95']) or 'unknown'}"
        strip.bar(0.0, difference, int(difference > 0), tip, "bar" if is_clear(item) else "bar unclear")
        strip.line("zero", 0.0, 0.0)
        if item["ci95"]:
            strip.line("interval", *item["ci95"])
        rows.append((item["name"], strip, signed(difference)))
    return legend(["b is faster", "b is slower"]) + strip_rows(rows, "b minus a, ms a step")


def is_clear(item: Record) -> bool:
    """Whether the interval of a difference excludes zero."""
    return item["ci95"] is not None and (item["ci95"][0] > 0 or item["ci95"][1] < 0)


# ------------------------------------------------------------------------------------------------------------- roofline

WIDTH, HEIGHT = 800, 460  # pixels
INNER = (78.0, 14.0, WIDTH - 18.0, HEIGHT - 50.0)  # left, top, right, bottom, pixels
LETTER, LINE = 6.6, 13.0  # width and height of a letter of the labels, pixels
BOUND_SERIES = {"arithmetic": 2, "memory": 0, "launches": 4}


class LogAxis:
    """Positive values on pixels `start`..`end`, every decade as long as the next."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        """Wide enough for the values with a margin."""
        logs = [math.log10(value) for value in values]
        self.low, self.high = min(logs) - 0.2, max(logs) + 0.2
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 10, 100…; also 2 and 5 of each decade where there are few."""
        steps = (1, 2, 5) if self.high - self.low < 3 else (1,)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        return [m * 10.0**e for e in decades for m in steps if self.low <= math.log10(m * 10.0**e) <= self.high]


def counted(layers: Sequence[Record]) -> list[Record]:
    """The layers that have a place in a roofline plot: with operations, a rate of them, bytes and time."""
    return [x for x in layers if min(x["flops"], x["tflops"], x["bytes"], x["forward_ms"] + x["backward_ms"]) > 0]


def roofline_plot(document: Record) -> Markup:
    """Operations a byte against operations a second, both logarithmic: the ceilings, and a point for each layer.

    The area of a point is its share of the step. After Williams, Waterman, Patterson, "Roofline: an insightful visual
    performance model", 2009.
    """
    layers, ceilings = counted(document["layers"]), document["roofline"]
    peak, slope = ceilings["tflops"], ceilings["gb_per_s"] / 1000  # TFLOP/s; TFLOP/s for each FLOP a byte
    ridge = peak / slope  # FLOP a byte
    x = LogAxis([ridge / 4, ridge, *(layer["flops"] / layer["bytes"] for layer in layers)], INNER[0], INNER[2])
    y = LogAxis([peak, *(layer["tflops"] for layer in layers)], INNER[3], INNER[1])
    words = "Roofline plot: operations a byte against TFLOP/s of each layer"
    size = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "plot roofline", "role": "img", "aria-label": words}
    svg = Element("svg", size)
    draw_axes(svg, x, y)
    points = [
        (layer, x.place(layer["flops"] / layer["bytes"]), y.place(layer["tflops"]), radius(layer))
        for layer in sorted(layers, key=lambda layer: -layer["share"])
    ]
    taken = [(across - r, down - r, across + r, down + r) for _, across, down, r in points]
    taken += draw_ceilings(svg, x, y, peak, slope, taken)
    for layer, across, down, r in points:
        place: dict[str, str | float] = {"cx": across, "cy": down, "r": r}
        point = draw(svg, "circle", {"class": f"layer s{BOUND_SERIES[layer['bound']]}", **place})
        draw(point, "title", text=layer_tip(layer))
    for layer, across, down, r in points:
        draw_name(svg, layer["name"], across, down, r, taken)
    return roofline_keys(layers) + Markup('<div class="wide">{}</div>').format(inline(svg))


def radius(layer: Record) -> float:
    """Of a layer's point, pixels; its area is the layer's share of the step, but small ones are seen."""
    return max(3.0, min(22.0, 50 * math.sqrt(layer["share"])))


def roofline_keys(layers: Sequence[Record]) -> Markup:
    """The colours of the points that are there."""
    there = [bound for bound in BOUND_SERIES if any(layer["bound"] == bound for layer in layers)]
    keys = (Markup('<li class="s{}">bound by {}</li>').format(BOUND_SERIES[bound], bound) for bound in there)
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(keys))


def layer_tip(layer: Record) -> str:
    """The figures of a layer's point."""
    time = layer["forward_ms"] + layer["backward_ms"]
    return (
        f"{layer['name']}: {ms(time)} ms forward and backward, {percent(layer['share'])} of the step\n"
        f"{number(layer['flops'] / layer['bytes'])} FLOP a byte, {number(layer['tflops'])} TFLOP/s, "
        f"{number(layer['gb_per_s'])} GB/s\n"
        f"bound by {layer['bound']}, {percent(layer['roofline_share'], 0)} of the roofline"
    )


def draw_axes(svg: Element, x: LogAxis, y: LogAxis) -> None:
    """Ticks, and what is on the axes."""
    left, top, right, bottom = INNER
    for value in x.ticks():
        at = x.place(value)
        draw(svg, "line", {"class": "grid", "x1": at, "x2": at, "y1": top, "y2": bottom})
        draw(svg, "text", {"class": "faint", "x": at, "y": bottom + 18, "text-anchor": "middle"}, f"{value:g}")
    for value in y.ticks():
        at = y.place(value)
        draw(svg, "line", {"class": "grid", "x1": left, "x2": right, "y1": at, "y2": at})
        draw(svg, "text", {"class": "faint", "x": left - 8, "y": at + 4, "text-anchor": "end"}, f"{value:g}")
    middle = {"text-anchor": "middle"}
    draw(svg, "text", {"x": (left + right) / 2, "y": bottom + 40, **middle}, "arithmetic intensity, FLOP a byte")
    upright = {"transform": f"translate(16 {(top + bottom) / 2:g}) rotate(-90)"}
    draw(svg, "text", {**upright, **middle}, "rate, TFLOP/s")


Area = tuple[float, float, float, float]  # left, top, right, bottom, pixels


def draw_ceilings(
    svg: Element, x: LogAxis, y: LogAxis, peak: float, slope: float, points: Sequence[Area]
) -> list[Area]:
    """The lines of the copy and of the matrix product with their figures, beside the points; returns where these
    stand."""
    ridge = peak / slope  # FLOP a byte
    low = max(10**x.low, 10**y.low / slope)  # where the slope comes into the picture
    corner = (x.place(ridge), y.place(peak))
    path = f"M{x.place(low):.1f} {y.place(low * slope):.1f}L{corner[0]:.1f} {corner[1]:.1f}H{INNER[2]:.1f}"
    draw(svg, "path", {"class": "ceiling", "d": path})
    product, copy = f"matrix product {number(peak)} TFLOP/s", f"copy {number(1000 * slope)} GB/s"
    wide = LETTER * len(product) + 12
    lefts = (INNER[2] - wide, corner[0] + 6, (corner[0] + INNER[2] - wide) / 2)
    areas = [(left, corner[1] - 20, left + wide, corner[1] + 2) for left in lefts]
    area = next((each for each in areas if not any(overlap(each, point) for point in points)), areas[0])
    draw(svg, "text", {"x": area[0] + 4, "y": corner[1] - 7}, product)
    taken = [area]
    across, down = x.place(math.sqrt(low * ridge)), y.place(math.sqrt(low * ridge) * slope)
    tilt = math.degrees(math.atan2(corner[1] - down, corner[0] - across))
    place: dict[str, str | float] = {
        "transform": f"translate({across:.1f} {down - 8:.1f}) rotate({tilt:.1f})",
        "text-anchor": "middle",
    }
    draw(svg, "text", place, copy)
    half = LETTER * len(copy) / 2 * math.cos(math.radians(tilt))
    rise = abs(math.tan(math.radians(tilt))) * half
    taken.append((across - half, down - rise - 20, across + half, down + rise))
    return taken


def draw_name(svg: Element, name: str, across: float, down: float, size: float, taken: list[Area]) -> None:
    """The name of a point, to its right, left, above or below, where nothing stands yet; else not at all."""
    shown = shorten(name, 24)
    wide, gap = LETTER * len(shown), size + 4
    for anchor, at, base in (
        ("start", across + gap, down + 4),
        ("end", across - gap, down + 4),
        ("middle", across, down - gap),
        ("middle", across, down + gap + 9),
    ):
        left = at - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        area = (left, base - LINE + 2, left + wide, base + 3)
        inside = area[0] >= INNER[0] and area[2] <= INNER[2] and area[1] >= INNER[1] and area[3] <= INNER[3]
        if inside and not any(overlap(area, other) for other in taken):
            draw(svg, "text", {"class": "small", "x": at, "y": base, "text-anchor": anchor}, shown)
            taken.append(area)
            return


def overlap(a: Area, b: Area) -> bool:
    """Whether two areas share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
