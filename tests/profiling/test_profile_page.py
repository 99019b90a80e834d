"""The page of a profile: its figures are the document's, names stay text."""

from __future__ import annotations

import copy
import json
import re
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Call
from profiling_helpers import FIXTURE, fixed_comparison, fixed_document, large_document, named, unattributed

from fastcifar.cli.display.figures import kernel_label, number
from fastcifar.cli.display.figures import ms as milliseconds
from fastcifar.cli.display.profile import above_roofline
from fastcifar.cli.display.profile_charts import MOST_BARS, MOST_DIFFERENCES, difference_bars, roofline_plot
from fastcifar.cli.display.profile_page import FIELDS, MOST_ROWS, profile_page
from fastcifar.cli.display.profile_tree import Box, fold

SMALL = ["--dataset", "shapes", "--batch", "8", "--steps", "2", "--threads", "1", "--set", "network.widths=[8, 8, 8]"]
VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """What a browser without JavaScript finds in a page: elements, texts, tables, the embedded data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []  # the element around it, and the text
        self.rows: list[list[tuple[str, str | None]]] = []  # text and value of each cell
        self.feed(text)
        self.close()
        assert self.open == [], "an element that is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(("", dict(attrs).get("data-value")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        around = self.open[-1] if self.open else ""
        self.texts.append((around, text))
        if {"td", "th"} & set(self.open):
            before, value = self.rows[-1][-1]
            self.rows[-1][-1] = (before + text, value)

    @property
    def data(self) -> dict[str, Any]:
        """What the page's JavaScript reads."""
        found: dict[str, Any] = json.loads(next(text for tag, text in self.texts if tag == "script" and text[0] == "{"))
        return found

    def table(self, first: str) -> dict[str, list[tuple[str, str | None]]]:
        """The rows of the table whose first heading is `first`, by their first cell; its headings under ""."""
        start = next(i for i, row in enumerate(self.rows) if row[0][0] == first)
        wide = len(self.rows[start])
        found = {"": self.rows[start]}
        for row in self.rows[start + 1 :]:
            if len(row) != wide or row[0][0] in ("kernel", "layer"):
                break
            found[row[0][0]] = row
        return found


def leaves(node: list[Any]) -> float:
    """The sum over the nodes below which there are none."""
    return sum(leaves(child) for child in node[4]) if len(node) > 4 else float(node[1])


def test_the_figures_of_the_page_are_those_of_the_document(call: Call, tmp_path: Path) -> None:
    document = call("profile", "tiny", *SMALL, "--html", "page.html", "--json").document
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    rows = page.table("layer")
    assert len(rows) - 1 == len(document["layers"])
    for layer in document["layers"]:
        values = [float(value) for _, value in rows[layer["name"]] if value is not None]
        assert values == [layer[field] for field in FIELDS.values()]
    root = page.data["icicles"][0]["tree"]
    names = page.data["icicles"][0]["names"]
    assert root[1] == pytest.approx(document["kernel_ms"] + document["idle_ms"], rel=1e-5)
    times = {names[node[0]]: node for node in root[4]}
    for phase, ms in document["phases"].items():
        assert leaves(times[phase]) == pytest.approx(ms, rel=1e-4)
    kernels = page.table("kernel")
    for kernel in document["kernels"][:50]:
        assert float(kernels[kernel["name"]][1][1] or 0) == kernel["ms"]


def test_the_page_of_two_recipes(call: Call, tmp_path: Path) -> None:
    both = ["--vs", "tiny", "--set", "b:network.whiten.kernel=3", "--html", "page.html", "--json"]
    document = call("profile", "tiny", *SMALL, *both).document
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    rows = page.table("layer")
    for item in document["comparison"]["layers"]:
        assert float(rows[item["name"]][3][1] or "nan") == item["difference_ms"]
    icicles = page.data["icicles"]
    longest = max(document[side]["kernel_ms"] + document[side]["idle_ms"] for side in ("a", "b"))
    assert [each["extent"] for each in icicles] == [longest, longest], "the two have one scale"


