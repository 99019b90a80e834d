"""The page of a profile, and of a comparison of two, drawn from its JSON document: pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fastcifar.cli.display.figures import (
    interval,
    kernel_label,
    megabytes,
    memory_difference,
    ms,
    number,
    percent,
    shorten,
    signed,
)
from fastcifar.cli.display.html import Cell, Part, page, paragraphs, table
from fastcifar.cli.display.page_icicle import bounds_legend, icicle_data, icicle_picture
from fastcifar.cli.display.profile import LAYER_COLUMNS, LayerRow, above_roofline, header_facts
from fastcifar.cli.display.profile_charts import (
    MOST_BARS,
    MOST_DIFFERENCES,
    counted,
    difference_bars,
    is_clear,
    pass_bars,
    roofline_plot,
)
from fastcifar.cli.display.profile_comparison import comparison_facts, conclusion, side_summary, unattributed_notes
from fastcifar.cli.display.profile_tree import Box, step_box, unattributed_note, whole_ms
from fastcifar.cli.display.table import Column

Record = Mapping[str, Any]  # a part of the document

GROUPS = 50  # kernels shown
KERNEL_LETTERS, TITLE_LETTERS = 150, 60  # of a kernel's name, in the table and in a title
MOST_ROWS = 1000  # layers in the table: a browser takes a second for so many
FIELDS = {  # of a layer in the document, by the columns of the terminal's table; in the order of the page's
    "total": "total_ms",
    "std": "total_std_ms",
    "share": "share",
    "forward": "forward_ms",
    "backward": "backward_ms",
    "optimizer": "optimizer_ms",
    "roofline": "roofline_share",
    "tflops": "tflops",
    "gb_per_s": "gb_per_s",
    "flops": "flops",
    "bytes": "bytes",
    "memory": "activation_bytes",
    "parameters": "parameters",
    "kernels": "kernels",
}
ORDER = ("layer", *[*FIELDS][:6], "bound", *[*FIELDS][6:], "output")
ICICLE_NOTE = (
    "Step, phase, layer, kernel, from top to bottom; width is time. The pointer over a box shows its figures; a click "
    "zooms into it, a click on what is above it or Escape zooms out. Neighbours too narrow to be seen are one box, "
    "“n others”, that opens with a click."
)


def profile_page(document: Record) -> str:
    """The page of a document of `profile`, or of `profile --vs`, as HTML."""
    if "comparison" in document:
        return comparison_page(document)
    root = step_box(document)
    first = max(document["layers"], key=lambda layer: float(layer["total_ms"]))
    most = f"{percent(first['share'], int(first['share'] < 0.1))} of it in {first['name']}"
    by_layer = [bars_part(document["layers"]), layers_part(document), roofline_part(document)]
    parts = [icicle_part(root), *by_layer, kernels_part(document)]
    if note := unattributed_note(document):
        most = "which layers take it is not known"
        parts = [unknown_part([note]), icicle_part(root), kernels_part(document)]
    parts.append(facts_part("How it was measured", header_facts(document), document))
    title = f"{document['recipe']}: {ms(document['step_ms'])} ms a step of {document['batch']} images, {most}"
    subtitle = f"{document['dataset']}, {document['engine']} engine, {document['device']}, {versions(document)}"
    return page(title, subtitle, parts, {"icicles": [icicle_data(root, root.ms)]})


def comparison_page(document: Record) -> str:
    """The page of a document of `profile --vs`."""
    a, b, comparison = document["a"], document["b"], document["comparison"]
    roots = [step_box(a), step_box(b)]
    extent = max(root.ms for root in roots)
    pictures = Markup("").join(
        Markup('<p class="side">{}: {}</p><div class="picture">{}</div>').format(
            name, side_summary(side), icicle_picture(root, extent, i)
        )
        for i, (name, side, root) in enumerate(zip("ab", (a, b), roots, strict=True))
    )
    steps = f"Step by step: a {ms(a['step_ms'])} ms, b {ms(b['step_ms'])} ms"
    sides = (("a: ", a), ("b: ", b))
    parts = [Part(steps, pictures + bounds_legend(), ICICLE_NOTE)]
    if notes := unattributed_notes(document):
        parts = [unknown_part(notes), *parts, *(kernels_part(side, name) for name, side in sides)]
    else:
        table = differences_table(comparison["layers"])
        parts += [differences_part(comparison["layers"])]
        parts += [Part("Every layer in both", table, "Times in ms a step, memory in MB.")]
        parts += [roofline_part(side, name) for name, side in sides]
    parts.append(facts_part("How it was measured", comparison_facts(document), document))
    verdict = conclusion(comparison["step_ratio"], comparison["ci95"])
    title = f"{a['recipe']} (a) against {b['recipe']} (b): {verdict}"
    subtitle = f"{document['dataset']}, {document['device']}, {a['steps']} steps of each, {versions(document)}"
    return page(title, subtitle, parts, {"icicles": [icicle_data(root, extent) for root in roots]})


def versions(document: Record) -> str:
    """The versions that measured it."""
    return f"fastcifar {document['version']}, torch {document['torch']}"


def unknown_part(notes: Sequence[str]) -> Part:
    """Says that the layers' own figures are not known."""
    return Part("Where the time goes by layer is not known", paragraphs(notes))


