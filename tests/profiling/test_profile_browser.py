"""The page of a profile in headless Chromium: it zooms, tells, is searched, sorts, and loads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, needs_chromium
from profiling_helpers import fixed_comparison, fixed_document, large_document, named

from fastcifar.cli.display.profile_page import profile_page

pytestmark = [needs_chromium, pytest.mark.slow]

# In the page: its boxes, with label and row (0 the step, 3 the kernels), and the rows of the table of layers.
TOOLS = """
  var boxes = () => [...document.querySelectorAll("svg.icicle svg.box")];
  var label = (box) => box.querySelector("text")?.textContent ?? "";
  var mark = (name, row) => boxes().find((box) => label(box) === name && box.getAttribute("y") === `${27 * row}`)
    .setAttribute("id", `${name}-${row}`);
  var layers = () => [...document.querySelectorAll("table")].find((t) => t.tHead.textContent.includes("backward"));
  var names = () => [...layers().tBodies[0].rows].map((row) => row.cells[0].textContent);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def show(browser: Browser, folder: Path, document: dict[str, Any], **window: Any) -> float:
    """Open the page of a document; returns the seconds that it took."""
    file = folder / "page.html"
    file.write_text(profile_page(document), "utf-8")
    seconds = browser.open(file, **window)
    browser.ask(TOOLS)
    return seconds


def labels(browser: Browser) -> list[str]:
    """The labels of the boxes that have one."""
    found: list[str] = browser.ask("boxes().map(label).filter((text) => text)")
    return found


def search(browser: Browser, words: str) -> str:
    """Type into the search of the icicle, and return what stands beside it."""
    browser.ask("document.querySelector('.tools input').value = ''")
    browser.click(".tools input")
    browser.call("Input.insertText", text=words)
    answer: str = browser.ask("document.querySelector('.tools output').textContent")
    return answer


def test_the_icicle_zooms_tells_and_is_searched(browser: Browser, tmp_path: Path) -> None:
    document = named(named(fixed_document(), "winograd", "<b>winograd</b>"), "gemm", "conv_gemm")
    show(browser, tmp_path, document)
    whole = document["kernel_ms"] + document["idle_ms"]
    conv = next(layer for layer in document["layers"] if layer["name"] == "conv")
    before = labels(browser)
    assert {"step", "forward", "backward", "conv", "act"} <= set(before)

    browser.ask("mark('conv', 2)")
    width = browser.ask("parseFloat(document.querySelector('#conv-2').getAttribute('width'))")
    assert width == pytest.approx(100 * conv["forward_ms"] / whole, rel=1e-3)
    browser.hover("#conv-2")
    tip = browser.ask("document.querySelector('#tip').textContent")
    assert tip.startswith("conv: ") and "Conv2d, output 8×32×32" in tip
    assert all(words in tip for words in ("of the step", "± ", "GFLOP", " MB", "bound by", "of the roofline"))

    browser.click("#conv-2")
    browser.ask("mark('conv', 2)")
    assert browser.ask("document.querySelector('#conv-2').getAttribute('width')") == "100%"
    assert browser.ask("document.querySelectorAll('.icicle .above').length") == 2
    zoomed = labels(browser)
    assert "backward" not in zoomed and {"step", "forward", "<b>winograd</b>"} <= set(zoomed)
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Escape", code="Escape", windowsVirtualKeyCode=27)
    assert labels(browser) == before

    winograd = sum(item["ms"] for item in document["items"] if "winograd" in item["kernel"])
    assert search(browser, "WINOGRAD") == f"1 match: {winograd:.3f} ms, {100 * winograd / whole:.1f} % of the step"
    hits = browser.ask("boxes().filter((box) => box.classList.contains('hit')).map((box) => box.textContent)")
    assert len(hits) == 1 and "<b>winograd</b>" in hits[0]
    both = conv["total_ms"]  # its kernels lie inside, and are not counted twice
    assert search(browser, "conv") == f"3 matches: {both:.3f} ms, {100 * both / whole:.1f} % of the step"
    assert search(browser, "no such thing") == "0 matches: 0.000 ms, 0.0 % of the step"
    assert browser.ask("document.querySelectorAll('svg b').length") == 0
    assert browser.errors == [] and browser.requests == []


