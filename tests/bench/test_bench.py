"""Benches: the order of runs, what survives a kill or Ctrl-C, when one stops, what cannot be."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import SMALL, finished, lines_of
from conftest import Call

from fastcifar.bench.plan import BenchPlan, parse_contenders, pending_runs
from fastcifar.bench.records import Task
from fastcifar.data.store import load_dataset
from fastcifar.errors import UsageError
from fastcifar.training.engine import choose_engine


def plan(*arguments: str, runs: int = 4, settings: tuple[str, ...] = ()) -> BenchPlan:
    recipes, _ = parse_contenders(arguments, settings)
    device = torch.device("cpu")
    engines = dict.fromkeys(recipes, choose_engine("eager", device))
    return BenchPlan(recipes, engines, load_dataset("shapes"), device, range(runs))


# --------------------------------------------------------------------------------------------------------------- order


def test_recipes_are_interleaved_with_the_same_seeds() -> None:
    tasks = pending_runs(plan("tiny", "b=tiny", settings=("b:training.epochs=2",)), set())
    orders = (("tiny", "b"), ("b", "tiny"), ("tiny", "b"), ("b", "tiny"))
    assert tasks == [Task(name, seed) for seed, order in enumerate(orders) for name in order]


def test_what_is_done_is_not_done_again_and_seeds_stay_together() -> None:
    wanted = plan("tiny", "b=tiny", runs=5, settings=("b:training.epochs=2",))
    done = {Task("tiny", 0), Task("b", 0), Task("b", 1)}
    shares = [pending_runs(wanted, done, rank, 2) for rank in range(2)]
    everything = sorted(shares[0] + shares[1])
    assert everything == sorted([Task("tiny", 1), *(Task(name, seed) for name in ("tiny", "b") for seed in (2, 3, 4))])
    assert {task.seed for task in shares[0]} & {task.seed for task in shares[1]} == set()


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["tiny", "tiny"], [], "'tiny' is there twice"),
        (["a=tiny", "b=tiny"], [], "the same recipe"),
        (["a=tiny", "b=tiny"], ["c:training.epochs=2"], "'c'"),
        (["a=tyni"], [], "did you mean 'tiny'"),
        (["a b=tiny"], [], "is no name"),
        (["a@0.5=tiny"], [], "is no name"),
    ],
)
def test_names_that_cannot_be(arguments: list[str], settings: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_contenders(arguments, settings)


# ----------------------------------------------------------------------------------------------------------- for real


def test_a_bench_is_run_reported_and_resumed(call: Call, tmp_path: Path) -> None:
    bound = ["slow=tiny", "--set", "slow:optimizer.filters.lr=0.01"]
    done = call("bench", "tiny", *bound, *SMALL, "--runs", "2", "--out", "r.jsonl", "--target", "99", "--json")
    assert done.code == 5, done.err
    document = done.document
    assert {"command", "version", "torch", "device", "runs", "recipes", "comparisons"} <= set(document)
    assert [r["name"] for r in document["recipes"]] == ["tiny", "slow"]
    assert all({"mean", "std", "ci95"} <= set(r["accuracy"]) and r["p_target"] > 0.5 for r in document["recipes"])
    (compared,) = document["comparisons"]
    assert {"a", "b", "accuracy_difference", "accuracy_ci95", "accuracy_p", "time_ratio", "time_ci95"} <= set(compared)
    assert compared["verdict"] and compared["pairs"] == 2
    first = lines_of(tmp_path / "r.jsonl")
    assert [(r["name"], r["seed"]) for r in first[1:]] == [("tiny", 0), ("slow", 0), ("slow", 1), ("tiny", 1)]
    for line in first[1:]:
        assert line["fraction"] == 1 and line["flops"] > 1e9 and line["wall_s"] >= line["train_s"] > 0
        assert line["other_load"] is None or 0 <= line["other_load"] <= 1
        assert sys.platform != "linux" or line["other_load"] is not None
    done = call("bench", "tiny", *bound, *SMALL, "--runs", "3", "--out", "r.jsonl")
    assert done.code == 0 and "seed 2" in done.out and "seed 1:" not in done.out
    assert lines_of(tmp_path / "r.jsonl")[: len(first)] == first
    other = call("bench", "tiny", *SMALL, "--runs", "3", "--out", "r.jsonl")
    assert other.code == 2 and "'slow' is missing" in other.err
    shown = call("report", "r.jsonl", "--markdown")
    assert shown.code == 0 and "| slow | 3 |" in shown.out


def test_a_seed_of_a_bench_is_the_run_of_train(call: Call, tmp_path: Path) -> None:
    assert call("bench", "tiny", *SMALL, "--runs", "1", "--seed", "3", "--out", "r.jsonl").code == 0
    alone = call("train", "tiny", *SMALL, "--seed", "3", "--json", "--out", "run").document
    line = lines_of(tmp_path / "r.jsonl")[1]
    assert (line["accuracy"], line["flops"]) == (alone["accuracy"], alone["flops"])
    more = call("bench", "tiny", *SMALL, "--runs", "2", "--seed", "4", "--out", "more.jsonl")
    assert more.code == 0
    pooled = call("report", "more.jsonl", "run", "--json").document
    assert [run["seed"] for run in pooled["runs"] if run["name"] == "tiny"] and pooled["recipes"][0]["runs"] == 3


def test_a_recipe_that_diverges_is_counted_and_the_others_go_on(call: Call) -> None:
    wild = ["wild=tiny", "--set", "wild:optimizer.head.lr=1e30", "--set", "wild:optimizer.biases.lr=1e30"]
    done = call("bench", "tiny", *wild, *SMALL, "--set", "training.batch_size=100", "--runs", "2", "--json")
    assert done.code == 0, done.err
    tiny, diverged = done.document["recipes"]
    assert (tiny["runs"], tiny["diverged"]) == (2, 0) and (diverged["runs"], diverged["diverged"]) == (2, 2)
    assert diverged["accuracy"] is None and done.document["comparisons"] == []


@pytest.mark.slow
def test_a_bench_until_clear_makes_no_more_runs_than_needed(call: Call, tmp_path: Path) -> None:
    same = ["b=tiny", "--set", "b:evaluation.shifted_weight=0.4"]  # without views it changes nothing
    done = call("bench", "tiny", *same, *SMALL, "--runs", "30", "--until-clear", "--out", "r.jsonl", "--json")
    assert done.code == 0, done.err
    assert finished(tmp_path / "r.jsonl") == 2 * 5  # five equal pairs: as accurate
    assert "as accurate" in done.document["comparisons"][0]["verdict"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tiny", "--runs", "0"], 2, "--runs"),
        (["tiny", "tiny"], 2, "twice"),
        (["tiny", "--target", "0.94"], 2, "percent"),
        (["tiny", "--out", "/proc/nowhere/r.jsonl"], 3, "cannot be written"),
        (["--report", "missing.jsonl"], 3, "missing.jsonl"),
        (["tiny", "--device", "cuda:7"], 4, "cuda:7"),
    ],
)
def test_what_cannot_be_is_said(call: Call, arguments: list[str], code: int, words: str) -> None:
    extra = [] if "--report" in arguments or "--device" in arguments else ["--dataset", "shapes"]
    done = call("bench", *arguments, *extra)
    assert done.code == code and words in done.err and "Traceback" not in done.err


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcifar", "bench", *arguments]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ, **pipes)


@pytest.mark.slow
def test_killed_at_random_moments_every_seed_ends_up_once(tmp_path: Path) -> None:
    arguments = ["tiny", "b=tiny", "--set", "b:data.translate=0", *SMALL, "--runs", "3", "--out", "r.jsonl"]
    path, moments = tmp_path / "r.jsonl", random.Random(0)
    for kill in range(2):
        process, before = start(tmp_path, *arguments), finished(path)
        while finished(path) < before + 1 + kill % 2 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert finished(path) >= before + 1
    process = start(tmp_path, *arguments)
    process.communicate(timeout=300)
    assert process.returncode == 0
    made = [(line["name"], line["seed"]) for line in lines_of(path)[1:]]
    assert sorted(made) == sorted((name, seed) for name in ("tiny", "b") for seed in range(3))


@pytest.mark.slow
def test_ctrl_c_shows_what_is_there(tmp_path: Path) -> None:
    process = start(tmp_path, "tiny", *SMALL, "--runs", "1000", "--out", "r.jsonl")
    while finished(tmp_path / "r.jsonl") < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "accuracy" in out and "resumes" in err and "Traceback" not in err
    assert finished(tmp_path / "r.jsonl") >= 2
