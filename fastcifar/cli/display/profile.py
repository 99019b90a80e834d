"""The tables of `profile`, drawn from its JSON document: by layer, kernel, operator and phase.

A table has as many columns as the width allows; `--json` holds the rest. Nothing here loads torch, so that `report` can
show a stored document at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastcifar.cli.display.figures import bar, kernel_label, megabytes, ms, number, percent, shorten
from fastcifar.cli.display.profile_comparison import comparison_report
from fastcifar.cli.display.profile_tree import bound_of, unattributed_note, whole_ms
from fastcifar.cli.display.screen import facts
from fastcifar.cli.display.table import Cells, Column, column_width, fitted_table, render_cells

Record = Mapping[str, Any]  # a part of the document

GROUPS = 20  # kernels or operators shown by default
BOUND_COLORS = {"arithmetic": "green", "memory": "blue", "launches": "yellow"}
SORT_KEYS = {
    "total": "total_ms",
    "forward": "forward_ms",
    "backward": "backward_ms",
    "optimizer": "optimizer_ms",
    "flops": "flops",
    "bytes": "bytes",
    "kernels": "kernels",
    "memory": "activation_bytes",
    "roofline": "roofline_share",
}


def report_from_document(
    document: Record,
    width: int,
    by: str = "layer",
    sort: str = "network",
    depth: int | None = None,
    top: int = 0,
) -> RenderableType:
    """What a document of `profile`, or of `profile --vs`, shows on a screen of `width` characters.

    `by` is layer, kernel, op or phase; `sort` is network (its order) or a key of `SORT_KEYS`; layers deeper than
    `depth` in the tree are summed; at most `top` rows are shown (0: no limit, or 20 kernels or operators).
    """
    if "comparison" in document:
        return comparison_report(document, width, top)
    parts: list[RenderableType] = [header(document)]
    if by == "layer" and (unknown := unattributed_note(document)):
        parts += [Text(unknown), group_table(document, "kernel", width, top)]
    elif by == "layer":
        table = layer_table(document, width, sort, depth, top)
        shown = {str(column.header) for column in table.columns}
        parts += [table, *(Text(note, "dim") for note in layer_notes(document, shown))]
    elif by == "phase":
        parts.append(phase_table(document, width))
    else:
        parts.append(group_table(document, by, width, top))
    return Group(*parts)


def layer_notes(document: Record, shown: Collection[str]) -> Iterator[str]:
    """What the table of layers, which shows columns of these headings, does not say itself."""
    if "update" in shown and any(layer["optimizer_shared"] for layer in document["layers"]):
        yield "~ a share, by size, of kernels that update several layers"
    if any(layer["kind"].endswith("(compiled)") for layer in document["layers"]):
        yield "What torch.compile compiled is one row: its kernels do the work of several layers."
    if "roofline" in shown and (reasons := above_roofline(document)):
        yield reasons


def above_roofline(document: Record) -> str:
    """Why layers take less time than they need at the ceilings, in a sentence; empty where none does."""
    roofline = document["roofline"]
    reasons: dict[str, None] = {}
    for layer in document["layers"]:
        if layer["roofline_share"] <= 1:
            continue
        if layer["flops"] / roofline["tflops"] / 1e9 <= layer["bytes"] / roofline["gb_per_s"] / 1e6:
            reasons["data that stay in a cache move faster than a copy"] = None
        elif layer["kind"].startswith("Winograd"):
            reasons["a Winograd convolution does up to 4 times fewer multiplications than are counted"] = None
        else:
            reasons["a ceiling measured while the machine does other work is too low"] = None
    return f"Above 100 % of the roofline: {'; '.join(reasons)}." if reasons else ""


def header(document: Record) -> Table:
    """What was measured, and the ceilings of the device."""
    return facts(header_facts(document))


def header_facts(document: Record) -> list[tuple[str, str]]:
    """What was measured, and the ceilings of the device, as names and values."""
    step, recorded, kernel = document["step_ms"], document["recorded_step_ms"], document["kernel_ms"]
    kinds, roofline = document["kinds"], document["roofline"]
    steps = f"{document['steps']} steps" + (f" of each of {kinds} kinds; the mean step of a run" if kinds > 1 else "")
    unattributed = document["unattributed_ms"] / kernel if kernel else 0.0
    return [
        (
            "profile",
            f"{document['recipe']} on {document['dataset']}, {document['batch']} images a step, "
            f"{document['engine']} engine",
        ),
        ("device", document["device"]),
        ("step", f"{ms(step)} ms ± {ms(document['step_std_ms'])} (mean ± standard deviation of {steps})"),
        ("kernel time", f"{ms(kernel)} ms; {percent(unattributed, 2)} unattributed"),
        *memory_facts(document),
        ("overhead", f"{ms(recorded - step)} ms a recorded step" if recorded > step else "less than the deviation"),
        (
            "ceilings",
            f"matrix product {number(roofline['tflops'])} TFLOP/s, copy {number(roofline['gb_per_s'])} GB/s, "
            f"empty kernel {1000 * roofline['launch_ms']:.1f} µs",
        ),
    ]


def memory_facts(document: Record) -> list[tuple[str, str]]:
    """The memory of the step, where the document has it (those of earlier versions do not)."""
    parts = {"peak": "peak_memory", "between steps": "held_memory", "kept for backward": "activation_bytes"}
    known = [f"{name} {megabytes(document[key])} MB" for name, key in parts.items() if document.get(key) is not None]
    return [("memory", ", ".join(known))] if known else []


# -------------------------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class LayerRow:
    """One line of the table of layers: a layer, or the sum of those in a container."""

    name: str
    label: str
    layers: list[Record]

    def sum(self, key: str) -> float:
        """The sum of one field over the layers; documents of earlier versions lack some."""
        return float(sum(layer.get(key, 0) for layer in self.layers))

    @property
    def passes_ms(self) -> float:
        """Milliseconds of forward and backward."""
        return self.sum("forward_ms") + self.sum("backward_ms")

    @property
    def roofline_share(self) -> float:
        """The mean over the layers, weighted by the time of forward and backward."""
        weighted = (x["roofline_share"] * (x["forward_ms"] + x["backward_ms"]) for x in self.layers)
        return sum(weighted) / self.passes_ms if self.passes_ms else 0.0

    @property
    def layer(self) -> Record | None:
        """The layer, where this is not the sum of several."""
        return self.layers[0] if len(self.layers) == 1 and self.layers[0]["name"] == self.name else None


def layer_rows(layers: Iterable[Record], sort: str, depth: int | None) -> list[LayerRow]:
    """The rows as a tree in the network's order, or sorted without their containers, largest first."""
    rows = layer_tree(layers, depth)
    if sort == "network":
        return rows
    parents = {row.name.rpartition(".")[0] for row in rows}
    leaves = [LayerRow(row.name, row.name, row.layers) for row in rows if row.name not in parents]
    key = SORT_KEYS[sort]
    return sorted(leaves, key=lambda row: -(row.roofline_share if key == "roofline_share" else row.sum(key)))


