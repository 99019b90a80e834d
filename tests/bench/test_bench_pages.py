"""`--html` of bench, report and search: real command lines on real results files, and the pages in a browser."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench_helpers import FIXTURES, SMALL, benched, header, run, write
from browser import Browser, needs_chromium
from conftest import Call
from page_checks import Parsed, check_page
from test_search import failed, prepared, simulate

from fastcifar import stats
from fastcifar.bench.report import courses, summarize
from fastcifar.cli.display.search_page import search_page

NASTY = "<script>alert(1)</script>\"'&😀"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two recipes of 40 runs each, the second more accurate and slower."""
    return write(tmp_path / "r.jsonl", header("a", "b"), benched(0.004))


@pytest.fixture
def paged(call: Call, tmp_path: Path) -> Callable[..., Parsed]:
    """The page of `fastcifar report` with these arguments."""

    def report(*arguments: object) -> Parsed:
        done = call("report", *arguments, "--html", tmp_path / "page.html")
        assert done.code == 0, done.err
        return check_page((tmp_path / "page.html").read_text("utf-8"))

    return report


def test_the_page_says_what_the_terminal_says(paged: Callable[..., Parsed], results: Path, call: Call) -> None:
    found = call("report", results, "--json").document
    (compared,) = found["comparisons"]
    parsed = paged(results)
    assert parsed.text("h1") == parsed.text("title")[: len(compared["verdict"])] == compared["verdict"]
    assert {key: value for key, value in found.items() if key != "runs"} == parsed.document
    values = {each["data-value"] for each in parsed.all("td") if each.get("data-value")}
    for one in found["recipes"]:
        assert {repr(one["accuracy"]["mean"]), repr(one["accuracy"]["std"]), repr(one["train_s"]["mean"])} < values
    for key in ("accuracy_difference", "accuracy_p", "time_ratio", "time_p"):
        assert repr(compared[key]) in values
    assert {repr(compared["accuracy_ci95"][0]), repr(compared["time_ci95"][0])} < values


def test_every_run_is_a_point_with_its_figures(paged: Callable[..., Parsed], results: Path) -> None:
    tips = [text for tag, text in paged(results, "--target", "93.5").texts if tag == "title"]
    for name, seed in (("a", 0), ("b", 39)):
        assert sum(tip.startswith(f"{name}, seed {seed}: ") for tip in tips) == 3, "runs, accuracies, drift"
    assert sum(bool(re.match(r"b − a, seed \d+: [+-]", tip)) for tip in tips) == 40
    assert "target: 93.5 %" in tips and "no difference" in tips


def test_differences_stand_at_their_values(paged: Callable[..., Parsed], results: Path, tmp_path: Path) -> None:
    paged(results)
    text = (tmp_path / "page.html").read_text("utf-8")
    found = re.findall(r'd="M([\d.]+) [\d.]+h0"><title>b − a(?:, seed \d+)?: ([+-][\d.]+) points', text)
    assert len(found) == 41, "every seed, and the mean"
    places, values = zip(*((float(place), float(value)) for place, value in found), strict=True)
    assert statistics.correlation(places, values) > 0.99999


def test_the_intervals_are_those_of_the_statistics() -> None:
    runs = benched(0.004)
    (found,) = courses(runs, ["a", "b"], 0.1)
    (compared,) = summarize(runs, ["a", "b"], None, margin=0.1).comparisons
    assert found.intervals[-1] == compared.accuracy_ci95
    assert len(found.intervals) == len(found.seeds) == 40
    assert found.differences[3] == next(
        b.accuracy - a.accuracy
        for a in runs
        for b in runs
        if (a.name, b.name, a.seed, b.seed) == ("a", "b", found.seeds[3], found.seeds[3])
        and a.accuracy is not None
        and b.accuracy is not None
    )
    assert found.clear_after is not None
    assert stats.verdict(found.intervals[found.clear_after - 1], 0.001) != "open"
    assert stats.verdict(found.intervals[found.clear_after - 2], 0.001) == "open"
    runs, names = benched(0.004, names=("a", "b", "c")), ["a", "b", "c"]
    several = courses(runs, names, 0.1)
    assert [each.b for each in several] == ["b", "c"]
    compared = summarize(runs, names, None, margin=0.1).comparisons
    assert [each.intervals[-1] for each in several] == [each.accuracy_ci95 for each in compared]


