"""The icicle plot of a profile, as a picture in SVG for papers: every box of it has its label."""

from __future__ import annotations

from xml.etree import ElementTree

from fastcifar.cli.display.chart import draw
from fastcifar.cli.display.figures import ms, percent, shorten
from fastcifar.cli.display.profile_tree import BOUNDS, COLORS, Box, Record, fold, step_box
from fastcifar.cli.display.svg import picture

WIDTH, HEAD, BODY, FOOT = 800, 62, 900, 52  # pixels; heights above, of and below the plot
COLUMNS = ((12, 28), (40, 128), (168, 250), (418, 370))  # left edge and width of step, phase, layer, kernel, pixels
LINE, LETTER = 14, 6.4  # height of a line and mean width of a letter of the labels, pixels
TITLES = ("step", "phase", "layer", "kernel")


def icicle(document: Record) -> str:
    """The icicle plot of a profile's JSON document, as SVG of 800 pixels.

    Step, phase, layer, kernel, from left to right: height is time, colour is what bounds the layer. What is too narrow
    for a label is one box together, so that every box has one.
    """
    svg = picture(WIDTH, HEAD + BODY + FOOT, 11)
    title = f"{document['recipe']}: {ms(document['step_ms'])} ms a step of {document['batch']} images"
    subtitle = (
        f"{document['engine']} engine, {document['device']}; height is time, "
        f"{percent(document['idle_ms'] / (document['kernel_ms'] + document['idle_ms'] or 1))} of it idle"
    )
    draw(svg, "text", {"x": 12, "y": 21, "font-size": 15}, shorten(title, 96))
    draw(svg, "text", {"x": 12, "y": 38, "fill": "#555"}, shorten(subtitle, 120))
    for (left, _), name in zip(COLUMNS, TITLES, strict=True):
        draw(svg, "text", {"x": left, "y": HEAD - 5, "fill": "#555"}, name)
    root = step_box(document)
    draw_box(svg, root, 0, float(HEAD), BODY / (root.ms or 1.0), root.ms)
    draw_legend(svg, HEAD + BODY + 12)
    ElementTree.indent(svg, "")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def draw_box(parent: ElementTree.Element, box: Box, level: int, y: float, scale: float, whole: float) -> None:
    """The box and all to the right of it; `scale` is in pixels a millisecond, `whole` the step in milliseconds."""
    (left, width), height = COLUMNS[level], box.ms * scale
    group = draw(parent, "g")
    draw(group, "title", text=box.tip)
    frame: dict[str, str | float] = {"x": left, "y": y, "width": width, "height": height, "fill": COLORS[box.bound]}
    draw(group, "rect", {**frame, "stroke": "white", "stroke-width": 0.8})
    draw_label(group, box, level, y, height, whole)
    for child in fold(box.below, LINE / scale):
        draw_box(parent, child, level + 1, y, scale, whole)
        y += child.ms * scale


def draw_label(parent: ElementTree.Element, box: Box, level: int, y: float, height: float, whole: float) -> None:
    """A name and its share of the step, as much as there is room for; the step's own stands upright."""
    left, width = COLUMNS[level]
    if level == 0:
        across = f"translate({left + width / 2 + 4:.2f} {y + height / 2:.2f}) rotate(-90)"
        draw(parent, "text", {"transform": across, "text-anchor": "middle"}, f"step, {ms(whole)} ms")
        return
    if height < LINE - 2:
        return
    share = percent(box.ms / whole if whole else 0.0)
    room = int((width - 12) / LETTER) - len(share) - 1
    middle = y + height / 2 + 4
    draw(parent, "text", {"x": left + 5, "y": middle}, shorten(box.shown, max(room, 6)))
    end: dict[str, str | float] = {"x": left + width - 5, "y": middle, "text-anchor": "end", "fill": "#333"}
    draw(parent, "text", end, share)


def draw_legend(parent: ElementTree.Element, y: float) -> None:
    """What the colours mean."""
    x = 12.0
    for bound, text in BOUNDS.items():
        draw(parent, "rect", {"x": x, "y": y, "width": 13, "height": 13, "fill": COLORS[bound], "stroke": "#999"})
        draw(parent, "text", {"x": x + 18, "y": y + 11}, text)
        x += 34 + LETTER * len(text)
    note = "What bounds a layer is the ceiling that its operations, bytes or kernels would take longest at."
    draw(parent, "text", {"x": 12, "y": y + 32, "fill": "#555"}, note)