def icicle_part(root: Box) -> Part:
    """The icicle plot."""
    largest = max(root.below, key=lambda box: box.ms, default=root)
    title = f"{percent(largest.ms / root.ms if root.ms else 0.0, 0)} of the step: {largest.name}"
    picture = Markup('<div class="picture">{}</div>').format(icicle_picture(root, root.ms or 1.0, 0))
    return Part(title, picture + bounds_legend(), ICICLE_NOTE)


def bars_part(layers: Sequence[Record]) -> Part:
    """The passes of each layer along the network."""
    largest = sorted(layers, key=lambda layer: -layer["total_ms"])[:3]
    share = sum(layer["share"] for layer in largest)
    names = " and ".join(filter(None, [", ".join(x["name"] for x in largest[:-1]), *(x["name"] for x in largest[-1:])]))
    note = "In the order of the network; a click on a name of the legend hides it."
    if len(layers) > MOST_BARS:
        note += f" Neighbours share a bar: there are {len(layers):,} layers."
    return Part(f"{names} take {percent(share, 0)} of the step", pass_bars(layers), note)


def layers_part(document: Record) -> Part:
    """The table of layers."""
    layers = document["layers"]
    columns = sorted((each for each in LAYER_COLUMNS if each.key in ORDER), key=lambda each: ORDER.index(each.key))
    least = sorted((layer["total_ms"] for layer in layers), reverse=True)[:MOST_ROWS][-1]
    shown = [layer for layer in layers if layer["total_ms"] >= least][:MOST_ROWS]
    rows = [layer_cells(columns, LayerRow(layer["name"], layer["name"], [layer])) for layer in shown]
    parameters = sum(layer["parameters"] for layer in layers)
    title = f"{len(layers):,} layers, {parameters:,} parameters"
    if kept := sum(layer.get("activation_bytes", 0) for layer in layers):
        title += f", {megabytes(kept)} MB kept for the backward pass"
    notes = ["A click on a heading sorts. Rates and bound are those of forward and backward together."]
    if any(layer["optimizer_shared"] for layer in layers):
        notes.append("~ marks a share, by size, of kernels that update several layers.")
    if len(shown) < len(layers):
        rest = sum(layer["total_ms"] for layer in layers) - sum(layer["total_ms"] for layer in shown)
        notes.append(f"The {MOST_ROWS:,} layers that take most; the others take {ms(rest)} ms together.")
    body = table([column.heading for column in columns], rows)
    return Part(title, body, " ".join([*notes, above_roofline(document)]))


def layer_cells(columns: Sequence[Column], row: LayerRow) -> list[Cell]:
    """A row of the table of layers: what the terminal shows, with the document's figure to sort by."""
    (layer,) = row.layers
    texts = {column.key: str(column.render(row)) for column in columns}
    return [
        (texts[column.key], float(layer[FIELDS[column.key]]) if FIELDS[column.key] in layer else None)
        if column.key in FIELDS
        else texts[column.key]
        for column in columns
    ]