def test_where_until_clear_stops_is_said(paged: Callable[..., Parsed], results: Path, tmp_path: Path) -> None:
    (found,) = courses(benched(0.004), ["a", "b"], 0.1)
    for more in ((), ("--until-clear",)):
        parsed = paged(results, *more)
        assert f"b against a: clear after {found.clear_after} of 40 seeds, where --until-clear stops" in parsed.text(
            "h2"
        )
    open_ = write(tmp_path / "o.jsonl", header("a", "b"), benched(0.0, 6))
    assert "b against a: not clear after 6 seeds: --until-clear goes on" in paged(open_).text("h2")
    few = write(tmp_path / "f.jsonl", header("a", "b"), benched(0.004, 2))
    assert "No finite interval yet" in paged(few).visible


def test_several_recipes_are_told_apart_in_the_title(paged: Callable[..., Parsed], tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    runs = [
        run(name, seed, 0.94 + step + 0.0005 * ((7 * seed + i) % 5), at=4.0 * seed + i)
        for seed in range(10)
        for i, (name, step) in enumerate(zip(names, (0, 0.01, -0.01, 0), strict=True))
    ]
    parsed = paged(write(tmp_path / "r.jsonl", header(*names), runs))
    assert parsed.text("h1") == "Against a, more accurate: b; less accurate: c; no difference shown: d."
    assert "2 of 3 comparisons are clear: --until-clear goes on" in parsed.text("h2")
    assert "Ahead of a with the same seed: b in 10 of 10, c in 0 of 10, d in 4 of 10" in parsed.text("h2")
    settled = [one for one in runs if one.name != "d"]
    parsed = paged(write(tmp_path / "s.jsonl", header(*names[:3]), settled))
    assert re.search(r"All clear after \d of 10 seeds: there --until-clear stops", parsed.text("h2"))


def test_names_with_markup_are_text(paged: Callable[..., Parsed], tmp_path: Path) -> None:
    parsed = paged(write(tmp_path / "r.jsonl", header(NASTY, "b"), benched(0.004, 12, (NASTY, "b"))))
    for tag in ("title", "h1", "h2", "td", "li", "text"):
        assert NASTY in parsed.text(tag), tag


def test_one_run_failed_runs_and_a_search_have_a_page(paged: Callable[..., Parsed], tmp_path: Path) -> None:
    assert paged(write(tmp_path / "1.jsonl", header("a"), [run("a", 0, 0.94)])).text("h1") == "a: 94.00 % in 1 s"
    failed = write(tmp_path / "2.jsonl", header("a", "b"), [run("a", 0, None), run("b", 0, None)])
    assert paged(failed).text("h1") == "No run came to an end."
    part = write(tmp_path / "3.jsonl", header("a", "b"), [run("a", 0, None), run("b", 0, 0.5), run("b", 1, 0.5)])
    assert "Not drawn: 1 that diverged or failed (a, seed 0: diverged)." in paged(part).visible
    searched = paged(FIXTURES / "format1" / "search.jsonl")
    assert "At full length nothing can be ranked" in searched.text("h2") and "dropped" in searched.text("td")
    as_bench = paged(FIXTURES / "format1" / "search.jsonl", "--until-clear")
    assert "base at 0.25" in as_bench.text("td") and "slow at 0.5 of base at 0.5 in 5 of 12" in as_bench.text("h2")
    assert "10.00 %" in paged(FIXTURES / "format1" / "run").visible
    assert "tiny" in paged(FIXTURES / "format1" / "profile.json").text("h1")


def test_what_came_to_nothing_in_a_search_is_said(tmp_path: Path) -> None:
    search = prepared(tmp_path, 3000)
    gone = {"bad": None, "slow": "Out of memory on a small machine, in its first step of all"}
    runs = [
        dataclasses.replace(failed(run), error=gone[run.name]) if run.name in gone else run for run in simulate(search)
    ]
    parsed = check_page(search_page(search, runs, "a CPU", {}))
    cells = [text for tag, text in parsed.texts if tag == "td"]
    assert "diverged" in cells and any(text.startswith("Out of memory") and len(text) <= 40 for text in cells)


def test_a_page_says_what_one_run_is_and_folds_long_lists(paged: Callable[..., Parsed], tmp_path: Path) -> None:
    one = paged(write(tmp_path / "1.jsonl", header("a"), [run("a", 7, 0.94)]))
    assert "1 run of a, seed 7; on" in one.text("p") and one.text("h2").startswith("In figures"), "no title twice"
    names = tuple(f"r{i:02}" for i in range(50))
    many = paged(write(tmp_path / "2.jsonl", header(*names), benched(0.0001, 3, names)))
    assert f"{49 - 12} more" in many.text("summary") and "The first 40 of 50" in many.visible
    rows = [text for tag, text in many.texts if tag == "text"]
    assert "r39" in rows and "r40" not in rows and "r49" in many.text("td")


@pytest.mark.parametrize(("seconds", "unit"), [(40, "seconds"), (600, "minutes"), (20_000, "hours"), (10**6, "days")])
def test_drift_is_drawn_in_a_unit_that_fits(
    paged: Callable[..., Parsed], tmp_path: Path, seconds: float, unit: str
) -> None:
    runs = [run("a", seed, 0.94, at=1.8e9 + seed * seconds / 9) for seed in range(10)]
    texts = [text for tag, text in paged(write(tmp_path / "r.jsonl", header("a"), runs)).texts if tag == "text"]
    assert any(text.startswith(f"{unit} since 2027-01-15") for text in texts)


def test_runs_of_several_machines_keep_their_times_apart(paged: Callable[..., Parsed], tmp_path: Path) -> None:
    bench = FIXTURES / "format1" / "bench.jsonl"
    other = tmp_path / "other.jsonl"
    other.write_text(
        bench.read_text().replace("AMD EPYC, 1 thread", "Another, 1 thread").replace('"seed": ', '"seed": 1')
    )
    parsed = paged(bench, other)
    assert "Another, 1 thread" in parsed.text("td") and "AMD EPYC, 1 thread" in parsed.text("td")


def many(path: Path) -> Path:
    """A results file of 10,000 runs."""
    return write(path, header("a", "b"), benched(0.002, 5000))


@pytest.mark.slow
def test_a_page_of_thousands_of_runs_is_small(paged: Callable[..., Parsed], tmp_path: Path) -> None:
    parsed = paged(many(tmp_path / "many.jsonl"))
    assert (tmp_path / "page.html").stat().st_size < 5_000_000
    assert "Of 10,000 every 5th is drawn" in parsed.visible
    bars = [text for tag, text in parsed.texts if tag == "title" and " runs of " in text]
    assert sum(int(text.split()[0]) for text in bars) == 10_000, "the bars count every run"


@pytest.mark.parametrize("place", ["missing/page.html", ".", "r.jsonl"])
def test_a_page_that_cannot_be_written_stops_before_any_run(call: Call, tmp_path: Path, place: str) -> None:
    out = tmp_path / "r.jsonl"
    done = call("bench", "tiny", "--out", out, "--html", tmp_path / place, "--runs", "1", *SMALL)
    assert done.code == (2 if place == "r.jsonl" else 3), done.err
    assert not out.exists()
    (tmp_path / "c.toml").write_text("[a]\ntraining.epochs = 2\n")
    done = call(
        "search", "tiny", tmp_path / "c.toml", "--out", out, "--html", tmp_path / place, "--minutes", "0.02", *SMALL
    )
    assert done.code == (2 if place == "r.jsonl" else 3) and not out.exists()


def test_report_does_not_write_over_what_it_reads(call: Call, results: Path) -> None:
    before = results.read_bytes()
    for command in (("report", results), ("bench", "--report", results)):
        done = call(*command, "--html", results)
        assert done.code == 2 and "would replace" in done.err
    assert results.read_bytes() == before


def test_bench_writes_a_page(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    done = call("bench", "tiny", "--runs", "2", "--out", out, "--html", tmp_path / "p.html", "--json", *SMALL)
    assert done.code == 0, done.err
    parsed = check_page((tmp_path / "p.html").read_text("utf-8"))
    assert parsed.document["recipes"] == json.loads(done.out)["recipes"]
    assert len(parsed.all("svg")) >= 2 and "2 runs of tiny, seeds 0 to 1" in parsed.text("p")


def test_a_search_shows_who_went_on(tmp_path: Path) -> None:
    search = prepared(tmp_path, 3000)
    runs = simulate(search)
    parsed = check_page(search_page(search, runs, "a CPU", {"remark": "r", "runs": []}))
    assert parsed.text("h1").startswith("good takes 0.700") and "Candidates by the length of their runs: 4 at 0.25" in (
        parsed.text("h2")
    )
    assert parsed.document == {"remark": "r"}
    then = [text for tag, text in parsed.texts if tag == "td" and text in ("went on", "dropped")]
    assert then == ["went on"] * 3 + ["dropped"] * 2 + ["went on"] * 2 + ["dropped"]
    tips = [text for tag, text in parsed.texts if tag == "title"]
    assert any(tip.startswith("at 50 % of the epochs, good: ") and "relative cost 0.700" in tip for tip in tips)
    nothing = check_page(search_page(search, [], "a CPU", {}))
    assert "The time was too short" in nothing.text("h1")


def test_a_search_writes_a_page(call: Call, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[a]\noptimizer.filters.lr = 0.2\n")
    done = call(
        *("search", "tiny", tmp_path / "c.toml", "--minutes", "0.05", "--out", tmp_path / "s.jsonl"),
        *("--html", tmp_path / "p.html", "--json", *SMALL),
    )
    assert done.code == 0, done.err
    parsed = check_page((tmp_path / "p.html").read_text("utf-8"))
    assert parsed.document["rungs"] == json.loads(done.out)["rungs"]
    assert parsed.text("h1") == json.loads(done.out)["remark"]
    again = call("report", tmp_path / "s.jsonl", "--html", tmp_path / "again.html", "--json")
    assert again.out == done.out and (tmp_path / "again.html").read_bytes() == (tmp_path / "p.html").read_bytes()


# --- In a browser ---

ZOOM = "document.querySelector('section:nth-of-type(2) .zoom').getAttribute('transform')"
TICKS = "[...document.querySelectorAll('section:nth-of-type(2) svg.plot .ticks text')].map((t) => t.textContent)"


def matrix(browser: Browser) -> list[float]:
    """How the second section's plot is enlarged and moved: across, down, to the right, to the bottom."""
    a, _, _, d, e, f = (float(number) for number in re.findall(r"[-\d.e]+", browser.ask(ZOOM).partition("(")[2]))
    return [a, d, e, f]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_the_page_opens_without_complaint(
    browser: Browser, paged: Callable[..., Parsed], results: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    paged(results)
    browser.open(tmp_path / "page.html", width, dark=dark)
    assert browser.errors == [] and browser.requests == []
    assert browser.ask("document.documentElement.scrollWidth") <= width, "the page does not scroll sideways"
    lightness = browser.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (lightness < 60) == dark


@needs_chromium
@pytest.mark.slow
def test_tables_sort_and_series_hide(
    browser: Browser, paged: Callable[..., Parsed], results: Path, tmp_path: Path
) -> None:
    paged(results)
    browser.open(tmp_path / "page.html")
    names = "[...document.querySelectorAll('table')[0].tBodies[0].rows].map((row) => row.cells[0].textContent)"
    assert browser.ask(names) == ["a", "b"]
    heading = "table.sortable th:nth-child(3) button"
    browser.click(heading)
    assert browser.ask(names) == ["b", "a"], "the most accurate first"
    browser.click(heading)
    assert browser.ask(names) == ["a", "b"]
    shown = "document.querySelectorAll('section:nth-of-type(2) .zoom > g:not(.hidden) .point').length"
    assert browser.ask(shown) == 80
    browser.click(".legend li[data-series='1'] button")
    assert browser.ask(shown) == 40
    browser.click(".legend li[data-series='1'] button")
    assert browser.ask(shown) == 80 and browser.errors == []


@needs_chromium
@pytest.mark.slow
def test_a_plot_tells_and_zooms(browser: Browser, paged: Callable[..., Parsed], results: Path, tmp_path: Path) -> None:
    paged(results)
    browser.open(tmp_path / "page.html")
    browser.hover("section:nth-of-type(2) .mean")
    assert browser.ask("document.getElementById('tip').textContent").startswith("a, mean of 40 runs: ")
    assert not browser.ask("document.getElementById('tip').classList.contains('hidden')")

    left, top, right, bottom = browser.place("section:nth-of-type(2) svg.plot")
    before = browser.ask(TICKS)
    middle = ((left + right) / 2, (top + bottom) / 2)
    browser.drag(middle, (middle[0] + (right - left) / 4, middle[1] + (bottom - top) / 4))
    across = matrix(browser)[0]
    inner = (640 - 84 - 16) / 640
    assert math.isclose(across, 4 * inner, rel_tol=0.05), "a quarter of the picture fills the plot"
    assert browser.ask(TICKS) != before
    browser.click("section:nth-of-type(2) button.reset")
    assert browser.ask(TICKS) == before and browser.errors == []


@needs_chromium
@pytest.mark.slow
def test_thousands_of_runs_open_within_two_seconds(
    browser: Browser, paged: Callable[..., Parsed], tmp_path: Path
) -> None:
    paged(many(tmp_path / "many.jsonl"))
    assert browser.open(tmp_path / "page.html") < 2 and browser.errors == []


@needs_chromium
@pytest.mark.slow
def test_a_name_that_is_a_script_does_not_run(browser: Browser, paged: Callable[..., Parsed], tmp_path: Path) -> None:
    name = "<img src=x onerror='document.title=1'><script>document.title = 2</script>"
    paged(write(tmp_path / "r.jsonl", header(name, "b"), benched(0.004, 12, (name, "b"))))
    browser.open(tmp_path / "page.html")
    assert name in browser.ask("document.title") and browser.errors == [] and browser.requests == []
    browser.hover("section:nth-of-type(2) .mean")
    assert browser.ask("document.getElementById('tip').textContent").startswith(name)


def press(browser: Browser, key: str) -> None:
    """Press and release a key."""
    text = {"text": key} if len(key) == 1 else {}
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


@needs_chromium
@pytest.mark.slow
def test_a_plot_zooms_by_buttons_and_by_keys(
    browser: Browser, paged: Callable[..., Parsed], results: Path, tmp_path: Path
) -> None:
    paged(results)
    browser.open(tmp_path / "page.html", 400)
    before = browser.ask(TICKS)
    plus, minus = (f"section:nth-of-type(2) button[aria-label='Zoom {way}']" for way in ("in", "out"))
    browser.click(plus)
    browser.click(plus)
    assert matrix(browser)[:2] == pytest.approx([2.25, 2.25]) and browser.ask(TICKS) != before
    browser.click(minus)
    assert matrix(browser)[:2] == pytest.approx([1.5, 1.5])
    browser.click(minus)
    browser.click(minus)
    assert matrix(browser) == pytest.approx([1, 1, 0, 0], abs=1e-6) and browser.ask(TICKS) == before
    shown = "getComputedStyle(document.querySelector('section:nth-of-type(2) button.reset')).display !== 'none'"
    assert not browser.ask(shown), "the whole picture is shown"

    browser.ask("document.querySelector('section:nth-of-type(2) svg.plot').focus()")
    browser.ask("var taken; addEventListener('keydown', (event) => { taken = event.defaultPrevented; })")
    press(browser, "ArrowLeft")
    assert not browser.ask("taken"), "of a whole picture they do"
    press(browser, "+")
    middle = matrix(browser)
    press(browser, "ArrowRight")
    press(browser, "ArrowUp")
    moved = matrix(browser)
    assert moved[:2] == middle[:2] and moved[2] < middle[2] and moved[3] > middle[3], "a part to the right, and higher"
    for _ in range(20):
        press(browser, "ArrowLeft")
    left = float(browser.ask("document.querySelector('section:nth-of-type(2) svg.plot').dataset.x").split()[2])
    assert matrix(browser)[2] == pytest.approx(left * (1 - middle[0])), "no farther than the picture's end"
    assert browser.ask("taken") and browser.ask(shown), "the keys do not scroll the page"
    press(browser, "Escape")
    assert browser.ask(TICKS) == before and browser.errors == []


@needs_chromium
@pytest.mark.slow
def test_a_finger_moves_an_enlarged_plot_and_scrolls_the_page_otherwise(
    browser: Browser, paged: Callable[..., Parsed], results: Path, tmp_path: Path
) -> None:
    paged(results)
    browser.open(tmp_path / "page.html", 400)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)

    def drag(across: float, down: float) -> None:
        left, top, right, bottom = browser.place("section:nth-of-type(2) svg.plot")
        x, y = (left + right) / 2, (top + bottom) / 2
        for kind, places in (
            ("touchStart", [{"x": x, "y": y}]),
            ("touchMove", [{"x": x + across / 2, "y": y + down / 2}]),
            ("touchMove", [{"x": x + across, "y": y + down}]),
            ("touchEnd", []),
        ):
            browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=places)

    browser.click("section:nth-of-type(2) button[aria-label='Zoom in']")
    before = matrix(browser)
    drag(40, -30)
    after, scale = matrix(browser), 640 / (400 - 24)  # pixels of the picture for each of the window
    assert [after[2] - before[2], after[3] - before[3]] == pytest.approx([40 * scale, -30 * scale], abs=6)
    browser.click("section:nth-of-type(2) button.reset")
    browser.place("section:nth-of-type(2) svg.plot")
    scrolled = browser.ask("scrollY")
    drag(0, -120)
    deadline = time.monotonic() + 5
    while browser.ask("scrollY") <= scrolled and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.ask("scrollY") > scrolled and matrix(browser) == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert browser.errors == []
    browser.call("Emulation.setTouchEmulationEnabled", enabled=False)
