"""What `profile` shows: tables compared with golden files, and the icicle plot.

After a change that is meant, write the golden files anew: `FASTCIFAR_GOLDEN=write pytest tests/profiling`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from profiling_helpers import fixed_comparison, fixed_document, unattributed
from rich.console import Console

from fastcifar.cli.display.icicle import BODY, COLUMNS, HEAD, WIDTH, icicle
from fastcifar.cli.display.profile import layer_rows, report_from_document

GOLDEN = Path(__file__).parent / "golden"
BYS = ("layer", "kernel", "op", "phase")


def screen(document: dict[str, Any], width: int, **options: Any) -> str:
    """The lines that a terminal of that width shows, without colours."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(report_from_document(document, width, **options))
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("profile", {}),
        ("profile-sorted", {"sort": "roofline", "top": 2}),
        ("profile-kernel", {"by": "kernel", "top": 8}),
        ("profile-phase", {"by": "phase"}),
        ("profile-vs", {}),
    ],
)
def test_the_screen_is_as_kept(name: str, options: dict[str, Any]) -> None:
    document = fixed_comparison() if name == "profile-vs" else fixed_document()
    text, kept = screen(document, 80, **options), GOLDEN / f"{name}.txt"
    if os.environ.get("FASTCIFAR_GOLDEN") == "write":
        kept.write_text(text, encoding="utf-8")
    assert text == kept.read_text(encoding="utf-8")


def test_what_is_not_known_by_layer_is_shown_by_kernel() -> None:
    document = unattributed(fixed_document())
    text = screen(document, 100)
    assert "100.0 % of the kernel time could not be attributed" in text and "wgrad" in text and "roofline" not in text
    assert "arithmetic" not in screen(document, 140, by="phase") and "unattributed" in screen(document, 100, by="phase")
    updated = [{**layer, "bound": "arithmetic", "optimizer_ms": 1.0, "total_ms": 1.0} for layer in document["layers"]]
    known = {**document, "layers": updated, "unattributed_ms": 0.89 * document["kernel_ms"]}
    assert "arithmetic" not in screen(known, 140), "nothing bounds the passes of a layer that took no time in them"
    assert "conv" in screen(known, 140) and "attributed to" not in screen(known, 140)
    uncounted = [{**layer, "bound": "launches", "flops": 0, "bytes": 0} for layer in fixed_document()["layers"]]
    shown = {**fixed_document(), "layers": uncounted}
    assert "launches" not in screen(shown, 200), "nothing bounds a layer of which nothing was counted"
    assert "bound by launches, " not in icicle(shown) and "bound by " in icicle(fixed_document())
    both = fixed_comparison()
    text = screen({**both, "a": unattributed(both["a"])}, 100)
    assert "a: With the graph engine" in text and "conv" not in text and "b over a" in text and "step" in text


@pytest.mark.parametrize("width", [20, 40, 80, 140, 200])
@pytest.mark.parametrize("by", BYS)
def test_every_view_fits_its_width(by: str, width: int) -> None:
    text = screen(fixed_document(), width, by=by)
    assert max(map(len, text.splitlines())) <= width
    if width >= 40:
        assert " ms " in text and "share" in text
    if by == "layer" and width >= 140:
        assert all(heading in text for heading in ("forward", "backward", "update", "output", "bound by", "roofline"))


def test_memory_is_shown_where_there_is_room_or_it_is_sorted_by() -> None:
    assert "kept MB" in screen(fixed_document(), 100) and "kept MB" not in screen(fixed_document(), 60)
    lines = screen(fixed_document(), 60, sort="memory").splitlines()
    heading = next(line for line in lines if "kept MB" in line)
    end = heading.index("kept MB") + len("kept MB")
    names = [line.split()[0] for line in lines if line[:6].strip() in ("conv", "act", "loss")]
    assert names == ["act", "conv", "loss"], "not sorted by memory"
    act = next(line for line in lines if line.startswith(" act"))
    assert act[:end].endswith("2.1") and lines[-2][:end].endswith("2.89")  # MB; all layers and the loss
    assert "peak 6.24 MB, between steps 1 MB, kept for backward 2.89 MB" in " ".join("".join(lines).split())
    wide, document = screen(fixed_comparison(), 100), fixed_comparison()
    assert "kept MB" in wide and "peak of a 6.24 MB, of b 6.24 MB" in wide
    document["comparison"]["layers"][1]["difference_activation_bytes"] = -524_288
    assert "-0.524" in screen(document, 100)


@pytest.mark.parametrize("width", [40, 100])
def test_a_document_of_an_earlier_version_is_shown(width: int) -> None:
    """One without memory."""
    document, comparison = fixed_document(), fixed_comparison()
    for each in (document, comparison["a"], comparison["b"]):
        for key in ("activation_bytes", "held_memory", "peak_memory"):
            del each[key]
        for part in each["layers"]:
            del part["activation_bytes"]
    for part in comparison["comparison"]["layers"]:
        for key in [key for key in part if key.endswith("activation_bytes")]:
            del part[key]
    text = screen(document, width)
    assert "conv" in text and "\nmemory" not in text
    assert "conv" in screen(document, width, sort="memory") and "conv" in screen(comparison, width)