def layer_tree(layers: Iterable[Record], depth: int | None) -> list[LayerRow]:
    """The layers under their containers, a container before its members; layers deeper than `depth` are summed."""
    rows: dict[str, LayerRow] = {}
    for layer in layers:
        parts = layer["name"].split(".")
        for level, part in enumerate(parts[:depth]):
            name = ".".join(parts[: level + 1])
            rows.setdefault(name, LayerRow(name, "  " * level + part, [])).layers.append(layer)
    return list(rows.values())


def update_cell(row: LayerRow) -> str:
    """Milliseconds of the update, marked where they are a share of a kernel."""
    mark = "~" if any(layer["optimizer_shared"] for layer in row.layers) else ""
    return mark + ms(row.sum("optimizer_ms")) if row.sum("optimizer_ms") else ""


def output_cell(row: LayerRow) -> str:
    """The shape of a layer's output, without the batch."""
    return "×".join(map(str, row.layer["output"][1:])) if row.layer and row.layer["output"] else ""


def bound_cell(row: LayerRow) -> Text:
    """The ceiling that bounds a layer in forward and backward, where that is known."""
    bound = bound_of(row.layer) if row.layer else "plain"
    return Text("" if bound == "plain" else bound, BOUND_COLORS.get(bound, ""))


def nonzero(value: float, render: Callable[[float], str]) -> str:
    """A figure, or an empty cell for zero."""
    return render(value) if value else ""


def rate_cell(row: LayerRow, key: str, scale: float) -> str:
    """Something per time of forward and backward."""
    return nonzero(row.sum(key) / row.passes_ms / scale, number) if row.passes_ms else ""


LAYER_COLUMNS = (
    Column("layer", "layer", 0, lambda row: row.label, "left"),
    Column("total", "ms", 0, lambda row: ms(row.sum("total_ms"))),
    Column("std", "±", 8, lambda row: ms(row.layer["total_std_ms"]) if row.layer else ""),
    Column("forward", "forward", 2, lambda row: ms(row.sum("forward_ms"))),
    Column("backward", "backward", 3, lambda row: ms(row.sum("backward_ms"))),
    Column("optimizer", "update", 4, update_cell),
    Column("share", "share", 1, lambda row: percent(row.sum("share"))),
    Column("bar", "", 5, lambda row: Text(bar(row.sum("share")), "cyan"), "left"),
    Column("output", "output", 6, output_cell),
    Column("memory", "kept MB", 7, lambda row: nonzero(row.sum("activation_bytes"), megabytes)),
    Column("parameters", "parameters", 16, lambda row: nonzero(row.sum("parameters"), "{:,.0f}".format)),
    Column("kernels", "kernels", 15, lambda row: nonzero(row.sum("kernels"), "{:,.0f}".format)),
    Column("flops", "GFLOP", 11, lambda row: nonzero(row.sum("flops") / 1e9, number)),
    Column("bytes", "MB", 12, lambda row: nonzero(row.sum("bytes"), megabytes)),
    Column("tflops", "TFLOP/s", 13, lambda row: rate_cell(row, "flops", 1e9)),
    Column("gb_per_s", "GB/s", 14, lambda row: rate_cell(row, "bytes", 1e6)),
    Column("bound", "bound by", 9, bound_cell, "left"),
    Column("roofline", "roofline", 10, lambda row: nonzero(row.roofline_share, lambda share: percent(share, 0))),
)