@pytest.mark.parametrize("options", [[], ["--vs", "tiny"]])
def test_a_page_that_cannot_be_written_ends_the_command_at_once(call: Call, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    for place, words in (("no/such/folder/page.html", "page.html"), ("folder", "folder")):
        start = time.monotonic()
        done = call("profile", "tiny", *SMALL, *options, "--html", place)
        assert done.code == 3 and words in done.err and "Traceback" not in done.err
        assert "Profiling" not in done.err and time.monotonic() - start < 2, "something was measured"
    assert call("profile", "tiny", *SMALL, "--html", "same", "--svg", "same").code == 2
    assert not (tmp_path / "same").exists()


def test_a_document_of_an_earlier_version_has_a_page(call: Call, tmp_path: Path) -> None:
    """One without kernels by layer."""
    assert call("report", FIXTURE, "--html", "page.html").code == 0
    page, kept = Page((tmp_path / "page.html").read_text("utf-8")), json.loads(FIXTURE.read_text())
    assert set(page.table("layer")) == {"", *(layer["name"] for layer in kept["layers"])}
    assert page.data["icicles"][0]["tree"][1] == pytest.approx(kept["kernel_ms"] + kept["idle_ms"], rel=1e-5)


@pytest.mark.parametrize(
    "name", ["</script><script>bad()</script>", "\"'><img src=x onerror=bad()>", "🦊 & a<b>{{ 7 }}"]
)
@pytest.mark.parametrize("make", [fixed_document, fixed_comparison])
def test_names_stay_text(make: Any, name: str) -> None:
    plain = make()
    document = plain
    for old in ("handmade", "conv", "gemm", "Some GPU", "Conv2d"):
        document = named(document, old, name)
    text = profile_page(document)
    page, before = Page(text), Page(profile_page(plain))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in before.elements]
    assert not any(attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)
    around = {tag for tag, text in page.texts if name in text}
    assert {"h1", "title", "td", "text"} <= around, "the name is missing somewhere"
    assert name in page.data["icicles"][0]["names"]


def headings(page: Page) -> list[str]:
    """The titles of the sections."""
    return [text for tag, text in page.texts if tag == "h2"]


def test_a_profile_of_which_hardly_anything_is_known_by_layer_shows_its_kernels() -> None:
    document = unattributed(fixed_document())
    text = profile_page(document)
    page = Page(text)
    assert "100.0 % of the kernel time could not be attributed to layers" in text and "--engine eager" in text
    assert headings(page)[0] == "Where the time goes by layer is not known" and len(headings(page)) == 4
    assert {kernel["name"] for kernel in document["kernels"]} < set(page.table("kernel"))
    assert "bound by arithmetic" not in "".join(headings(page)) and "of it in" not in text
    assert "kernels are shown by name" not in profile_page(fixed_document())
    assert "--engine eager" not in profile_page({**document, "engine": "eager"})


def test_layers_of_which_nothing_is_known_are_not_compared() -> None:
    document = fixed_comparison()
    compared = headings(Page(profile_page(document)))
    text = profile_page({**document, "b": unattributed(document["b"])})
    assert "b: With the graph engine 100.0 %" in text and "a: With the" not in text
    assert any("layers differ" in title for title in compared) and "layers differ" not in text
    assert {"a: wgrad takes 20 % of the step", "b: wgrad takes 28 % of the step"} <= set(headings(Page(text)))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("void at::native::(anonymous namespace)::pool<float>(float const*, int)", "pool<float>"),
        ("void at::native::unary<4, at::native::f(int)::{lambda()#1}>(int, char*)", "unary<4, f(int)::{lambda()#1}>"),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD (Device -> Device)"),
        ("aten::conv2d", "aten::conv2d"),
        ("(odd)", "(odd)"),
    ],
)
def test_a_kernel_is_called_by_what_tells_it_apart(name: str, label: str) -> None:
    assert kernel_label(name) == label
    page = Page(profile_page(named(fixed_document(), "gemm", name)))
    data = page.data["icicles"][0]
    assert data["labels"][data["names"].index(name)] == label
    assert label in page.table("kernel") and name in {a.get("title") for tag, a in page.elements if tag == "span"}