def test_the_icicle_is_used_from_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, fixed_document())
    browser.ask("mark('backward', 1); document.querySelector('#backward-1').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert "forward" not in labels(browser) and "backward" in labels(browser)
    assert browser.ask("document.activeElement.classList.contains('box')"), "the focus is lost"


def test_the_table_of_layers_sorts(browser: Browser, tmp_path: Path) -> None:
    document = fixed_document()
    show(browser, tmp_path, document)
    layers = document["layers"]
    assert browser.ask("names()") == [layer["name"] for layer in layers]
    browser.ask("layers().tHead.rows[0].cells[1].querySelector('button').setAttribute('id', 'by-ms')")
    browser.click("#by-ms")
    assert browser.ask("names()") == [layer["name"] for layer in sorted(layers, key=lambda layer: -layer["total_ms"])]
    browser.click("#by-ms")
    assert browser.ask("names()") == [layer["name"] for layer in sorted(layers, key=lambda layer: layer["total_ms"])]


def test_a_large_page_opens_at_once_and_what_is_folded_opens(browser: Browser, tmp_path: Path) -> None:
    document = large_document()
    assert min(show(browser, tmp_path, document) for _ in range(3)) < 2  # the machine may have other work
    static = re.findall(r'class="box" x="([\d.e-]+)%" y="(\d+)"', profile_page(document))
    places = browser.ask("boxes().map((box) => [parseFloat(box.getAttribute('x')), Number(box.getAttribute('y'))])")
    assert [y for _, y in places] == [int(y) for _, y in static], "JavaScript folds otherwise than Python"
    assert [x for x, _ in places] == pytest.approx([float(x) for x, _ in static], abs=0.05)
    folded = "boxes().filter((box) => / others:/.test(box.querySelector('title').textContent))"
    assert browser.ask(f"{folded}.length") > 50 and browser.ask("boxes().length") < 2500
    names: list[str] = browser.ask(
        f"{folded}[0].dispatchEvent(new MouseEvent('click'));"
        "boxes().map((box) => box.querySelector('title').textContent.split(':')[0])"
    )
    assert sum(name.startswith("stage") for name in names) >= 2, "the layers inside are shown"
    assert len(names) < 2500 and browser.errors == []


def test_two_profiles_have_an_icicle_each_in_one_scale(browser: Browser, tmp_path: Path) -> None:
    document = fixed_comparison()
    show(browser, tmp_path, document)
    a, b = (document[side]["kernel_ms"] + document[side]["idle_ms"] for side in ("a", "b"))
    roots = "[...document.querySelectorAll('svg.icicle')].map((each) => each.firstChild)"
    assert browser.ask(f"{roots}.map((root) => parseFloat(root.getAttribute('width')))") == pytest.approx(
        [100 * a / b, 100], rel=1e-4
    )
    browser.ask("document.querySelectorAll('svg.icicle')[0].children[1].setAttribute('id', 'phase')")
    browser.click("#phase")
    above = "[...document.querySelectorAll('svg.icicle')].map((each) => each.querySelectorAll('.above').length)"
    assert browser.ask(above) == [1, 0], "one zooms, the other stays"


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_the_page_is_as_wide_as_its_window(browser: Browser, tmp_path: Path, width: int) -> None:
    for document in (fixed_document(), fixed_comparison()):
        show(browser, tmp_path, document, width=width)
        assert browser.ask("document.documentElement.scrollWidth") <= width
        # Letters of every chart, as the window shows them: 13 pixels that may shrink to nine.
        size = "[...document.querySelectorAll('svg.plot')].map((each) => each.getBoundingClientRect().width / 800)"
        assert all(13 * scale >= 9 for scale in browser.ask(size))
        box = browser.ask("boxes()[0].getBoundingClientRect().height")
        assert box == pytest.approx(26), "a box of the icicle has another height"
