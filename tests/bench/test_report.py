"""What the report of a bench says: accuracies pooled, times by machine, sentences, tables, Markdown and the picture."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path

import pytest
from bench_helpers import FIXTURES, HERE, THERE, benched, header, run, write
from conftest import Call, Cli
from rich.console import Console

from fastcifar.bench.records import MAX_OTHER_LOAD
from fastcifar.bench.report import Report, summarize
from fastcifar.cli.display.bench import markdown, remarks, screen_report
from fastcifar.cli.display.svg import scatter

GOLDEN = Path(__file__).parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"


def drawn(report: Report, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, highlight=False, force_terminal=False)
    console.print(screen_report(report))
    assert isinstance(console.file, StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def test_the_report_says_what_differs() -> None:
    found = summarize(benched(0.004), ["a", "b"], 94.2)
    (compared,) = found.comparisons
    assert "b is more accurate than a" in compared.verdict and "times as long" in compared.verdict
    assert compared.accuracy_p is not None and compared.accuracy_p < 1e-6
    assert compared.time_ratio == pytest.approx(1.5, rel=0.02)
    assert found.missed == ["a"]
    assert found.recipes[0].p_target is not None and found.recipes[0].p_target > 0.99
    assert found.recipes[1].p_target is not None and found.recipes[1].p_target < 0.01
    alike = summarize(benched(0.0), ["a", "b"], None).comparisons[0].verdict
    assert "No difference in accuracy shown" in alike and "runs each" in alike


def test_until_clear_stops_where_it_is_clear() -> None:
    open_ = summarize(benched(0.004, 2), ["a", "b"], None, margin=0.1)
    assert not open_.clear and open_.comparisons[0].accuracy_ci95 is None
    clear = summarize(benched(0.004, 40), ["a", "b"], None, margin=0.1)
    assert clear.clear and clear.comparisons[0].sequential and clear.comparisons[0].accuracy_p is None
    three = summarize(benched(0.002, 12, ("a", "b", "c")), ["a", "b", "c"], None, margin=0.1)
    two = summarize(benched(0.002, 12, ("a", "b", "c")), ["a", "c"], None, margin=0.1)
    shared, alone = three.comparisons[1].accuracy_ci95, two.comparisons[0].accuracy_ci95
    assert shared and alone
    assert shared[1] - shared[0] > alone[1] - alone[0], "several comparisons share the level"


def test_outliers_and_drift_are_named() -> None:
    made = [run("a", seed, 0.94, 9.0 if seed == 7 else 1 + 0.02 * seed, at=seed) for seed in range(30)]
    found = summarize(made, ["a"], None)
    text = " ".join(remarks(found))
    assert "seed 7" in text and "longer" in text


def test_runs_of_each_length_stand_apart() -> None:
    lengths = [*benched(0.004, 5, fraction=0.25), *benched(0.004, 4)]
    found = summarize(lengths, ["a", "b", "c"], None)
    assert [(one.name, one.fraction, one.runs) for one in found.recipes] == [
        ("a", 0.25, 5),
        ("b", 0.25, 5),
        ("a", 1.0, 4),
        ("b", 1.0, 4),
    ]
    assert [(each.a, each.b, each.fraction, each.pairs) for each in found.comparisons] == [
        ("a", "b", 0.25, 5),
        ("a", "b", 1.0, 4),
    ]
    assert "b at 0.25" in found.comparisons[0].verdict and "0.25" not in found.comparisons[1].verdict


# ----------------------------------------------------------------------------------------------------- times by machine


def test_accuracy_is_pooled_and_times_are_not() -> None:
    here = [run("a", seed, 0.94 + 0.001 * seed, 10.0 + seed) for seed in range(3)]
    there = [run("a", seed, 0.94 + 0.001 * seed, 1.0 + seed, machine=THERE) for seed in range(3, 6)]
    (one,) = summarize([*here, *there], ["a"], None).recipes
    assert one.runs == 6 and one.accuracy and one.accuracy.mean == pytest.approx(0.9425)
    assert one.train_s is None, "never pooled"
    assert [(each.machine, each.runs, each.train_s and each.train_s.mean) for each in one.times] == [
        (HERE, 3, 11.0),
        (THERE, 3, 5.0),
    ]
    engines = [*here, run("a", 9, 0.94, 5.0, engine="compiled")]
    assert [each.engine for each in summarize(engines, ["a"], None).recipes[0].times] == ["eager", "compiled"]


def test_pairs_across_machines_compare_accuracies_alone() -> None:
    a = [run("a", seed, 0.94, 10.0) for seed in range(4)]
    b = [run("b", seed, 0.95, 5.0, machine=HERE if seed < 2 else THERE) for seed in range(4)]
    (compared,) = summarize([*a, *b], ["a", "b"], None).comparisons
    assert compared.pairs == 4 and compared.accuracy_difference == pytest.approx(0.01)
    assert compared.time_ratio == pytest.approx(0.5) and [(each.machine, each.pairs) for each in compared.times] == [
        (HERE, 2)
    ]
    both = [*a, *b, *(run("a", seed, 0.94, 2.0, machine=THERE) for seed in (8, 9))]
    both += [run("b", seed, 0.95, 4.0, machine=THERE) for seed in (8, 9)]
    (compared,) = summarize(both, ["a", "b"], None).comparisons
    assert compared.time_ratio is None and [each.ratio for each in compared.times] == pytest.approx([0.5, 2.0])
    assert f"on {THERE}" in compared.verdict


def test_runs_beside_which_others_worked_are_left_out_of_the_times() -> None:
    loads = [None, 0.0, MAX_OTHER_LOAD, MAX_OTHER_LOAD + 0.01, 0.9]
    runs = [run("a", seed, 0.9, 1.0 if seed < 3 else 7.0, other_load=load) for seed, load in enumerate(loads)]
    found = summarize(runs, ["a"], None)
    (one,) = found.recipes
    assert one.accuracy and one.runs == 5 and one.train_s and one.train_s.mean == 1.0 and one.left_out == 2
    assert "a: 2 of 5 runs are left out of the times, as others used more than 10 %" in remarks(found)[0]
    alone = summarize(runs[3:], ["a"], None).recipes[0]
    assert alone.accuracy and alone.train_s is None and alone.left_out == 2
    pairs = [*runs, *(run("b", seed, 0.9, 2.0) for seed in range(5))]
    (compared,) = summarize(pairs, ["a", "b"], None).comparisons
    assert compared.pairs == 5 and compared.times[0].pairs == 3 and compared.time_ratio == pytest.approx(2.0)


# --------------------------------------------------------------------------------------------------- tables and picture


def fixed_runs() -> Report:
    """Three recipes: one slower and better, one that diverged once and was disturbed."""
    third = [run("wild", seed, None if seed == 1 else 0.93, 2.0, at=seed, other_load=0.5 * seed) for seed in range(4)]
    return summarize([*benched(0.004, 12, flops=145_000_000_000_000), *third], ["a", "b", "wild"], 94.2)


def test_the_screen_is_the_golden_one() -> None:
    assert drawn(fixed_runs()) == (GOLDEN / "bench.txt").read_text(encoding="utf-8")


def test_the_markdown_is_the_golden_one() -> None:
    assert markdown(fixed_runs()) + "\n" == (GOLDEN / "bench.md").read_text(encoding="utf-8")


def test_two_machines_have_a_table_of_times_and_a_row_each_in_markdown() -> None:
    runs = [*benched(0.0, 3), *(run("a", seed, 0.94, 0.2, machine=THERE) for seed in range(3, 6))]
    found = summarize(runs, ["a", "b"], None)
    screen = drawn(found, 120)
    assert f"{THERE}, eager" in screen and f"{HERE}, eager" in screen and "Times on" not in screen
    rows = [line.split(" | ") for line in markdown(found).splitlines()[2:5]]
    assert [(row[0].strip("| "), row[6].strip("| ")) for row in rows] == [
        ("a", str(HERE)),
        ("", str(THERE)),
        ("b", str(HERE)),
    ]


@pytest.mark.parametrize(
    ("runs", "accuracies", "times"),
    [
        ([], ["", ""], ["", ""]),
        ([run("a", 0, 0.94)], ["94.00", ""], ["1", ""]),
        ([run("a", 0, None)], ["", ""], ["", ""]),
        ([run("a", 0, 0.9), run("b", 0, 0.9, 2.5)], ["90.00", "90.00"], ["1", "2.5"]),
    ],
)
def test_few_runs_have_means_and_no_intervals(runs: list[object], accuracies: list[str], times: list[str]) -> None:
    found = summarize(runs, ["a", "b"], 94.0)  # type: ignore[arg-type]
    json.dumps(found.document(), allow_nan=False)
    cells = [line.split(" | ") for line in markdown(found).splitlines()[2:4]]
    assert [row[2].strip() for row in cells] == accuracies and [row[5].strip() for row in cells] == times
    assert "±" not in markdown(found) and "±" not in drawn(found)
    points = ET.fromstring(scatter(runs, found)).findall(f"{SVG}circle")  # type: ignore[arg-type]
    finished = sum(cell != "" for cell in accuracies)
    assert len(points) == 2 * finished, "a point a run, and the mean"


def test_the_picture_has_every_run_the_means_and_the_target() -> None:
    runs = benched(0.004, 12)
    report = summarize(runs, ["a", "b"], 94.2)
    picture = ET.fromstring(scatter(runs, report))
    circles = picture.findall(f"{SVG}circle")
    assert len(circles) == 24 + 2
    titles = [title.text for circle in circles for title in circle.findall(f"{SVG}title")]
    assert f"a, seed 0: {100 * (runs[0].accuracy or 0):.2f} % in {runs[0].train_s:.3g} s" in titles
    texts = [text.text for text in picture.findall(f"{SVG}text")]
    assert "94.2 %" in texts and "a" in texts and "b" in texts
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < 900 and 0 < float(circle.attrib["cy"]) < 560
    lines = picture.findall(f"{SVG}line")
    dashed = [line for line in lines if "stroke-dasharray" in line.attrib]
    assert len(dashed) == 1
    higher = [c for c in circles if float(c.attrib["cy"]) < float(dashed[0].attrib["y1"]) and c.attrib["r"] == "3"]
    assert len(higher) == sum((each.accuracy or 0) > 0.942 for each in runs)


# ------------------------------------------------------------------------------------------------- `fastcifar report`


def test_a_results_file_is_reported(call: Call, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", header("a", "b"), benched(0.004, 12))
    done = call("report", path, "--target", "94.2")
    assert done.code == 5 and "b is more accurate than a" in done.out
    assert call("report", path, "--target", "93").code == 0
    assert call("bench", "--report", path, "--target", "94.2").out == done.out
    document = call("report", path, "--json").document
    assert {"command", "version", "torch", "device", "runs", "recipes", "comparisons"} <= document.keys()
    assert document["device"] == HERE.device and len(document["runs"]) == 24
    assert {"name", "recipe", "seed", "accuracy", "train_s", "fraction", "other_load"} <= document["runs"][0].keys()
    assert {"mean", "std", "ci95"} == document["recipes"][0]["accuracy"].keys()
    first = call("report", path, "--markdown")
    assert first.out == call("report", path, "--markdown").out and "| b | 12 |" in first.out
    until = call("report", path, "--until-clear", "--margin", "0.2")
    assert until.code == 0 and "anytime-valid" in until.out
    assert call("report", path, "--svg", tmp_path / "r.svg").code == 0
    assert len(ET.parse(tmp_path / "r.svg").getroot().findall(f"{SVG}circle")) == 26


def test_files_of_two_machines_and_a_run_folder_are_put_together(call: Call, tmp_path: Path) -> None:
    bench, folder = FIXTURES / "format1" / "bench.jsonl", FIXTURES / "format1" / "run"
    other = tmp_path / "other.jsonl"
    there = bench.read_text().replace("AMD EPYC, 1 thread", "Another, 1 thread").replace('"seed": ', '"seed": 1')
    other.write_text(there)
    done = call("report", bench, other, folder, "--markdown")
    assert done.code == 0, done.err
    assert "| tiny | 5 | " in done.out and "| narrow | 4 | " in done.out
    assert done.out.count("AMD EPYC, 1 thread") == done.out.count("Another, 1 thread") > 0
    twice = call("report", bench, bench)
    assert twice.code == 2 and "in another file too" in twice.err


def test_a_run_folder_is_shown_again(call: Call) -> None:
    folder = FIXTURES / "format1" / "run"
    done = call("report", folder)
    assert done.code == 0 and "10.00 %" in done.out and "tiny, shapes, seed 3" in done.out
    assert call("report", folder, "--json").document == json.loads((folder / "run.json").read_text())
    assert call("report", folder, "--target", "50").code == 5
    assert "| tiny | 1 | 10.00 |" in call("report", folder, "--markdown").out


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, 3, "cannot be read"),
        ("", 3, "holds no runs"),
        ("x\n", 3, "no results file"),
        ('{"command": "download"}', 3, "`download`"),
        ('{"command": "bench", "runs": []}', 3, "results file"),
    ],
)
def test_what_cannot_be_reported_is_said(
    call: Call, tmp_path: Path, content: str | None, code: int, words: str
) -> None:
    if content is not None:
        (tmp_path / "f").write_text(content)
    done = call("report", tmp_path / "f")
    assert done.code == code and words in done.err and "Traceback" not in done.err
    assert call("report", tmp_path / "f", "--target", "0.94").code == 2


def test_a_report_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from fastcifar.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as left: print(sorted({'torch', 'numpy'} & set(sys.modules)), left.code, file=sys.stderr)"
    )
    folder = FIXTURES / "format1"
    for arguments in (["bench.jsonl", "run"], ["run"], ["search.jsonl"], ["bench.jsonl", "--json"]):
        command = [sys.executable, "-c", code, "report", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1] == "[] 0", done.stderr


def test_a_report_in_a_pipe(cli: Cli) -> None:
    done = cli("report", FIXTURES / "format1" / "search.jsonl", COLUMNS="140")
    assert done.code == 0 and "at 0.25  runs" in done.out and "base learned nothing from longer runs" in done.out


def test_a_profile_is_shown_again(call: Call) -> None:
    path = FIXTURES / "format1" / "profile.json"
    done = call("report", path)
    assert done.code == 0 and "tiny on shapes, 128 images a step" in done.out and "group1" in done.out
    assert call("report", path, "--json").document == json.loads(path.read_text())
    kernels = call("report", path, "--by", "kernel", "--top", "2")
    assert "aten::convolution_backward" in kernels.out and "group1.conv1" in kernels.out
    folded = call("report", path, "--depth", "1", "--sort", "total")
    assert "conv1" not in folded.out and folded.out.index("group1") < folded.out.index("group3")
    several = call("report", path, FIXTURES / "format1" / "run")
    assert several.code == 3 and "no results file" in several.err