def test_small_figures_keep_their_digits() -> None:
    assert [milliseconds(value) for value in (0.0, 0.00004, 0.0061, 0.0123, 0.5, 12.34, 4321.0)] == [
        *("0.000", "0.0000", "0.0061", "0.012", "0.50", "12.3", "4,321")
    ]
    assert [number(value) for value in (0.0, 6.14e-05, 0.000235, 12.3, 1234.5)] == [
        *("0", "0.0000614", "0.000235", "12.3", "1,234")
    ]


def test_the_page_loads_nothing() -> None:
    page = Page(profile_page(fixed_document()))
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and policies[0] and policies[0].startswith("default-src 'none'")
    assert not any(key in attributes for _, attributes in page.elements for key in ("src", "style"))
    assert {a["href"] for _, a in page.elements if "href" in a} == {"data:,"}


def test_neighbours_are_folded_in_order_and_lose_no_time() -> None:
    def box(name: str, ms: float, bound: str = "memory") -> Box:
        return Box(name, ms, bound, [name])

    boxes = [box("a", 5), box("b", 0.4), box("c", 0.4), box("d", 0.4), box("e", 0.1), box("f", 9), box("g", 0.2)]
    folded = fold([*boxes, box("idle", 0.1, "idle")], 1.0)
    assert [each.name for each in folded] == ["a", "3 others", "e", "f", "g", "idle"]
    assert sum(each.ms for each in folded) == pytest.approx(15.6)
    assert folded[1].bound == "memory" and folded[1].tip == "3 others: 1.20 ms\nb … d"
    assert fold([box("a", 0.1), box("b", 0.1, "launches")], 1.0)[0].bound == "plain"
    assert fold(boxes, 0.0) == boxes


def test_a_large_network_makes_a_page_that_opens() -> None:
    document = large_document()
    text = profile_page(document)
    page = Page(text)
    assert len(text.encode()) < 5_000_000
    layers = sorted(document["layers"], key=lambda layer: -layer["total_ms"])
    rows = page.table("layer")
    assert len(rows) == 1 + MOST_ROWS
    assert sum(float(row[1][1] or 0) for name, row in rows.items() if name) == pytest.approx(
        sum(layer["total_ms"] for layer in layers[:MOST_ROWS])
    ), "not the largest"
    rest = sum(layer["total_ms"] for layer in layers[MOST_ROWS:])
    assert f"the others take {rest:,.0f} ms together" in text
    boxes = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "box"]
    assert 100 < len(boxes) < 2500
    bars = [a for tag, a in page.elements if tag == "rect" and (a.get("class") or "").startswith("bar")]
    assert MOST_BARS <= len(bars) <= 3 * MOST_BARS
    root = page.data["icicles"][0]["tree"]
    assert sum(node[1] for node in root[4]) == pytest.approx(root[1], rel=1e-4)


def test_boxes_lie_inside_the_box_above_them() -> None:
    page = Page(profile_page(fixed_document()))
    boxes = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "box"]
    spans: dict[int, list[tuple[float, float]]] = {}
    for box in boxes:
        start, width = (float((box[key] or "").rstrip("%")) for key in ("x", "width"))
        spans.setdefault(int(box["y"] or 0), []).append((start, start + width))
    assert len(spans) == 4
    levels = [spans[y] for y in sorted(spans)]
    assert levels[0] == [(0.0, 100.0)]
    for above, row in pairwise(levels):
        assert all(any(a - 0.02 <= start and end <= b + 0.02 for a, b in above) for start, end in row)
        assert all(end <= start + 0.02 for (_, end), (start, _) in pairwise(row)), "boxes overlap"


