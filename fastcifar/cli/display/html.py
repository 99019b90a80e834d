"""Self-contained HTML pages: one file that needs neither a network nor JavaScript to be read.

Whatever comes from outside (a recipe's name, a class, a file) is escaped: by Jinja2 in the template, by `table` in a
cell, by ElementTree in a picture. A content security policy allows the page's own style and script, by their hashes,
and images that stand in the page as data; nothing else is loaded or run.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastcifar.cli.display.screen import json_text
from fastcifar.system.files import write_text
from fastcifar.version import __version__

PAGES = Path(__file__).parent / "pages"
STYLES = ("page.css", "profile.css", "run.css")
SCRIPTS = ("page.js", "profile.js")  # one script in the page: later files may use what earlier ones define
SENTENCES = 12  # of a list that are shown at once
LONG = 20  # letters from which a text is given room in a table
SERIES = 8  # colours that are told apart, the classes s0 to s7 of page.css

Cell = str | tuple[str, float | None]  # a text, or a figure with the value that it is sorted by; Markup stays markup


@dataclass(frozen=True)
class Part:
    """One section of a page: its title says the finding, `note` how to read it and in what units."""

    title: str
    body: Markup
    note: str = ""


def page(title: str, subtitle: str, parts: Sequence[Part], data: Mapping[str, Any] | None = None) -> str:
    """One self-contained HTML document; `data` (what `--json` holds) is embedded once for the page's script."""
    style, script = source(STYLES), source(SCRIPTS)
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {digest(style)}; script-src {digest(script)}"
    )
    text = (
        environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            subtitle=subtitle,
            parts=parts,
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            data=None if data is None else json_block(data),
            version=__version__,
        )
    )
    return text.encode("utf-8", "backslashreplace").decode()  # the name of a file may hold what is no character


def write_page(path: Path, text: str) -> None:
    """Write a page, atomically; raises DataError where it cannot be written (see `system.files.check_writable`)."""
    write_text(path, text)


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Markup:
    """A table with these headings, which the page's script sorts by a click on one of them.

    A cell that has a value beside its text stands to the right and is sorted by the value; None and what is not finite
    come last.
    """
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(column) for column in columns)
    body = Markup("").join(Markup("<tr>{}</tr>\n").format(Markup("").join(map(table_cell, row))) for row in rows)
    return Markup(
        '<div class="scroll"><table class="sortable"><thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody></table></div>\n'
    ).format(head, body)


def table_cell(cell: Cell) -> Markup:
    """One cell of a table."""
    if isinstance(cell, str):
        letters = len(cell.striptags()) if isinstance(cell, Markup) else len(cell)
        kind = Markup(' class="long"') if letters > LONG else ""
        return Markup("<td{}>{}</td>").format(kind, cell)
    text, value = cell
    known = value is not None and math.isfinite(value)
    return Markup('<td class="number" data-value="{}">{}</td>').format(repr(value) if known else "", text)


def paragraphs(sentences: Sequence[str]) -> Markup:
    """A list of sentences; of many the first, the others behind a line that opens them."""
    shown, more = unfolded(sentences[:SENTENCES]), sentences[SENTENCES:]
    if more:
        shown += Markup("<details><summary>{} more</summary>{}</details>\n").format(len(more), unfolded(more))
    return shown


def unfolded(sentences: Sequence[str]) -> Markup:
    """A list of sentences, all of them."""
    items = Markup("").join(Markup("<li>{}</li>\n").format(sentence) for sentence in sentences)
    return Markup('<ul class="sentences">\n{}</ul>\n').format(items) if sentences else Markup("")


def legend(names: Sequence[str], series: Sequence[int] | None = None) -> Markup:
    """The names of a picture's series beside their colours; the page's script hides a series by a click on it.

    `series` are their numbers, by default 0, 1, 2…
    """
    numbered = zip(range(len(names)) if series is None else series, names, strict=True)
    keys = [Markup('<li class="s{}" data-series="{}">{}</li>').format(i % SERIES, i, name) for i, name in numbered]
    return Markup('<ul class="legend">{}</ul>\n').format(Markup("").join(keys))


def inline(svg: ElementTree.Element) -> Markup:
    """A picture as a part of a page; ElementTree escapes its texts."""
    return Markup('<div class="picture">{}</div>\n').format(Markup(ElementTree.tostring(svg, encoding="unicode")))


def pictures(titled: Sequence[tuple[str, Markup]]) -> Markup:
    """Pictures with their titles, side by side where there is room."""
    each = [Markup("<div><h3>{}</h3>{}</div>\n").format(title, picture) for title, picture in titled]
    return Markup('<div class="pictures">\n{}</div>\n').format(Markup("").join(each))


def json_block(data: Mapping[str, Any]) -> Markup:
    """JSON for a script element: no `<` stands in it, so that nothing in the data can end the element."""
    text = json_text(data, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def environment() -> Environment:
    """Jinja2 that escapes everything and takes an unknown name as an error."""
    return Environment(loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


@cache
def source(names: tuple[str, ...]) -> str:
    """The files of `pages` one after the other."""
    return "\n".join((PAGES / name).read_text("utf-8") for name in names)


def digest(text: str) -> str:
    """The hash by which a content security policy allows an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