def layer_table(document: Record, width: int, sort: str, depth: int | None, top: int) -> Table:
    """What each layer costs; below, what belongs to no layer, so that the column adds up to the step.

    The column that the rows are sorted by comes before all others where there is little room.
    """
    rows = layer_rows(document["layers"], sort, depth)
    shown = rows[: top or None]
    columns = [replace(column, rank=0) if column.key == sort else column for column in LAYER_COLUMNS]
    lines = [render_cells(columns, row) for row in shown]
    if len(shown) < len(rows):
        lines.append({"layer": f"… {len(rows) - len(shown)} more"})
    return fitted_table(columns, [*lines, {}, *other_lines(document), {}, step_line(document)], width)


def other_lines(document: Record) -> list[Cells]:
    """The time of a step that belongs to no layer."""
    phases, whole = document["phases"], whole_ms(document)
    others = {
        "data": phases["data"],
        "loss, metrics": phases["loss"],
        "other updates": phases["optimizer"] - sum(layer["optimizer_ms"] for layer in document["layers"]),
        "unattributed": document["unattributed_ms"],
        "idle": document["idle_ms"],
    }
    return [
        {"layer": name, "total": ms(time), "share": percent(time / whole), "bar": Text(bar(time / whole), "cyan")}
        for name, time in others.items()
        if time > 5e-4 or name in ("unattributed", "idle")
    ]


def step_line(document: Record) -> Cells:
    """The whole step."""
    phases = document["phases"]
    return {
        "layer": "step",
        "total": ms(whole_ms(document)),
        "share": "100 %",
        **{name: ms(phases[name]) for name in ("forward", "backward", "optimizer")},
        "memory": nonzero(document.get("activation_bytes", 0), megabytes),
    }


# ------------------------------------------------------------------------------------------- kernels, operators, phases


def group_table(document: Record, by: str, width: int, top: int) -> Table:
    """The kernels or operators by their time, and the layers that they serve."""
    whole, groups = whole_ms(document), document[f"{by}s"]
    shown, rest = groups[: top or GROUPS], groups[top or GROUPS :]
    columns = [
        Column("name", by, 0, lambda group: shorten(kernel_label(group["name"]), max(16, width // 3)), "left"),
        Column("ms", "ms", 0, lambda group: ms(group["ms"])),
        Column("share", "share", 1, lambda group: percent(group["ms"] / whole)),
        Column("calls", "calls", 2, lambda group: f"{group['kernels']:.0f}"),
    ]
    lines = [render_cells(columns, group) for group in shown]
    if rest:
        left = sum(group["ms"] for group in rest)
        lines.append({"name": f"… {len(rest)} more", "ms": ms(left), "share": percent(left / whole)})
    room = width - sum(column_width(column, lines) + 2 for column in columns) - 4
    if room >= 16:
        columns.append(Column("serves", "serves", 3, lambda group: served_layers(group, room), "left"))
        for cells, group in zip(lines, shown, strict=False):
            cells["serves"] = columns[-1].render(group)
    return fitted_table(columns, lines, width)


def served_layers(group: Record, width: int) -> str:
    """The layers that a kernel or operator serves, with their milliseconds, as far as there is room."""
    text = ", ".join(f"{name} {ms(time)}" for name, time in group["layers"].items())
    return text if len(text) <= width else text[: width - 1] + "…"


def phase_table(document: Record, width: int) -> Table:
    """The phases of the step."""
    whole, room = whole_ms(document), max(4, min(40, width - 36))
    columns = [
        Column("phase", "phase", 0, lambda part: part[0], "left"),
        Column("ms", "ms", 0, lambda part: ms(part[1])),
        Column("share", "share", 1, lambda part: percent(part[1] / whole)),
        Column("bar", "", 2, lambda part: Text(bar(part[1] / whole, room), "cyan"), "left"),
    ]
    parts = {**document["phases"], "unattributed": document["unattributed_ms"], "idle": document["idle_ms"]}
    lines = [render_cells(columns, part) for part in parts.items()]
    return fitted_table(columns, [*lines, {}, {"phase": "step", "ms": ms(whole), "share": "100 %"}], width)
