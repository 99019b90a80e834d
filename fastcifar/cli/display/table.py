"""Tables that show as many columns as the width allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

Cell = str | Text
Cells = dict[str, Cell]  # of one line, by the key of their columns


@dataclass(frozen=True)
class Column:
    """One column of a table: the lower its rank, the narrower the screens that still show it."""

    key: str
    heading: str
    rank: int
    render: Callable[[Any], Cell]  # of what a line is about
    justify: Literal["left", "right"] = "right"


def render_cells(columns: Iterable[Column], row: Any) -> Cells:
    """The cells of one line."""
    return {column.key: column.render(row) for column in columns}


def column_width(column: Column, lines: Iterable[Cells]) -> int:
    """Characters that a column takes, without the space beside it."""
    return max([len(column.heading), *(len(cells.get(column.key, "")) for cells in lines)])


def fitted_table(columns: Sequence[Column], lines: Sequence[Cells], width: int) -> Table:
    """A table of the columns that fit into the width: those of the lowest ranks, in the order given.

    The first column is always shown. A line without cells is drawn as a rule; a missing cell is empty.
    """
    shown, left = {columns[0].key}, width - column_width(columns[0], lines) - 3
    for column in sorted(columns[1:], key=lambda column: column.rank):
        left -= column_width(column, lines) + 2
        if left < 0:
            break
        shown.add(column.key)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    visible = [column for column in columns if column.key in shown]
    for column in visible:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for cells in lines:
        if cells:
            table.add_row(*(cells.get(column.key, "") for column in visible))
        else:
            table.add_section()
    return table
