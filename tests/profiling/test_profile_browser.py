"""The page of a profile in headless Chromium: it zooms, tells, is searched, sorts, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from profiling_helpers import fixed_comparison, fixed_document, large_document, named

from fastcifar.cli.display.profile_page import profile_page

DRIVER = """
const result = {};
const boxes = () => [...document.querySelectorAll("svg.icicle svg.box")];
const labels = () => boxes().map((box) => box.querySelector("text")?.textContent ?? "");
const box = (label, row) => boxes().find((each) =>
  each.querySelector("text")?.textContent === label && each.getAttribute("y") === String(27 * row));
const click = (target) => target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const type = (field, text) => { field.value = text; field.dispatchEvent(new Event("input", { bubbles: true })); };
const rowsOf = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const tables = () => [...document.querySelectorAll("table")];
const layers = () => tables().find((each) => each.tHead.textContent.includes("backward"));
%s
result.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
const out = document.createElement("pre");
out.id = "result";
out.textContent = JSON.stringify(result);
document.body.append(out);
"""


class Result(HTMLParser):
    """What the driver wrote into the page."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.inside = False
        self.text = ""
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or ("id", "result") in attrs

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"


def browse(folder: Path, text: str, actions: str) -> dict[str, Any]:
    """Open the page in headless Chromium, let a script act on it, and return its `result`; the console is empty."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    script = DRIVER % actions
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    file = folder / "driven.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,2000", "--enable-logging=stderr"]
    profile = f"--user-data-dir={folder / 'chromium'}"
    command = [chromium, *options, profile, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ":CONSOLE" not in done.stderr, done.stderr
    found = Result(done.stdout)
    assert found.text, "the driver did not end: " + done.stderr[-2000:]
    result: dict[str, Any] = json.loads(found.text)
    assert result["requests"] == [], "the page loads something"
    return result


@pytest.mark.slow
def test_the_icicle_zooms_tells_and_is_searched(tmp_path: Path) -> None:
    document = fixed_document()
    document = named(document, "winograd", "<b>winograd</b>")
    actions = """
      result.before = labels();
      const conv = box("conv", 2);
      result.widthBefore = parseFloat(conv.getAttribute("width"));
      conv.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      result.tip = document.getElementById("tip").textContent;
      click(conv);
      result.zoomed = labels();
      result.width = parseFloat(box("conv", 2).getAttribute("width"));
      result.above = boxes().filter((each) => each.classList.contains("above")).length;
      document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
      result.after = labels();
      type(document.querySelector(".tools input"), "WINOGRAD");
      result.found = document.querySelector(".tools output").textContent;
      result.hits = boxes().filter((each) => each.classList.contains("hit")).map((each) => each.textContent);
      type(document.querySelector(".tools input"), "conv");
      result.conv = document.querySelector(".tools output").textContent;
      type(document.querySelector(".tools input"), "no such thing");
      result.nothing = document.querySelector(".tools output").textContent;
      result.markup = document.querySelectorAll("svg b").length;
    """
    result = browse(tmp_path, profile_page(document), actions)
    whole = document["kernel_ms"] + document["idle_ms"]
    conv = next(layer for layer in document["layers"] if layer["name"] == "conv")
    assert {"step", "forward", "backward", "conv", "act"} <= set(result["before"]) == set(result["after"])
    assert result["widthBefore"] == pytest.approx(100 * conv["forward_ms"] / whole, rel=1e-3)
    assert result["tip"].startswith("conv: ") and "Conv2d, output 8×32×32" in result["tip"]
    assert all(words in result["tip"] for words in ("of the step", "± ", "GFLOP", " MB", "bound by", "of the roofline"))
    assert result["width"] == pytest.approx(100) and result["above"] == 2
    assert "backward" not in result["zoomed"] and {"step", "forward", "<b>winograd</b>"} <= set(result["zoomed"])
    winograd = sum(item["ms"] for item in document["items"] if "winograd" in item["kernel"])
    assert result["found"] == f"1 match: {winograd:.3f} ms, {100 * winograd / whole:.1f} % of the step"
    assert len(result["hits"]) == 1 and "<b>winograd</b>" in result["hits"][0] and result["markup"] == 0
    both = conv["total_ms"]  # its kernels lie inside, and are not counted twice
    assert result["conv"] == f"3 matches: {both:.3f} ms, {100 * both / whole:.1f} % of the step"
    assert result["nothing"] == "0 matches: 0.000 ms, 0.0 % of the step"


@pytest.mark.slow
def test_the_tables_sort(tmp_path: Path) -> None:
    actions = """
      result.network = rowsOf(layers());
      const heading = (name) => [...layers().tHead.rows[0].cells].find((each) => each.textContent.startsWith(name));
      click(heading("ms").querySelector("button"));
      result.largest = rowsOf(layers());
      click(heading("layer").querySelector("button"));
      result.names = rowsOf(layers());
    """
    document = fixed_document()
    result = browse(tmp_path, profile_page(document), actions)
    layers = document["layers"]
    assert result["network"] == [layer["name"] for layer in layers]
    assert result["largest"] == [layer["name"] for layer in sorted(layers, key=lambda layer: -layer["total_ms"])]
    assert result["names"] == sorted(result["network"])


@pytest.mark.slow
def test_a_large_page_opens_at_once_and_what_is_folded_opens(tmp_path: Path) -> None:
    actions = """
      result.ms = performance.now();
      const folded = () => boxes().filter((each) => /^\\d+ others:/.test(each.querySelector("title").textContent));
      result.folded = folded().length;
      result.boxes = boxes().length;
      click(folded()[0]);
      result.opened = boxes().map((each) => each.querySelector("title").textContent.split(":")[0]);
      result.after = boxes().length;
    """
    result = browse(tmp_path, profile_page(large_document()), actions)
    assert result["ms"] < 2000, "milliseconds from the start to the end of the page's script"
    assert result["folded"] > 50 and result["boxes"] < 2500 and result["after"] < 2500
    assert sum(name.startswith("stage") for name in result["opened"]) >= 2, "the layers inside are shown"


@pytest.mark.slow
def test_two_profiles_have_an_icicle_each_in_one_scale(tmp_path: Path) -> None:
    actions = """
      const pictures = [...document.querySelectorAll("svg.icicle")];
      const widths = (picture) => parseFloat(picture.querySelector("svg.box").getAttribute("width"));
      result.widths = pictures.map(widths);
      click(pictures[0].querySelectorAll("svg.box")[1]);
      result.boxes = pictures.map((picture) => picture.querySelectorAll(".above").length);
    """
    document = fixed_comparison()
    a, b = (document[side]["kernel_ms"] + document[side]["idle_ms"] for side in ("a", "b"))
    result = browse(tmp_path, profile_page(document), actions)
    assert result["widths"] == pytest.approx([100 * a / b, 100], rel=1e-4)
    assert result["boxes"] == [1, 0], "one zooms, the other stays"
