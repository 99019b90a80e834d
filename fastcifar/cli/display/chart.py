"""The parts of charts as SVG: axes with round ticks, and a plot of points, lines and bands for a page.

A plot takes its colours from page.css by classes (s0 to s7), so that it follows light and dark; its marks keep their
width on the screen when the page's script zooms (`vector-effect`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

TICKS = 7  # at most, on an axis
WIDTH = 640  # pixels of a plot; it scales to the page
LETTERS = 50  # of the name of a row
FRAME = (84, 12, 16, 58)  # left, top, right, bottom of a plot's inner part, pixels

Element = ElementTree.Element
Point = tuple[float, float]  # in the units of the axes


def draw(parent: Element, tag: str, attributes: dict[str, str | float] | None = None, text: str = "") -> Element:
    """Add an element to the picture; numbers that are not whole are rounded to a hundredth."""
    written = {name: f"{v:.2f}" if isinstance(v, float) else str(v) for name, v in (attributes or {}).items()}
    element = ElementTree.SubElement(parent, tag, written)
    element.text = text or None
    return element


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


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis that holds the values with a margin."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start, end)


class Plot:
    """A picture with two axes, to be drawn into; `svg` is the whole of it, `marks` what zooms.

    `words` say what it shows to those who do not see it. With `rows` the vertical axis holds these names, the first
    one on top, at 0, 1, 2…, and the picture does not zoom.
    """

    def __init__(
        self,
        words: str,
        x: tuple[str, Sequence[float]],
        y: tuple[str, Sequence[float]] = ("", ()),
        height: float = 380,
        rows: Sequence[str] = (),
    ) -> None:
        """`x` and `y`: what an axis is called, with its unit, and values that it has to hold."""
        left, top, right, bottom = FRAME
        left = 12 if rows else left
        self.box = (float(left), float(top), float(WIDTH - right), float(height - bottom))  # left, top, right, bottom
        self.x = axis(x[1], self.box[0], self.box[2])
        self.y = Axis(-0.7, len(rows) - 0.6, self.box[1], self.box[3]) if rows else axis(y[1], self.box[3], self.box[1])
        self.svg = Element(
            "svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "class": "plot", "role": "img", "aria-label": words}
        )
        if not rows:
            for name, each in (("data-x", self.x), ("data-y", self.y)):
                self.svg.set(name, f"{each.low!r} {each.high!r} {each.start:g} {each.end:g}")
        ticks = draw(self.svg, "g", {"class": "ticks"})
        self.grid_down(ticks)
        if not rows:
            self.grid_across(ticks)
        self.name_axes(x[0], y[0])
        frame = dict(zip(("x", "y"), self.box[:2], strict=True))
        size = {"width": self.box[2] - self.box[0], "height": self.box[3] - self.box[1]}
        view = " ".join(f"{value:g}" for value in (*frame.values(), *size.values()))
        inner = draw(self.svg, "svg", {**frame, **size, "viewBox": view})  # cuts off what a zoom moves out of it
        self.marks = draw(inner, "g", {"class": "zoom"})
        self.name_rows(draw(self.svg, "g"), rows)  # over the marks: names stay legible

    def grid_down(self, ticks: Element) -> None:
        """The lines and figures of the horizontal axis."""
        for value in self.x.ticks():
            at = self.x.place(value)
            draw(ticks, "line", {"class": "grid", "x1": at, "x2": at, "y1": self.box[1], "y2": self.box[3]})
            place: dict[str, str | float] = {"x": at, "y": self.box[3] + 20, "text-anchor": "middle"}
            draw(ticks, "text", {"class": "faint", **place}, f"{value:.6g}")

    def grid_across(self, ticks: Element) -> None:
        """The lines and figures of the vertical axis."""
        for value in self.y.ticks():
            at = self.y.place(value)
            draw(ticks, "line", {"class": "grid", "x1": self.box[0], "x2": self.box[2], "y1": at, "y2": at})
            place: dict[str, str | float] = {"x": self.box[0] - 8, "y": at + 4, "text-anchor": "end"}
            draw(ticks, "text", {"class": "faint", **place}, f"{value:.6g}")

    def name_rows(self, names: Element, rows: Sequence[str]) -> None:
        """The names above the rows, shortened to the room there is on a phone."""
        for i, name in enumerate(rows):
            shown = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
            text = draw(names, "text", {"class": "row", "x": self.box[0], "y": self.y.place(i - 0.4)}, shown)
            if shown != name:
                draw(text, "title", text=name)

    def name_axes(self, x: str, y: str) -> None:
        """What is on the axes, with units."""
        across, down = (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2
        draw(self.svg, "text", {"x": across, "y": self.box[3] + 46, "text-anchor": "middle"}, x)
        if y:
            upright = f"translate(15 {down:g}) rotate(-90)"
            draw(self.svg, "text", {"transform": upright, "text-anchor": "middle"}, y)

    def group(self, series: int) -> Element:
        """A group for the marks of one series, which has a colour and can be hidden by the legend."""
        return draw(self.marks, "g", {"class": f"s{series % 8}", "data-series": series})

    def path(self, points: Iterable[Point]) -> str:
        """The points joined by lines, as a path."""
        return "M" + "L".join(f"{self.x.place(x):.1f} {self.y.place(y):.1f}" for x, y in points)

    def point(self, group: Element, at: Point, tip: str, kind: str = "point") -> None:
        """A round mark; as a line of no length with round ends it stays round where a zoom stretches the picture.

        A mean has a ring in the colour of the page, so that it is seen among points.
        """
        place = {"d": f"{self.path([at])}h0"}
        if kind == "mean":
            draw(group, "path", {"class": "mark halo", **place})
        mark = draw(group, "path", {"class": f"mark {kind}", **place})
        draw(mark, "title", text=tip)

    def line(self, group: Element, points: Iterable[Point], tip: str = "", kind: str = "mark line") -> None:
        """A line through the points."""
        mark = draw(group, "path", {"class": kind, "d": self.path(points)})
        if tip:
            draw(mark, "title", text=tip)

    def band(self, group: Element, low: Sequence[Point], high: Sequence[Point]) -> None:
        """The area between two lines."""
        draw(group, "path", {"class": "band", "d": self.path([*low, *reversed(high)]) + "Z"})

    def level(self, y: float, words: str, kind: str = "dashed") -> None:
        """A line across the whole picture, such as a target."""
        mark = draw(self.marks, "path", {"class": kind, "d": self.path([(self.x.low, y), (self.x.high, y)])})
        draw(mark, "title", text=words)

    def upright(self, x: float, words: str, kind: str = "dashed") -> None:
        """A line from the top to the bottom of the picture."""
        mark = draw(self.marks, "path", {"class": kind, "d": self.path([(x, self.y.low), (x, self.y.high)])})
        draw(mark, "title", text=words)