def test_a_compiled_module_is_explained() -> None:
    document = fixed_document()
    document["layers"][1]["kind"] = "Conv2d (compiled)"
    assert "What torch.compile compiled is one row" in screen(document, 100)
    assert "compiled is one row" not in screen(fixed_document(), 100)


@pytest.mark.parametrize("width", [40, 80])
def test_a_comparison_fits_its_width(width: int) -> None:
    text = screen(fixed_comparison(), width)
    assert max(map(len, text.splitlines())) <= width and "b - a" in text


def layer(name: str, ms: float) -> dict[str, Any]:
    """A layer that has a time only."""
    return {"name": name, "total_ms": ms, "forward_ms": ms, "backward_ms": 0.0, "roofline_share": 0.5 / ms}


def test_the_tree_collapses_and_sorts() -> None:
    layers = [layer("whiten", 2.0), layer("group.conv", 5.0), layer("group.act.self", 1.0), layer("head", 4.0)]
    tree = layer_rows(layers, "network", None)
    assert [row.label for row in tree] == ["whiten", "group", "  conv", "  act", "    self", "head"]
    collapsed = {row.name: row.sum("total_ms") for row in layer_rows(layers, "network", 1)}
    assert collapsed == {"whiten": 2.0, "group": 6.0, "head": 4.0}
    ordered = [row.name for row in layer_rows(layers, "total", None)]
    assert ordered == ["group.conv", "head", "whiten", "group.act.self"]
    assert [row.name for row in layer_rows(layers, "roofline", None)] == ordered[::-1]
    assert layer_rows(layers, "network", 1)[1].roofline_share == pytest.approx((0.5 + 0.5) / 6.0)


def test_a_stored_document_is_shown_without_torch(tmp_path: Path) -> None:
    kept = tmp_path / "profile.json"
    kept.write_text(json.dumps([fixed_document(), fixed_comparison()]))
    program = (
        "import json, sys; from rich import print; from fastcifar.cli.display.profile import report_from_document;"
        "from fastcifar.cli.display.icicle import icicle; documents = json.load(open(sys.argv[1]));"
        "[print(report_from_document(each, 80)) for each in documents]; print(len(icicle(documents[0])));"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(kept)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "conv" in done.stdout and "b over a" in done.stdout


def test_the_icicle_is_as_high_as_the_step() -> None:
    document = {**fixed_document(), "device": "a <device> & more"}
    picture = ET.fromstring(icicle(document))
    assert picture.attrib["width"] == str(WIDTH) == "800" and "max-width:100%" in picture.attrib["style"]
    space = {"s": "http://www.w3.org/2000/svg"}
    boxes = [
        (float(r.attrib["x"]), float(r.attrib["y"]), float(r.attrib["height"]), g.findtext("s:title", "", space))
        for g in picture.findall("s:g", space)
        for r in g.findall("s:rect", space)
    ]
    columns = sorted({x for x, *_ in boxes})
    assert columns == [left for left, _ in COLUMNS]
    heights = {x: sum(height for x0, _, height, _ in boxes if x0 == x) for x in columns}
    assert heights[columns[0]] == pytest.approx(BODY)
    assert heights[columns[1]] == pytest.approx(BODY, rel=1e-3)
    assert all(y + height <= HEAD + BODY + 0.1 for _, y, height, _ in boxes)
    whole = document["kernel_ms"] + document["idle_ms"]
    forward = next(height for x, _, height, tip in boxes if x == columns[1] and tip.startswith("forward"))
    assert forward == pytest.approx(document["phases"]["forward"] / whole * BODY, abs=0.02)
    assert any("a <device> & more" in (text.text or "") for text in picture.findall("s:text", space))


def test_labels_of_the_icicle_stay_inside_their_boxes() -> None:
    """By the mean width of a letter; names that are longer are shortened."""
    document = fixed_document()
    for item in document["items"]:
        item["kernel"] = item["kernel"] + "_of_a_long_name_that_needs_two_hundred_letters" * 4
    picture = ET.fromstring(icicle(document))
    space = {"s": "http://www.w3.org/2000/svg"}
    labelled = 0
    for group in picture.findall("s:g", space):
        box, texts = group.find("s:rect", space), group.findall("s:text", space)
        if box is None or len(texts) != 2:
            continue
        labelled += 1
        name, share = (text.text or "" for text in texts)
        assert (len(name) + len(share)) * 6.4 < float(box.attrib["width"])
        assert float(box.attrib["height"]) >= 12
    assert labelled > 10


def test_layers_above_the_roofline_are_explained_where_it_is_shown() -> None:
    document = fixed_document()
    assert "Above 100 %" not in screen(document, 200)
    document["layers"][0] |= {"kind": "WinogradConv2d", "roofline_share": 1.4, "flops": 10**12, "bytes": 1}
    text = screen(document, 200)
    assert "140 %" in text
    assert " ".join(text.splitlines()[-1:]).startswith(
        "Above 100 % of the roofline: a Winograd convolution does up to 4"
    )
    assert "Above 100 %" not in screen(document, 60) and "Above 100 %" in screen(document, 60, sort="roofline")
