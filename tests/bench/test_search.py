"""A search: what it runs next, how it judges, what survives a kill."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from bench_helpers import finished, header, lines_of, write
from conftest import Call, few_shapes
from search_helpers import CANDIDATES, WORLD, failed, imagined, prepared, simulate

from fastcifar.bench.distributed import Ranks
from fastcifar.bench.records import RunRecord, Task, wall_clock
from fastcifar.bench.relative_cost import error_slope, relative_cost
from fastcifar.bench.results import load
from fastcifar.bench.rungs import recorded_ladder
from fastcifar.bench.search import budget, load_candidates
from fastcifar.bench.search_runner import run_search
from fastcifar.cli.display.bench import remark
from fastcifar.errors import DataError, UsageError
from fastcifar.recipes.parse import load_recipe


def test_the_time_is_kept_and_the_best_is_found(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 3000)
    runs = simulate(asked)
    assert 0.8 * 3000 < sum(run.wall_s for run in runs) <= 3000
    counts = Counter((run.name, run.fraction) for run in runs)
    assert {name for name, fraction in counts if fraction == 0.25} == set(WORLD)
    assert {name for name, fraction in counts if fraction == 0.5} == {"base", "good", "same"}
    assert {name for name, fraction in counts if fraction == 1} == {"base", "good"}
    assert len({counts[name, 0.25] for name in ("base", "bad", "slow")}) == 1
    rungs = asked.rungs(runs)
    assert [rung.fraction for rung in rungs] == [0.25, 0.5, 1.0]
    assert [each.name for each in rungs[0].results] == ["base", "good", "same", "slow", "bad"]
    for rung in rungs:
        for each in rung.results[1:]:
            assert each.cost == pytest.approx(WORLD[each.name][1], rel=1e-6)
        assert len({each.runs for each in rung.results}) == 1


def test_what_comes_next_follows_from_the_file_alone(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 1500)
    runs = simulate(asked)
    assert len({run.task for run in runs}) == len(runs)
    for made in range(len(runs)):
        assert asked.next_task(runs[:made]) == runs[made].task
    inside = len(WORLD) + 4  # of the second round, which with so much less time had not begun
    hasty = dataclasses.replace(asked, seconds=wall_clock(runs[:inside]) + 1)
    assert hasty.next_task(runs[:inside]) == runs[inside].task, "a round that is begun is finished"


def test_a_results_file_holds_all_that_its_ladder_needs(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 1500)
    runs = simulate(asked)
    kept = load(write(tmp_path / "s.jsonl", asked.plan.header(), runs))
    ladder = recorded_ladder(kept.header, kept.runs)
    assert ladder is not None and (ladder.holdout, ladder.dataset) == (1000, "shapes")
    assert ladder.rungs(kept.runs) == asked.rungs(runs) and remark(ladder, kept.runs) == remark(asked, runs)
    whole = [run for run in kept.runs if run.fraction == 1]
    assert whole and recorded_ladder(kept.header, whole) is None, "a bench of a recipe called base"
    assert recorded_ladder(header("a", "b"), kept.runs) is None, "no base"


def test_too_little_time_is_not_overrun(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 60)
    runs = simulate(asked)
    assert len(runs) == 1, "one run tells that a round of all does not fit"
    assert "one round of all takes about" in remark(asked, runs)
    asked = prepared(tmp_path, 200)
    runs = simulate(asked)
    assert [rung.fraction for rung in asked.rungs(runs)] == [0.25]
    assert sum(run.wall_s for run in runs) <= 200


def test_a_rung_that_is_over_is_not_begun_again(tmp_path: Path) -> None:
    """In the second rung of many candidates the base goes on to seeds that the first rung did not come to."""
    many = "".join(f"[c{number}]\noptimizer.filters.lr = 0.0{number}\n" for number in range(10, 30))
    asked = prepared(tmp_path, 3000, CANDIDATES + many)

    def make(name: str, seed: int, fraction: float, began: float) -> RunRecord:
        return dataclasses.replace(imagined(name if name in WORLD else "same", seed, fraction, began), name=name)

    runs = simulate(asked, make)
    lengths = [run.fraction for run in runs if run.name != "base"]
    assert lengths == sorted(lengths) and set(lengths) == {0.25, 0.5, 1}
    assert {run.seed for run in runs if run.fraction == 0.5} > {run.seed for run in runs if run.fraction == 0.25}


def test_what_was_made_for_one_rung_is_not_paid_again_in_the_next(tmp_path: Path) -> None:
    few = "[good]\noptimizer.filters.lr = 0.2\n"
    runs = simulate(prepared(tmp_path, 300, few))  # 93, then 31 more, then 162: in all 286
    assert {(run.name, run.fraction) for run in runs} == {
        (name, fraction) for name in ("base", "good") for fraction in (0.25, 0.5, 1)
    }


def test_a_search_that_ends_in_the_second_rung_is_judged_all_the_same(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 420)
    runs = simulate(asked)
    rung = asked.rungs(runs)[-1]
    assert rung.fraction == 0.5 and rung.results[1].cost == pytest.approx(0.7)
    assert remark(asked, runs).startswith("good takes 0.700")


def test_what_fails_comes_last_and_the_reason_is_told(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 1000)
    runs = [imagined(name, 1000, 0.25, 100.0 * i) for i, name in enumerate(asked.plan.recipes)]
    runs.append(imagined("base", 1000, 0.5, 500.0))
    runs[1] = failed(runs[1])
    assert [each.name for each in asked.rungs(runs)[0].results] == ["base", "same", "slow", "bad", "good"]
    better = (runs[0].accuracy or 0) + 0.0002  # an image of five thousand is no slope
    flat = [*runs[:-1], dataclasses.replace(runs[-1], accuracy=better)]
    (rung,) = asked.rungs(flat)
    assert all(each.cost is None for each in rung.results)
    assert [each.name for each in rung.results][1:3] == ["slow", "same"], "by accuracy then"
    assert "base learned nothing" in remark(asked, flat)
    runs[1:5] = map(failed, runs[1:5])
    assert asked.next_task(runs) is None
    assert "No candidate came to an end" in remark(asked, runs)
    runs[0] = failed(runs[0])
    assert "base itself diverged" in remark(asked, runs)


def test_the_relative_cost_is_that_of_the_power_law() -> None:
    """error = 0.1 * time^-0.5: a run twice as long has an error of 1 / sqrt(2), so the slope is -2."""
    short, long = imagined("base", 0, 0.25), imagined("base", 0, 0.5)
    assert error_slope([(short, long)], 5000) == pytest.approx(-2)
    assert error_slope([], 5000) is None and error_slope([(long, short)], 5000) is None
    quicker = dataclasses.replace(short, train_s=(short.train_s or 0) / 2)
    assert relative_cost([(short, quicker)], -2, 5000) == (pytest.approx(0.5), None), "as accurate in half the time"
    half = dataclasses.replace(short, accuracy=1 - (1 - (short.accuracy or 0)) / 2)
    cost, ci95 = relative_cost([(short, half), (short, half)], -2, 5000)
    assert cost == pytest.approx(0.25) and ci95 == pytest.approx((0.25, 0.25)), "the base needs four times as long"
    perfect = dataclasses.replace(short, accuracy=1.0)
    assert math.isfinite(relative_cost([(short, perfect)], -300, 5000)[0])


def test_seconds_on_the_clock_are_those_in_which_a_run_was_under_way() -> None:
    spans = [(0, 10), (5, 12), (6, 7), (12, 13), (100, 104), (90, 101)]
    runs = [RunRecord("a", "tiny", seed, 0.9, 1.0, end, wall_s=end - began) for seed, (began, end) in enumerate(spans)]
    assert wall_clock(runs) == wall_clock(runs[::-1]) == 13 + 14
    assert wall_clock([]) == 0


def test_runs_shared_among_ranks_take_as_long_as_those_of_the_last(tmp_path: Path) -> None:
    tasks = [Task("a", seed, fraction) for seed, fraction in enumerate([1.0, 0.25, 0.5, 0.25, 1.0])]
    asked = prepared(tmp_path, 1)
    lengths = {ranks: dataclasses.replace(asked, ranks=ranks).length(tasks) for ranks in (1, 2, 3, 9)}
    assert lengths == {1: 3.0, 2: 2.0, 3: 1.5, 9: 1.0}
    assert budget(90.0, 3, 0) == 90.0 and budget(90.0, 3, 2) == 30.0


def test_all_that_fail_end_the_search(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 1000)

    def make(name: str, seed: int, fraction: float, began: float) -> RunRecord:
        run = imagined(name, seed, fraction, began)
        return run if name == "base" else failed(run)

    runs = simulate(asked, make)
    tried = {(run.name, run.fraction) for run in runs if run.name != "base"}
    assert tried == {(name, 0.25) for name in WORLD if name != "base"}


def test_a_candidate_that_cannot_run_does_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huge.py").write_text(
        "import fastcifar.model.network as n\n"
        "class Net(n.Network):\n"
        "    def forward(self, x):\n"
        "        if self.training: raise MemoryError('out of memory')\n"
        "        return super().forward(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = prepared(tmp_path, 15, "[huge]\nnetwork.factory = 'huge:Net'\n", few_shapes(400, 50))
    made = run_search(asked, tmp_path / "s.jsonl", Ranks())
    huge = [run for run in made if run.name == "huge" and run.fraction == 0.25]
    assert huge and huge[0].diverged and "Out of memory" in (huge[0].error or "")
    assert huge[0].wall_s > 0 and "Out of memory" in lines_of(tmp_path / "s.jsonl")[1 + made.index(huge[0])]["error"]
    with pytest.raises(UsageError, match="nowhere"):
        prepared(tmp_path, 1, "[huge]\nnetwork.factory = 'nowhere:Net'\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[a", "not valid TOML"),
        ("", "holds no candidates"),
        ("a = 1", r"'a' must be a table \[a\]"),
        ("[base]\ntraining.epochs = 2", "a candidate is called 'base'"),
        ("['a b']\ntraining.epochs = 2", "is no name"),
        ("[a]\ntraining.epoch = 2", "candidate 'a' of .*'training.epoch'; did you mean 'epochs'"),
        ("[a]\ndata.holdout = 100", "sets data.holdout"),
        ("[a]\ntraining.epochs = 4.0", "'a' is the same recipe as 'base'"),
        ("[a]\ntraining.epochs = 2.0\n[b]\ntraining.epochs = 2", "'b' is the same recipe as 'a'"),
    ],
)
def test_candidates_that_cannot_be(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prepared(tmp_path, 60, content)
    with pytest.raises(DataError, match="cannot be read"):
        load_candidates(tmp_path / "missing.toml", load_recipe("tiny"))


def test_candidates_hold_what_differs_and_are_judged_on_images_kept_back(tmp_path: Path) -> None:
    plan = prepared(tmp_path, 60).plan
    assert plan.recipes["bad"].network.widths == (8, 8, 8)
    assert plan.recipe(Task("bad", 1000, 0.5)).training.epochs == load_recipe("tiny").training.epochs / 2
    assert {each.data.holdout for each in plan.recipes.values()} == {1000}, "a tenth of the ten thousand shapes"


@pytest.mark.slow
def test_a_search_is_killed_goes_on_and_is_reported(call: Call, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text("[slow]\noptimizer.filters.lr = 0.02\n[small]\nnetwork.widths = [4, 4, 4]\n")
    sets = ["training.epochs=0.12", "evaluation.views=none", "network.widths=[8, 8, 8]", "network.whiten.images=500"]
    arguments = ["tiny", "few.toml", "--dataset", "shapes", "--threads", "1", *(f"--set={each}" for each in sets)]
    command = [sys.executable, "-m", "fastcifar", "search", *arguments, "--minutes", "10"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    path = tmp_path / "search.jsonl"
    while finished(path) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = lines_of(path)[1:]
    assert len(before) >= 3
    spent = sum(run["wall_s"] for run in before)
    done = call("search", *arguments, "--minutes", f"{(spent + 25) / 60}", "--json")
    assert done.code == 0, done.err
    assert [{key: run[key] for key in before[0]} for run in done.document["runs"][: len(before)]] == before
    first = done.document["rungs"][0]
    assert first["fraction"] == 0.25 and {each["name"] for each in first["standings"]} == {"base", "slow", "small"}
    assert done.document["remark"]
    again = call("search", *arguments, "--minutes", f"{spent / 60}")
    assert again.code == 0 and "at 0.25" in again.out
    shown = call("report", "search.jsonl", "--markdown")
    assert shown.code == 0 and "| slow at 0.25 |" in shown.out
    other = call("search", "tiny", "few.toml", "--dataset", "shapes", "--minutes", "1")
    assert other.code == 2 and "another bench" in other.err
