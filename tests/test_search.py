"""A search: what it runs next, how it judges, what survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call

from fastcifar import bench, data, recipe, search
from fastcifar.errors import DataError, UsageError

CANDIDATES = """
[good]
optimizer.filters.lr = 0.2
[same]
optimizer.filters.lr = 0.3
[slow]
optimizer.filters.lr = 0.4
[bad]
network = { widths = [8, 8, 8] }
"""
# The time of a run at full length, and the share of the base's time that one needs to the same error.
WORLD = {"base": (100.0, 1.0), "good": (90.0, 0.8), "same": (100.0, 1.02), "slow": (140.0, 1.4), "bad": (60.0, 3.0)}


def prepared(tmp_path: Path, seconds: float, content: str = CANDIDATES) -> search.Search:
    path = tmp_path / "candidates.toml"
    path.write_text(content)
    chosen = search.candidates(path, recipe.load("tiny"))
    plan = bench.Plan({}, data.load("shapes"), torch.device("cpu"), range(1000, 2000))
    return search.prepare(chosen, plan, "eager", seconds / 60)


def imagined(name: str, seed: int) -> dict[str, Any]:
    """A run in a world where the base's error falls with the root of its time, and a seed shifts all alike."""
    candidate, _, fraction = name.partition("@")
    full, cost = WORLD[candidate]
    train_s = full * float(fraction)
    error = 0.1 * (train_s / cost / 100) ** -0.5 * (1 + 0.01 * (seed % 3))
    run = {"name": name, "recipe": "tiny", "seed": seed, "diverged": False, "accuracy": 1 - error}
    return {**run, "train_s": train_s, "wall_s": train_s + 1, "at": float(seed)}


def simulate(asked: search.Search) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    while (task := asked.next_task(runs)) is not None:
        runs.append(imagined(*task))
    return runs


def test_the_time_is_kept_and_the_best_is_found(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 3000)
    runs = simulate(asked)
    assert 0.8 * 3000 < sum(run["wall_s"] for run in runs) <= 3000
    counts = Counter(run["name"] for run in runs)
    assert {name.partition("@")[0] for name in counts if name.endswith("@0.25")} == set(WORLD)
    assert {name for name in counts if name.endswith("@0.5")} == {"base@0.5", "good@0.5", "same@0.5"}
    assert {name for name in counts if name.endswith("@1")} == {"base@1", "good@1"}
    assert len({counts[name] for name in ("base@0.25", "bad@0.25", "slow@0.25")}) == 1
    rungs = asked.rungs(runs)
    assert [rung.fraction for rung in rungs] == [0.25, 0.5, 1.0]
    assert [each.name for each in rungs[0].standings] == ["base", "good", "same", "slow", "bad"]
    for rung in rungs:
        for each in rung.standings[1:]:
            assert each.cost == pytest.approx(WORLD[each.name][1], rel=1e-6)
        assert len({each.runs for each in rung.standings}) == 1


def test_what_comes_next_follows_from_the_file_alone(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 1500)
    runs = simulate(asked)
    assert len({(run["name"], run["seed"]) for run in runs}) == len(runs)
    for made in range(len(runs)):
        assert asked.next_task(runs[:made]) == (runs[made]["name"], runs[made]["seed"])


def test_too_little_time_is_not_overrun(tmp_path: Path) -> None:
    runs = simulate(prepared(tmp_path, 60))
    assert sum(run["wall_s"] for run in runs[:-1]) < 60
    asked = prepared(tmp_path, 200)
    runs = simulate(asked)
    assert [rung.fraction for rung in asked.rungs(runs)] == [0.25]
    assert sum(run["wall_s"] for run in runs) <= 200


def test_what_diverges_comes_last_and_an_unlearning_base_is_told(tmp_path: Path) -> None:
    asked = prepared(tmp_path, 1000)
    lines = [imagined(search.at(name, 0.25), 1000) for name in asked.names] + [imagined("base@0.5", 1000)]
    lines[1].update(diverged=True, accuracy=None, train_s=None)
    standings = asked.rung(lines, 0).standings
    assert [each.name for each in standings] == ["base", "same", "slow", "bad", "good"]
    lines[-1]["accuracy"] = lines[0]["accuracy"]
    assert all(each.cost is None for each in asked.rung(lines, 0).standings)
    assert [each.name for each in asked.rung(lines, 0).standings][1:3] == ["slow", "same"], "by accuracy then"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[a", "not valid TOML"),
        ("", "holds no candidates"),
        ("a = 1", r"'a' must be a table \[a\]"),
        ("[base]\ntraining.epochs = 2", "a candidate is called 'base'"),
        ("['a b']\ntraining.epochs = 2", "is no name"),
        ("[a]\ntraining.epoch = 2", "candidate 'a' of .*'training.epoch'; did you mean 'epochs'"),
        ("[a]\ntraining.epochs = 4.0", "'a' is the same recipe as 'base'"),
        ("[a]\ntraining.epochs = 2.0\n[b]\ntraining.epochs = 2", "'b' is the same recipe as 'a'"),
    ],
)
def test_candidates_that_cannot_be(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prepared(tmp_path, 60, content)
    with pytest.raises(DataError, match="cannot be read"):
        search.candidates(tmp_path / "missing.toml", recipe.load("tiny"))


def test_candidates_hold_what_differs_and_are_judged_on_images_kept_back(tmp_path: Path) -> None:
    plan = prepared(tmp_path, 60).plan
    assert plan.recipes["bad@0.5"].network.widths == (8, 8, 8)
    assert plan.recipes["bad@0.5"].training.epochs == recipe.load("tiny").training.epochs / 2
    assert {each.data.holdout for each in plan.recipes.values()} == {search.HOLDOUT}


def test_a_search_is_killed_goes_on_and_is_reported(call: Call, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text("[slow]\noptimizer.filters.lr = 0.02\n[small]\nnetwork.widths = [4, 4, 4]\n")
    sets = ["training.epochs=0.12", "evaluation.views=none", "network.widths=[8, 8, 8]", "network.whiten.images=500"]
    arguments = ["tiny", "few.toml", "--dataset", "shapes", "--threads", "1", *(f"--set={each}" for each in sets)]
    command = [sys.executable, "-m", "fastcifar", "search", *arguments, "--minutes", "10"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    path = tmp_path / "search.jsonl"
    while (not path.exists() or path.read_bytes().count(b"\n") < 4) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len(before) >= 3
    spent = sum(run["wall_s"] for run in before)
    done = call("search", *arguments, "--minutes", f"{(spent + 25) / 60}", "--json")
    assert done.code == 0, done.err
    assert done.document["runs"][: len(before)] == before
    first = done.document["rungs"][0]
    assert first["fraction"] == 0.25 and {each["name"] for each in first["standings"]} == {"base", "slow", "small"}
    assert done.document["remark"]
    again = call("search", *arguments, "--minutes", f"{spent / 60}")
    assert again.code == 0 and "0.25 of the epochs" in again.out
    shown = call("bench", "--report", "search.jsonl", "--markdown")
    assert shown.code == 0 and "| slow@0.25 against base@0.25 |" in shown.out
    other = call("search", "tiny", "few.toml", "--dataset", "shapes", "--minutes", "1")
    assert other.code == 2 and "another bench" in other.err
