"""The screen of `doctor`, drawn from its JSON document: a mark and a line for each check, the verdict at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

TITLES = {
    "machine": "Machine",
    "processor": "Processor",
    "gpu": "GPU",
    "software": "Software",
    "kernels": "Kernels",
    "engines": "Engines",
    "roofline": "Roofline",
    "datasets": "Datasets",
}
MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "impossible": ("✗", "bold")}


def diagnosis_from_document(document: Mapping[str, Any]) -> Table:
    """What a document of `doctor` shows: groups of lines, and under a line that is wrong what to do about it."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for group, title in TITLES.items():
        for number, (name, finding) in enumerate(document.get(group, {}).items()):
            grid.add_row(Text("" if number else title, "bold"), mark(finding), Text(name, "dim"), sentences(finding))
    grid.add_row(Text("Verdict", "bold"), mark(document["verdict"]), Text(), sentences(document["verdict"]))
    return grid


def mark(finding: Mapping[str, Any]) -> Text:
    """The mark of a finding."""
    return Text(*MARKS[finding["status"]])


def sentences(finding: Mapping[str, Any]) -> Text:
    """What was found, and the advice on a line of its own."""
    text = Text(finding["text"])
    if finding["advice"]:
        text.append(f"\n{finding['advice']}", "yellow")
    return text
