"""The tables of `profile`: by layer, kernel, operator and phase, and of two profiles side by side.

A table has as many columns as the width allows; what does not fit is in `--json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastcifar.cli.display.screen import facts
from fastcifar.errors import UsageError, nearest
from fastcifar.profiling.breakdown import grouped
from fastcifar.profiling.result import Comparison, Difference, Layer, Profile

BAR = 10  # characters of a bar of 100 %
COLORS = {"arithmetic": "green", "memory": "blue", "launches": "yellow"}
SORTS = ("network", "total", "forward", "backward", "optimizer", "flops", "bytes", "kernels", "roofline")
BYS = ("layer", "kernel", "op", "phase")


def check(by: str, sort: str) -> None:
    """Raise UsageError for a view or an order that there is not."""
    if by not in BYS:
        raise UsageError(f"--by is '{by}'; {nearest(by, BYS)}")
    if sort not in SORTS:
        raise UsageError(f"--sort is '{sort}'; {nearest(sort, SORTS)}")


@dataclass
class Row:
    """One line of the table of layers: a layer, or the sum of those in a container."""

    name: str
    depth: int
    layers: list[Layer]

    def sum(self, key: str) -> float:
        """The sum of one field over the layers; the roofline's share is weighted by time."""
        if key == "roofline":
            time = self.sum("forward") + self.sum("backward")
            return sum(x.roofline_share * (x.forward_ms + x.backward_ms) for x in self.layers) / time if time else 0.0
        field = key if key in ("flops", "bytes", "kernels", "parameters", "share") else f"{key}_ms"
        return float(sum(getattr(layer, field) for layer in self.layers))


def tree(layers: Iterable[Layer], depth: int | None) -> list[Row]:
    """The layers under their containers, a container before its members; what is deeper than `depth` is summed."""
    rows: dict[str, Row] = {}
    for layer in layers:
        parts = layer.name.split(".")
        for level in range(1, len(parts) + 1):
            if depth is not None and level > depth:
                break
            name = ".".join(parts[:level])
            rows.setdefault(name, Row(name, level - 1, [])).layers.append(layer)
    return list(rows.values())


def rows_of(profile: Profile, sort: str, depth: int | None) -> list[Row]:
    """The rows in the network's order as a tree, or sorted without their containers, largest first."""
    rows = tree(profile.layers, depth)
    if sort == "network":
        return rows
    parents = {row.name.rpartition(".")[0] for row in rows}
    leaves = [Row(row.name, 0, row.layers) for row in rows if row.name not in parents]
    return sorted(leaves, key=lambda row: -row.sum(sort))


@dataclass
class Column:
    """One column of a table: the lower its rank, the sooner it is shown."""

    heading: str
    rank: int
    cells: list[str | Text]
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        return max(len(self.heading), *(len(cell) for cell in self.cells))


def fitted(columns: list[Column], width: int) -> Table:
    """A table of the columns that fit into the width: those of the lowest ranks, in the order given.

    The first column is always shown; an empty row of cells draws a line.
    """
    shown, left = [columns[0]], width - columns[0].width - 3
    for column in sorted(columns[1:], key=lambda each: each.rank):
        if column.width + 2 > left:
            break
        shown.append(column)
        left -= column.width + 2
    shown.sort(key=columns.index)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for cells in zip(*(column.cells for column in shown), strict=True):
        if any(len(cell) for cell in cells):
            table.add_row(*cells)
        else:
            table.add_section()
    return table


def layer_columns(rows: list[Row], names: list[str]) -> list[Column]:
    """All there is to say of the rows: the time, then what explains it."""

    def only(row: Row) -> Layer | None:
        return row.layers[0] if len(row.layers) == 1 and row.layers[0].name == row.name else None

    def updates(row: Row) -> str:
        mark = "~" if any(layer.optimizer_shared for layer in row.layers) else ""
        return mark + ms(row.sum("optimizer")) if row.sum("optimizer") else ""

    def output(row: Row) -> str:
        layer = only(row)
        return "×".join(map(str, layer.output[1:])) if layer and layer.output else ""

    def rate(key: str, scale: float) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            time = row.sum("forward") + row.sum("backward")
            return number(row.sum(key) / time / scale) if time and row.sum(key) else ""

        return cell

    def bound(row: Row) -> Text:
        layer = only(row)
        return Text(layer.bound, COLORS[layer.bound]) if layer and layer.total_ms else Text()

    def column(heading: str, rank: int, cell: Callable[[Row], str | Text], left: bool = False) -> Column:
        return Column(heading, rank, [cell(row) for row in rows], "left" if left else "right")

    def whole(key: str) -> Callable[[Row], str]:
        return lambda row: f"{row.sum(key):,.0f}" if row.sum(key) else ""

    return [
        Column("layer", 0, list(names), "left"),
        column("ms", 0, lambda row: ms(row.sum("total"))),
        column("±", 7, lambda row: ms(layer.total_std_ms) if (layer := only(row)) else ""),
        column("forward", 2, lambda row: ms(row.sum("forward"))),
        column("backward", 3, lambda row: ms(row.sum("backward"))),
        column("update", 4, updates),
        column("share", 1, lambda row: f"{100 * row.sum('share'):.1f} %"),
        column("", 5, lambda row: Text(bar(row.sum("share")), "cyan"), left=True),
        column("output", 6, output),
        column("parameters", 15, whole("parameters")),
        column("kernels", 14, whole("kernels")),
        column("GFLOP", 10, lambda row: number(row.sum("flops") / 1e9) if row.sum("flops") else ""),
        column("MB", 11, lambda row: number(row.sum("bytes") / 1e6) if row.sum("bytes") else ""),
        column("TFLOP/s", 12, rate("flops", 1e9)),
        column("GB/s", 13, rate("bytes", 1e6)),
        column("bound by", 8, bound, left=True),
        column("roofline", 9, lambda row: f"{100 * row.sum('roofline'):.0f} %" if row.sum("roofline") else ""),
    ]


