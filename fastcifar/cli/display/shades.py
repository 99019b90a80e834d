"""Shades in the terminal: a curve in one line, and a confusion matrix whose mistakes stand out.

Where colours are missing, or the characters for blocks, ASCII takes their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fastcifar.cli.display.confusion import MOST_CLASSES, most_confused

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"  # from low to high
SHADES, ASCII_SHADES = " ░▒▓█", " .:*#"  # from light to dark
WORST_LISTED = 15  # pairs of classes, where there are too many for a matrix
ANY_WIDTH = 10_000  # characters, more than any matrix takes
FAINTEST = 0.08  # depth of a background below which it would be black alone
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # blue and vermilion of Okabe and Ito, which the colour-blind tell apart


def sparkline(values: Sequence[float], width: int, ascii_only: bool = False) -> str:
    """Values as a line of blocks, each the mean of an equal share of them where there are more than `width`."""
    count = min(len(values), width)
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, blocks = min(means), ASCII_BLOCKS if ascii_only else BLOCKS
    scale = (len(blocks) - 1) / (max(means) - low or 1)
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


@dataclass(frozen=True)
class ShadedConfusion:
    """A confusion matrix for a terminal: a row for each true class, a column for each predicted one, numbered as the
    rows are. The share of its class stands behind each count as a colour, or beside each mistake as a shade; of many
    classes, or of more than the width takes, the pairs confused most are listed."""

    matrix: list[list[int]]
    classes: list[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        if len(self.classes) <= MOST_CLASSES:
            matrix = self.table(console.color_system is not None, ASCII_SHADES if options.ascii_only else SHADES)
            if console.measure(matrix, options=options.update(max_width=ANY_WIDTH)).maximum <= options.max_width:
                yield matrix
                return
        yield self.worst()

    def worst(self) -> Table:
        """The pairs of classes confused most."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("true class", "taken for"):
            table.add_column(heading)
        for heading in ("images", "share"):
            table.add_column(heading, justify="right")
        for pair in most_confused(self.matrix, self.classes, WORST_LISTED):
            table.add_row(Text(pair.true), Text(pair.taken_for), str(pair.images), f"{100 * pair.share:.1f} %")
        return table

    def table(self, coloured: bool, shades: str) -> Table:
        """The matrix itself."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("true class")
        for i in range(len(self.classes)):
            table.add_column(f"{i}" if coloured else f"{i} ", justify="right")
        worst = max((pair.share for pair in most_confused(self.matrix, self.classes)), default=1.0)
        for i, (name, row) in enumerate(zip(self.classes, self.matrix, strict=True)):
            cells = []
            for j, count in enumerate(row):
                depth = count / max(1, sum(row)) / (1 if i == j else worst)  # 0..1: of the class, of the worst mistake
                style = background(RIGHT if i == j else WRONG, depth) if coloured and depth > FAINTEST else ""
                shade = "" if coloured else shades[0 if i == j else round(depth * (len(shades) - 1))]
                cells.append(Text(f"{count or '·'}{shade}", style))
            table.add_row(Text(f"{i} {name}"), *cells)
        return table


def background(colour: tuple[int, int, int], depth: float) -> Style:
    """A background between black and the colour, under white letters."""
    red, green, blue = (depth * part for part in colour)
    return Style(color="white", bgcolor=Color.from_rgb(red, green, blue).name)