def roofline_part(document: Record, side: str = "") -> Part:
    """The roofline plot, and what it leaves out."""
    layers = counted(document["layers"])
    times = [layer["forward_ms"] + layer["backward_ms"] for layer in layers]
    if not layers:
        return Part(f"{side}No layer has operations that are counted", Markup(""))
    reached = sum(t * layer["roofline_share"] for t, layer in zip(times, layers, strict=True)) / sum(times)
    note = (
        "A point is a layer, its area the layer's share of the step, its place the operations and bytes that are "
        "counted over its time in forward and backward; both axes are logarithmic. The line is what the device can do: "
        "its ceilings, measured before the steps."
    )
    if left := len(document["layers"]) - len(layers):
        note += f" {left:,} layers have no operations that are counted: their rates in GB/s are in the table."
    title = f"{side}Layers with counted operations reach {percent(reached, 0)} of the roofline on average"
    return Part(title, roofline_plot(document), f"{note} {above_roofline(document)}".strip())


def kernels_part(document: Record, side: str = "") -> Part:
    """The table of kernels."""
    whole, kernels = whole_ms(document), document["kernels"]
    rows: list[list[Cell]] = [
        [
            kernel_cell(kernel["name"]),
            (ms(kernel["ms"]), kernel["ms"]),
            (percent(kernel["ms"] / whole if whole else 0.0), kernel["ms"] / whole if whole else 0.0),
            (number(kernel["kernels"]), kernel["kernels"]),
            ", ".join(f"{name} {ms(time)}" for name, time in [*kernel["layers"].items()][:4]),
        ]
        for kernel in kernels[:GROUPS]
    ]
    first = "No kernels"
    if rows:
        name = shorten(kernel_label(kernels[0]["name"]), TITLE_LETTERS)
        first = f"{name} takes {percent(kernels[0]['ms'] / (whole or 1.0), 0)} of the step"
    note = "Times in ms a step; beside it the layers that it serves most."
    if len(kernels) > GROUPS:
        note += f" The {GROUPS} largest of {len(kernels):,} kernels."
    return Part(f"{side}{first}", table(["kernel", "ms", "share", "calls a step", "serves"], rows), note)


def kernel_cell(name: str) -> Markup:
    """A kernel's name as far as it tells it apart; all of it is shown on hover."""
    return Markup('<span title="{}">{}</span>').format(name, shorten(kernel_label(name), KERNEL_LETTERS))


def differences_part(layers: Sequence[Record]) -> Part:
    """What differs, layer by layer, as a picture."""
    clear = [item for item in layers if is_clear(item)]
    title = f"{len(clear)} of {len(layers):,} layers differ clearly"
    if clear:
        most = max(clear, key=lambda item: abs(item["difference_ms"]))
        title += f", most of all {most['name']}: {signed(most['difference_ms'])} ms"
    note = "Bars are b minus a, lines their 95 % intervals; a pale bar's interval holds zero."
    if len(layers) > MOST_DIFFERENCES:
        note += f" The {MOST_DIFFERENCES} largest differences of {len(layers):,} layers."
    return Part(title, difference_bars(layers), note)


def differences_table(layers: Sequence[Record]) -> Markup:
    """What differs, layer by layer, as a table."""
    rows: list[list[Cell]] = [
        [
            item["name"],
            ("" if item["a_ms"] is None else ms(item["a_ms"]), item["a_ms"]),
            ("" if item["b_ms"] is None else ms(item["b_ms"]), item["b_ms"]),
            (signed(item["difference_ms"]), item["difference_ms"]),
            interval(item["ci95"]),
            ("" if item["ratio"] is None else f"{item['ratio']:.2f}", item["ratio"]),
            (
                memory_difference(item.get("difference_activation_bytes", 0)),
                item.get("difference_activation_bytes"),
            ),
        ]
        for item in layers
    ]
    return table(["layer", "a ms", "b ms", "b - a", "95 % interval", "b / a", "kept MB: b - a"], rows)


def facts_part(title: str, facts: Sequence[tuple[str, str]], document: Record) -> Part:
    """What was measured and how."""
    return Part(title, paragraphs([f"{name}: {value}" for name, value in [*facts, ("versions", versions(document))]]))