def layer_table(profile: Profile, width: int, sort: str = "network", depth: int | None = None, top: int = 0) -> Table:
    """What each layer costs; below, what belongs to no layer, so that the column adds up to the step."""
    rows = rows_of(profile, sort, depth)
    shown = rows[:top] if top else rows
    plain = [row.name.rpartition(".")[2] if sort == "network" else row.name for row in shown]
    columns = layer_columns(shown, ["  " * row.depth + name for row, name in zip(shown, plain, strict=True)])

    def add(name: str, **cells: str | Text) -> None:
        for column in columns:
            column.cells.append(name if column.heading == "layer" else cells.get(column.heading or "bar", ""))

    if len(shown) < len(rows):
        add(f"… {len(rows) - len(shown)} more")
    add("")
    whole = profile.kernel_ms + profile.idle_ms
    others = {
        "data": profile.phases["data"],
        "loss, metrics": profile.phases["loss"],
        "other updates": profile.phases["optimizer"] - sum(layer.optimizer_ms for layer in profile.layers),
        "unattributed": profile.unattributed_ms,
        "idle": profile.idle_ms,
    }
    for name, value in others.items():
        if value > 5e-4 or name in ("unattributed", "idle"):
            add(name, ms=ms(value), share=f"{100 * value / whole:.1f} %", bar=Text(bar(value / whole), "cyan"))
    add("")
    forward, backward, update = (ms(profile.phases[name]) for name in ("forward", "backward", "optimizer"))
    add("step", ms=ms(whole), share="100 %", forward=forward, backward=backward, update=update)
    return fitted(columns, width)


