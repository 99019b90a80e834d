"""The frame of every page: escaping, the content security policy, tables, plots, embedded data."""

from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import Markup
from page_checks import check_page

from fastcifar.cli.display.chart import Plot
from fastcifar.cli.display.html import Part, inline, legend, page, paragraphs, pictures, table, write_page
from fastcifar.errors import DataError

NASTY = "</script><script>alert(1)</script>\"'&<b>😀\u2028"


def test_whatever_comes_from_outside_is_text() -> None:
    plot = Plot(NASTY, (NASTY, [1.0, 2.0]), (NASTY, [3.0, 4.0]))
    plot.point(plot.group(0), (1.5, 3.5), NASTY)
    rows = Plot(NASTY, (NASTY, [1.0]), rows=[NASTY, NASTY * 3])
    body = table([NASTY], [[NASTY], [(NASTY, 1.0)]]) + legend([NASTY]) + paragraphs([NASTY])
    body += pictures([(NASTY, inline(plot.svg) + inline(rows.svg))])
    parsed = check_page(page(NASTY, NASTY, [Part(NASTY, body, NASTY)], {NASTY: [NASTY]}))
    assert parsed.all("b") == [], "no markup came of a name"
    for tag in ("title", "h1", "h2", "h3", "p", "th", "td", "li", "text"):
        assert NASTY in parsed.text(tag), f"the name stands in <{tag}>"
    assert parsed.all("svg")[0]["aria-label"] == NASTY
    assert parsed.document == {NASTY: [NASTY]}
    embedded = next(text for tag, text in parsed.texts if tag == "script")
    assert not set("<>&\u2028") & set(embedded), "nothing in the data can end its element"


def test_a_page_without_data_and_parts_is_whole() -> None:
    parsed = check_page(page("a", "b", []))
    assert parsed.text("title") == parsed.text("h1") == "a" and len(parsed.all("script")) == 1
    assert any(each.get("name") == "viewport" for each in parsed.all("meta"))


def test_the_name_of_a_file_may_hold_what_is_no_character(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, page("a\udcffb", "", [Part("t", Markup("<p>{}</p>").format("\udcff"))], {"a": "\udcff"}))
    parsed = check_page(path.read_text("utf-8"))
    assert parsed.text("h1") == "a\\udcffb"


def test_a_table_says_what_it_is_sorted_by() -> None:
    parsed = check_page(page("", "", [Part("", table(["a", "b"], [["x", ("1.5 s", 1.5)], ["y", ("", None)]]))]))
    assert [each.get("data-value") for each in parsed.all("td")] == [None, "1.5", None, ""]


def test_a_plot_places_its_marks_on_its_axes() -> None:
    plot = Plot("", ("x", [0.0, 10.0]), ("y", [0.0, 100.0]))
    plot.point(plot.group(0), (5.0, 50.0), "middle")
    left, top, right, bottom = plot.box
    mark = next(each for each in plot.svg.iter("path") if each.get("class") == "mark point")
    assert mark.get("d") == f"M{(left + right) / 2:.1f} {(top + bottom) / 2:.1f}h0"
    assert [each.text for each in plot.svg.iter("title")] == ["middle"]
    low, high, start, end = map(float, plot.svg.attrib["data-x"].split())
    assert (low, high, start, end) == (plot.x.low, plot.x.high, left, right)
    assert len(plot.x.ticks()) > 3 and {"0", "10"} < {each.text for each in plot.svg.iter("text")}


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_page(tmp_path / "missing" / "page.html", "")
