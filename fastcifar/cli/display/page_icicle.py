"""The icicle plot of a profile's page: in its tooltips every figure; with JavaScript it zooms and is searched.

The picture that stands in the page is drawn here. `pages/profile.js` draws it anew, from the whole tree, where a person
clicks into it: what is folded here opens there, down to a fifty-thousandth of the width.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from fastcifar.cli.display.chart import draw
from fastcifar.cli.display.profile_tree import BOUNDS, COLORS, Box, fold

ROW = 27  # height of a box, pixels
LEVELS = 4
NARROW = 0.004  # of the width: boxes below that are folded
LABELLED = 1.5  # percent of the width from which a box has a label

SMALLEST = 2e-5  # of the width: boxes below that are one in the page's data too, or a large network would fill it

Node = list[Any]  # of the tree in the page's data: name, ms, bound (both as numbers of their lists), lines, nodes below


def icicle_picture(root: Box, extent: float, number: int) -> Markup:
    """The plot as SVG that is as wide as its place, letters at their size; `extent` is the time of the whole width.

    `number` tells the page's JavaScript which of its trees is the plot's.
    """
    name = f"Icicle plot of {root.name}"
    svg = ElementTree.Element(
        "svg", {"class": "icicle", "width": "100%", "height": str(LEVELS * ROW), "role": "img", "aria-label": name}
    )
    svg.set("data-tree", str(number))
    draw_box(svg, root, 0.0, 0, extent)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def draw_box(parent: ElementTree.Element, box: Box, start: float, level: int, extent: float) -> None:
    """The box and all below it, beginning `start` milliseconds from the left of `extent`."""
    width = 100 * box.ms / extent
    place: dict[str, str | float] = {
        "x": f"{100 * start / extent:.4g}%",
        "y": str(level * ROW),
        "width": f"{width:.4g}%",
        "height": ROW - 1,
    }
    part = draw(parent, "svg", {"class": "box", **place})
    draw(part, "title", text=box.tip)
    draw(part, "rect", {"width": "100%", "height": "100%", "fill": COLORS[box.bound]})
    if width >= LABELLED:
        draw(part, "text", {"x": 4, "y": 18}, box.shown)
    for child in fold(box.below, NARROW * extent):
        draw_box(parent, child, start, level + 1, extent)
        start += child.ms


def icicle_data(root: Box, extent: float) -> dict[str, Any]:
    """The tree for the page's JavaScript; names once each, with what is shown of them."""
    names: dict[tuple[str, str], int] = defaultdict(lambda: len(names))
    bounds = list(COLORS)

    def node(box: Box) -> Node:
        own = [names[box.name, box.shown], float(f"{box.ms:.6g}"), bounds.index(box.bound), "\n".join(box.lines[1:])]
        below = fold(box.below, SMALLEST * extent)
        return [*own, [node(child) for child in below]] if below else own

    tree = node(root)
    known, shown = ([pair[i] for pair in names] for i in (0, 1))
    return {"extent": extent, "tree": tree, "names": known, "labels": shown, "bounds": list(COLORS.items())}


def bounds_legend() -> Markup:
    """What the colours mean."""
    entries = [
        Markup('<span><svg width="13" height="13" aria-hidden="true">{}</svg> {}</span>').format(
            Markup('<rect width="13" height="13" fill="{}"/>').format(COLORS[bound]), text
        )
        for bound, text in BOUNDS.items()
    ]
    return Markup('<p class="keys">{}</p>').format(Markup(" ").join(entries))