def grouped_table(profile: Profile, by: str, width: int, top: int = 0) -> Table:
    """The kernels or operators by their time, and the layers that they serve."""
    whole = profile.kernel_ms + profile.idle_ms
    groups = grouped(profile.items, by)
    shown, rest = groups[: top or 20], groups[top or 20 :]
    columns = [
        Column(by, 0, [shortened(group.name, max(16, width // 3)) for group in shown], "left"),
        Column("ms", 0, [ms(group.ms) for group in shown]),
        Column("share", 1, [f"{100 * group.ms / whole:.1f} %" for group in shown]),
        Column("calls", 2, [f"{group.kernels:.0f}" for group in shown]),
    ]
    if rest:
        left = sum(group.ms for group in rest)
        last = (f"… {len(rest)} more", ms(left), f"{100 * left / whole:.1f} %", "")
        for column, cell in zip(columns, last, strict=True):
            column.cells.append(cell)
    room = width - sum(column.width + 2 for column in columns) - 4
    if room >= 16:
        serves = [cut(", ".join(f"{name} {ms(value)}" for name, value in g.layers.items()), room) for g in shown]
        columns.append(Column("serves", 3, [*serves, *([""] if rest else [])], "left"))
    return fitted(columns, width)


def phase_table(profile: Profile, width: int) -> Table:
    """The phases of the step."""
    whole = profile.kernel_ms + profile.idle_ms
    parts = {**profile.phases, "unattributed": profile.unattributed_ms, "idle": profile.idle_ms}
    bars = [Text(bar(value / whole, max(4, min(40, width - 36))), "cyan") for value in parts.values()]
    return fitted(
        [
            Column("phase", 0, [*parts, "", "step"], "left"),
            Column("ms", 0, [*map(ms, parts.values()), "", ms(whole)]),
            Column("share", 1, [*(f"{100 * value / whole:.1f} %" for value in parts.values()), "", "100 %"]),
            Column("", 2, [*bars, "", ""], "left"),
        ],
        width,
    )


def header(profile: Profile, device: str, dataset: str) -> Table:
    """What was measured, and what the device can do."""
    ceilings = profile.roofline
    own = profile.recorded_step_ms - profile.step_ms
    kinds = f" of each of a run's {profile.kinds} kinds" if profile.kinds > 1 else ""
    return facts(
        [
            ("profile", f"{profile.recipe} on {dataset}, {profile.batch} images a step, {profile.engine} engine"),
            ("device", device),
            (
                "step",
                f"{ms(profile.step_ms)} ms ± {ms(profile.step_std_ms)} (mean and deviation of {profile.steps}{kinds})",
            ),
            ("kernels run", f"{ms(profile.kernel_ms)} ms; {100 * unattributed(profile):.2f} % unattributed"),
            ("profiler's own", f"{ms(own)} ms a recorded step" if own > 0 else "less than the spread"),
            (
                "ceilings",
                f"matrix product {number(ceilings.tflops)} TFLOP/s, copy {number(ceilings.gb_per_s)} GB/s, "
                f"empty kernel {1000 * ceilings.launch_ms:.1f} µs",
            ),
        ]
    )


def report(
    profile: Profile,
    device: str,
    dataset: str,
    width: int,
    by: str = "layer",
    sort: str = "network",
    depth: int | None = None,
    top: int = 0,
) -> RenderableType:
    """All that one profile shows on a screen of that width."""
    if by == "layer":
        table = layer_table(profile, width, sort, depth, top)
        shared = any(layer.optimizer_shared for layer in profile.layers) and width >= 72
        legend = "~ a share, by size, of kernels that update several layers" if shared else ""
    else:
        table = phase_table(profile, width) if by == "phase" else grouped_table(profile, by, width, top)
        legend = ""
    return Group(header(profile, device, dataset), table, *([Text(legend, "dim")] if legend else []))


def comparison_report(
    a: Profile, b: Profile, found: Comparison, device: str, dataset: str, width: int, top: int = 0
) -> RenderableType:
    """Two profiles side by side: b minus a and b over a for each layer and the whole."""
    layers = sorted(found.layers, key=lambda item: -abs(item.difference_ms)) if top else found.layers
    shown = layers[: top or None]
    columns = [
        Column("layer", 0, [item.name for item in shown], "left"),
        Column("a ms", 1, [optional(item.a_ms) for item in shown]),
        Column("b ms", 2, [optional(item.b_ms) for item in shown]),
        Column("b - a", 0, [colored(item) for item in shown]),
        Column("95 % interval", 4, [interval(item.ci95) for item in shown]),
        Column("b / a", 3, ["" if item.ratio is None else f"{item.ratio:.2f}" for item in shown]),
    ]
    ratio = found.step_ratio
    step = ["step", ms(a.step_ms), ms(b.step_ms), signed(b.step_ms - a.step_ms), "", f"{ratio:.2f}"]
    more = [f"… {len(layers) - len(shown)} more", *[""] * 5]
    for cells in [*([more] if len(shown) < len(layers) else []), [""] * 6, step]:
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(cell)
    between = f" (95 % interval {found.ci95[0]:.3f} to {found.ci95[1]:.3f})" if found.ci95 else ""
    facts_of = [
        ("a", f"{a.recipe}, {a.batch} images a step, kernels {ms(a.kernel_ms)} ms of {ms(a.step_ms)} ms"),
        ("b", f"{b.recipe}, {b.batch} images a step, kernels {ms(b.kernel_ms)} ms of {ms(b.step_ms)} ms"),
        ("on", f"{dataset}, {device}; {a.steps} steps of each, by turns"),
        ("b over a", f"{ratio:.3f}{between}: {in_words(found)}"),
    ]
    return Group(facts(facts_of), fitted(columns, width))


def in_words(found: Comparison) -> str:
    """What the ratio says."""
    if found.ci95 is None or found.ci95[0] <= 1 <= found.ci95[1]:
        return "no difference shown; more --steps would tell more"
    change = abs(found.step_ratio - 1)
    return f"b takes {100 * change:.1f} % {'more' if found.step_ratio > 1 else 'less'} time a step"


def colored(item: Difference) -> Text:
    """The difference, in colour where it is clear."""
    clear = item.ci95 is not None and (item.ci95[0] > 0 or item.ci95[1] < 0)
    return Text(signed(item.difference_ms), ("red" if item.difference_ms > 0 else "green") if clear else "")


def ms(value: float) -> str:
    """Milliseconds with three significant digits or so."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.0995 else f"{value:.3f}"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def optional(value: float | None) -> str:
    return "" if value is None else ms(value)


def signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{ms(abs(value))}"


def interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def bar(share: float, width: int = BAR) -> str:
    """A bar in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def cut(text: str, width: int) -> str:
    """A long text without its end."""
    return text if len(text) <= width else text[: width - 1] + "…"


def shortened(name: str, width: int) -> str:
    """A long kernel's name with its middle left out."""
    return name if len(name) <= width else f"{name[: width * 2 // 3]}…{name[-(width // 3 - 1) :]}"


def unattributed(profile: Profile) -> float:
    """The share of the kernels' time whose owner is not known."""
    return profile.unattributed_ms / profile.kernel_ms if profile.kernel_ms else 0.0