def test_a_layer_at_a_ceiling_lies_on_its_line() -> None:
    """Each of three layers needs the whole time that it takes: one point is on the slope, two are on the flat."""
    document = fixed_document()
    conv = next(layer for layer in document["layers"] if layer["name"] == "conv")
    peak, rate = document["roofline"]["tflops"], document["roofline"]["gb_per_s"]
    document["layers"] = []
    for intensity in (10.0, 200.0, 2000.0):  # FLOP a byte; the ridge is at 100
        flops = intensity * 1e9
        ms = max(flops / peak / 1e9, 1e9 / rate / 1e6)
        figures = {"flops": flops, "bytes": 1e9, "forward_ms": ms, "backward_ms": 0.0, "tflops": flops / ms / 1e9}
        document["layers"].append({**conv, **figures, "name": f"at {intensity:g}", "share": 0.1})
    picture = Page(str(roofline_plot(document)))
    (line,) = [a["d"] for tag, a in picture.elements if a.get("class") == "ceiling"]
    x0, y0, x1, y1, _ = (float(number) for number in re.findall(r"[\d.]+", line or ""))
    points = [(float(a["cx"] or 0), float(a["cy"] or 0)) for tag, a in picture.elements if tag == "circle"]
    (slope_x, slope_y), *flat = sorted(points)
    assert slope_y == pytest.approx(y0 + (slope_x - x0) / (x1 - x0) * (y1 - y0), abs=0.3)
    assert [y for _, y in flat] == pytest.approx([y1, y1], abs=0.1)
    decade = flat[1][0] - flat[0][0]
    assert x1 - slope_x == pytest.approx(decade, abs=0.2), "from 10 to the ridge is a decade, as from 200 to 2,000"
    names = [text for tag, text in picture.texts if tag == "text"]
    assert {"at 10", "at 200", "at 2000", "matrix product 100 TFLOP/s", "copy 1,000 GB/s"} <= set(names)


def test_differences_are_drawn_with_their_intervals() -> None:
    items = [
        {"name": f"layer{i}", "difference_ms": float(i - 40), "ci95": [i - 41.5, i - 38.5], "ratio": 1.0}
        for i in range(80)
    ]
    picture = Page(str(difference_bars(items)))
    bars = [a for tag, a in picture.elements if tag == "rect" and (a.get("class") or "").startswith("bar")]
    assert len(bars) == MOST_DIFFERENCES, "the largest are shown"
    drawn = {a["class"] for a in bars}
    assert drawn == {"bar s0", "bar s1"}, "those whose interval holds zero are among the smallest"
    few = Page(str(difference_bars(items[37:43])))
    kinds = [a["class"] for tag, a in few.elements if tag == "rect" and (a.get("class") or "").startswith("bar")]
    assert kinds == ["bar s0", "bar s0", "bar unclear s0", "bar unclear s0", "bar unclear s1", "bar s1"]
    lines = [a for tag, a in few.elements if a.get("class") == "interval"]
    spans = [[float((a[key] or "").rstrip("%")) for key in ("x1", "x2")] for a in lines]
    assert all(end - start == pytest.approx(300 / 8, abs=0.1) for start, end in spans) and len(spans) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"kind": "WinogradConv2d", "flops": 10**12}, "fewer multiplications than are counted"),
        ({"kind": "Conv2d", "flops": 10**12}, "a ceiling measured while the machine does other work"),
        ({"kind": "GELU", "bytes": 10**12}, "stay in a cache"),
    ],
)
def test_more_than_the_roofline_is_explained(changes: dict[str, Any], words: str) -> None:
    document = copy.deepcopy(fixed_document())
    conv = next(layer for layer in document["layers"] if layer["name"] == "conv")
    conv |= {**changes, "roofline_share": 1.3 if changes else 1.0}
    assert words in above_roofline(document) and bool(above_roofline(document)) == bool(changes)
    assert ("Above 100 % of the roofline" in profile_page(document)) == bool(changes)
