"""The screen of `profile --vs`, drawn from its JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fastcifar.cli.display.figures import interval, megabytes, memory_difference, ms, signed
from fastcifar.cli.display.profile_tree import unattributed_note
from fastcifar.cli.display.screen import facts
from fastcifar.cli.display.table import Cells, Column, fitted_table, render_cells

Record = Mapping[str, Any]  # a part of the document

COMPARISON_COLUMNS = (
    Column("layer", "layer", 0, lambda item: item["name"], "left"),
    Column("a", "a ms", 1, lambda item: "" if item["a_ms"] is None else ms(item["a_ms"])),
    Column("b", "b ms", 2, lambda item: "" if item["b_ms"] is None else ms(item["b_ms"])),
    Column("difference", "b - a", 0, lambda item: difference_cell(item)),
    Column("interval", "95 % interval", 4, lambda item: interval(item["ci95"])),
    Column("ratio", "b / a", 3, lambda item: "" if item["ratio"] is None else f"{item['ratio']:.2f}"),
    Column("memory", "kept MB: b - a", 5, lambda item: memory_difference(item.get("difference_activation_bytes", 0))),
)


def comparison_report(document: Record, width: int, top: int) -> RenderableType:
    """Two profiles: b minus a and b over a, for each layer and the whole step."""
    a, b, comparison = document["a"], document["b"], document["comparison"]
    layers, ratio = comparison["layers"], comparison["step_ratio"]
    if top:
        layers = sorted(layers, key=lambda item: -abs(item["difference_ms"]))
    lines = [render_cells(COMPARISON_COLUMNS, item) for item in layers[: top or None]]
    if len(lines) < len(layers):
        lines.append({"layer": f"… {len(layers) - len(lines)} more"})
    step: Cells = {"layer": "step", "a": ms(a["step_ms"]), "b": ms(b["step_ms"]), "ratio": f"{ratio:.2f}"}
    step["difference"] = signed(b["step_ms"] - a["step_ms"])
    step["memory"] = memory_difference(b.get("activation_bytes", 0) - a.get("activation_bytes", 0))
    if notes := unattributed_notes(document):
        lines = []
    shown = fitted_table(COMPARISON_COLUMNS, [*lines, *([{}] if lines else []), step], width)
    return Group(facts(comparison_facts(document)), *map(Text, notes), shown)


def unattributed_notes(document: Record) -> list[str]:
    """Says of which side hardly anything is known by layer; empty where the layers can be compared."""
    return [f"{side}: {note}" for side in "ab" if (note := unattributed_note(document[side]))]


def comparison_facts(document: Record) -> list[tuple[str, str]]:
    """What was compared, and the verdict, as names and values."""
    a, b, comparison = document["a"], document["b"], document["comparison"]
    ratio, ci95 = comparison["step_ratio"], comparison["ci95"]
    between = f" (95 % interval {ci95[0]:.3f} to {ci95[1]:.3f})" if ci95 else ""
    return [
        ("a", side_summary(a)),
        ("b", side_summary(b)),
        ("on", f"{document['dataset']}, {document['device']}; {a['steps']} steps of each, interleaved"),
        *memory_facts(a, b),
        ("b over a", f"{ratio:.3f}{between}: {conclusion(ratio, ci95)}"),
    ]


def memory_facts(a: Record, b: Record) -> list[tuple[str, str]]:
    """The peaks of both sides, where the document has them (those of earlier versions do not)."""
    peaks = {"a": a.get("peak_memory"), "b": b.get("peak_memory")}
    known = [f"of {side} {megabytes(peak)} MB" for side, peak in peaks.items() if peak is not None]
    return [("memory", f"peak {', '.join(known)}")] if known else []


def side_summary(side: Record) -> str:
    """One of two profiles in a line."""
    return (
        f"{side['recipe']}, {side['batch']} images a step, {side['engine']} engine, "
        f"kernels {ms(side['kernel_ms'])} ms of {ms(side['step_ms'])} ms"
    )


def conclusion(ratio: float, ci95: Sequence[float] | None) -> str:
    """What the ratio of two steps says."""
    if ci95 is None or ci95[0] <= 1 <= ci95[1]:
        return "no significant difference; more --steps narrow the interval"
    return f"b takes {100 * abs(ratio - 1):.1f} % {'more' if ratio > 1 else 'less'} time a step"


def difference_cell(item: Record) -> Text:
    """The difference of a layer, coloured where its interval excludes zero."""
    clear = item["ci95"] is not None and (item["ci95"][0] > 0 or item["ci95"][1] < 0)
    return Text(signed(item["difference_ms"]), ("red" if item["difference_ms"] > 0 else "green") if clear else "")
