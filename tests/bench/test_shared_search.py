"""Searches that several processes share."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import finished, kill_second_rank, lines_of, torchrun
from conftest import Call
from search_helpers import WORLD, imagined, prepared, simulate
from torch.distributed import HashStore

from fastcifar.bench.distributed import Log, Ranks
from fastcifar.bench.records import RunRecord, Task, wall_clock
from fastcifar.bench.search import Search
from fastcifar.bench.search_runner import Entry, Shares


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return prepared(tmp_path_factory.mktemp("search"), 3000)


def began(run: RunRecord) -> float:
    return run.at - run.wall_s


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_make_more_runs_in_the_same_time_and_find_the_same(asked: Search, ranks: int) -> None:
    alone, runs = simulate(asked), simulate(dataclasses.replace(asked, ranks=ranks))
    assert len({run.task for run in runs}) == len(runs) > 0.9 * ranks * len(alone)
    assert 0.9 * 3000 < wall_clock(runs) <= 1.01 * 3000
    assert sum(run.wall_s for run in runs) > 0.9 * ranks * wall_clock(runs), "hardly a rank waits"
    found, alike = asked.rungs(runs), asked.rungs(alone)
    assert [[each.name for each in rung.results] for rung in found] == [
        [each.name for each in rung.results] for rung in alike
    ]
    for shorter, longer in ((0.25, 0.5), (0.5, 1.0)):
        end = max(run.at for run in runs if run.fraction == shorter and run.name != "base")
        assert end <= min(began(run) for run in runs if run.fraction == longer and run.name != "base")
    assert all(each.runs == rung.seeds for rung in found for each in rung.results)
    candidates = [run for run in runs if run.name != "base" and run.fraction == 0.25]
    assert len(candidates) == found[0].seeds * (len(WORLD) - 1), "rounds that are begun are finished"


def test_as_many_ranks_as_there_are_go_on(asked: Search) -> None:
    three = dataclasses.replace(asked, ranks=3)
    for stopped in (1, 2, 40, 90):
        kept = simulate(three)[:stopped]  # what was in flight is lost
        runs = simulate(asked, runs=kept)
        assert runs[:stopped] == kept and len({run.task for run in runs}) == len(runs)
        assert 0.9 * 3000 < wall_clock(runs) <= 3000
        assert asked.rungs(runs)[-1].results[1].name == "good" and asked.rungs(runs)[-1].fraction == 1
        again = simulate(three, runs=simulate(asked)[:stopped])
        assert len({run.task for run in again}) == len(again) and asked.rungs(again)[-1].results[1].name == "good"


def test_more_ranks_than_runs_of_a_round_are_all_busy(asked: Search) -> None:
    runs = simulate(dataclasses.replace(asked, ranks=16, seconds=800.0))
    assert sum(began(run) == 0 for run in runs) == 16
    assert sum(run.wall_s for run in runs) > 0.8 * 16 * wall_clock(runs)


def test_a_first_round_that_does_not_fit_costs_each_rank_a_run(asked: Search) -> None:
    runs = simulate(dataclasses.replace(asked, ranks=2, seconds=60.0))
    assert len(runs) == 2 and wall_clock(runs) <= 60


def test_ranks_that_read_the_log_at_different_times_agree(asked: Search) -> None:
    """Each rank reads on when it asks itself; what it gets is what the others think that it got."""
    store, size = HashStore(), 3
    search = dataclasses.replace(asked, ranks=size)
    every = [Ranks(rank, size, rank, size) for rank in range(size)]
    shares = [Shares(search, [], each, Log[Entry](each, store)) for each in every]
    done: list[RunRecord | None] = [None] * size
    given: list[Task] = []
    for turn in (0, 1, 2, 2, 0, 0, 2, 0, 1, 0, 0, 1, 2, 1):
        task = shares[turn].next_task(done[turn])
        assert task is not None
        given.append(task)
        done[turn] = imagined(*task, 20.0 * len(given))
    assert len(set(given)) == len(given)
    for each in shares:
        each.follow(len(given))
    assert shares[0].runs == shares[1].runs == shares[2].runs and len(shares[0].runs) == len(given) - size
    assert shares[0].in_flight == shares[1].in_flight == shares[2].in_flight
    assert set(shares[0].in_flight.values()) | {run.task for run in shares[0].runs} == set(given)


def test_after_a_rank_got_no_run_none_begins_until_all_have_ended(asked: Search) -> None:
    """Else the one that waits would do so through the rungs to come."""
    shares = Shares(dataclasses.replace(asked, ranks=2, seconds=60.0), [], Ranks(), Log(Ranks(), None))
    for rank in range(2):
        shares.follow(shares.log.add((rank, None)))
    first, second = shares.in_flight[0], shares.in_flight[1]
    shares.follow(shares.log.add((0, imagined(*first))))
    assert 0 not in shares.in_flight, "a round does not fit into a minute"
    shares.search = dataclasses.replace(asked, ranks=2)
    shares.follow(shares.log.add((1, imagined(*second))))
    assert not shares.in_flight and shares.search.next_task(shares.runs) is not None
    shares.wait()
    shares.follow(shares.log.add((1, None)))
    assert 1 in shares.in_flight


FEW = "[lazy]\noptimizer.filters.lr = 1e-6\noptimizer.head.lr = 1e-6\n[small]\nnetwork.widths = [4, 4, 4]\n"
SETTINGS = ["training.epochs=0.15", "training.batch_size=25", "evaluation.views=none", "network.widths=[8, 8, 8]"]
SEARCH = ["search", "tiny", "few.toml", "--dataset", "shapes", "--threads", "1", "--out", "s.jsonl"]
SEARCH += [f"--set={each}" for each in [*SETTINGS, "network.whiten.images=500"]]


def minutes(seconds: float) -> list[str]:
    return ["--minutes", f"{seconds / 60}", "--json"]


def results(folder: Path) -> list[dict[str, Any]]:
    """The runs in all results files."""
    return [line for path in sorted(folder.glob("s*.jsonl")) for line in lines_of(path)[1:]]


def tasks_of(lines: list[dict[str, Any]]) -> list[Task]:
    return sorted(Task(line["name"], line["seed"], line["fraction"]) for line in lines)


def accuracies(lines: list[dict[str, Any]]) -> dict[Task, float]:
    return {Task(line["name"], line["seed"], line["fraction"]): line["accuracy"] for line in lines}


@pytest.mark.slow
def test_two_ranks_search_one_is_killed_and_others_go_on(call: Call, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(FEW)
    arguments = ["-m", "fastcifar", *SEARCH, *minutes(24), "--html", "s.html"]
    process = torchrun(tmp_path, "--max-restarts", "2", *arguments)
    second = tmp_path / "s.rank1.jsonl"
    kill_second_rank(process, second)
    before = results(tmp_path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    document = json.loads(out)  # of the first rank alone
    made = results(tmp_path)
    assert all(line in made for line in before), "nothing finished is lost"
    assert tasks_of(made) == tasks_of(document["runs"]) and len(set(tasks_of(made))) == len(made)
    assert min(finished(tmp_path / f"s.rank{rank}.jsonl") for rank in range(2)) > 0.3 * len(made)
    runs = [RunRecord(each["name"], "", each["seed"], 0, 0, each["at"], wall_s=each["wall_s"]) for each in made]
    assert wall_clock(runs) < 24 + max(run.wall_s for run in runs) < sum(run.wall_s for run in runs)
    assert [rung["fraction"] for rung in document["rungs"]] == [0.25, 0.5, 1.0]
    assert document["remark"] in (tmp_path / "s.html").read_text()

    one = call(*SEARCH, *minutes(wall_clock(runs) + 10))
    assert one.code == 0, one.err
    assert finished(tmp_path / "s.jsonl") > 0 and tasks_of(one.document["runs"]) == tasks_of(results(tmp_path))
    process = torchrun(tmp_path, "-m", "fastcifar", *SEARCH, *minutes(wall_clock(runs) + 18))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    made = results(tmp_path)
    assert tasks_of(json.loads(out)["runs"]) == tasks_of(made) and len(set(tasks_of(made))) == len(made)
    assert len(made) > len(one.document["runs"])

    # Which candidates go on may differ: that depends on times, and on how many seeds there was time for.
    alone = call(*SEARCH, *minutes(24), "--out", "alone.jsonl").document
    shared, single = accuracies(document["runs"]), accuracies(alone["runs"])
    both = shared.keys() & single.keys()
    assert len(both) > 6 and {task: shared[task] for task in both} == {task: single[task] for task in both}


@pytest.mark.slow
def test_a_rank_that_is_killed_without_torchrun_ends_the_others(call: Call, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(FEW)
    given = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": f"{os.getpid()}", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "here"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    command = [sys.executable, "-m", "fastcifar", *SEARCH, *minutes(24)]
    tasks = [
        subprocess.Popen(command, env={**os.environ, **given, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}, **pipes)
        for rank in "01"
    ]
    while finished(tmp_path / "s.rank0.jsonl") < 1 and tasks[0].poll() is None:
        time.sleep(0.02)
    tasks[1].kill()
    tasks[1].communicate()
    out, _ = tasks[0].communicate(timeout=300)
    assert tasks[0].returncode == 4 and "lost the other ranks" in json.loads(out)["error"]
    kept = tasks_of(results(tmp_path))
    assert len(kept) > 1
    done = call(*SEARCH, *minutes(1))
    assert done.code == 0 and tasks_of(done.document["runs"]) == kept
