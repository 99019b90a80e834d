"""`fastcifar recipes`: the list with results, and one recipe as TOML and with its FLOPs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from helpers import Call

from fastcifar.bench.rates import leave_rate
from fastcifar.recipes import parse
from fastcifar.recipes.parse import load_recipe, recipe_from_dict, recipe_names
from fastcifar.training.flops import count_flops

EVIDENCE: dict[str, dict[str, Any]] = {
    "air94": {"flops": 1.45e14, "accuracy": 0.9401, "ci95": [0.9399, 0.9403], "runs": 50},
    "tiny": {"flops": 7.05e12, "accuracy": 0.71234, "ci95": None, "runs": 1},
    "hlb": {"flops": 8.12e14},
}


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built-in recipes in a folder of their own, with a summary of results beside them."""
    copy = tmp_path / "recipes"
    (copy / "evidence").mkdir(parents=True)
    for path in parse.FOLDER.glob("*.toml"):
        (copy / path.name).write_text(path.read_text())
    monkeypatch.setattr(parse, "FOLDER", copy)
    monkeypatch.setenv("COLUMNS", "140")  # no line is broken
    summary = copy / "evidence" / "summary.json"
    summary.write_text(json.dumps(EVIDENCE))
    return summary


def test_the_list_shows_results_where_there_are_any(call: Call, evidence: Path) -> None:
    listed = {item["name"]: item for item in call("recipes", "--json").document}
    assert list(listed) == recipe_names()
    for name, item in listed.items():
        nothing = dict.fromkeys(("flops", "accuracy", "ci95", "runs", "expected"))
        facts = {"summary": load_recipe(name).summary, "dataset": "cifar100" if name.endswith("100") else "cifar10"}
        assert item == {"name": name, **facts, **nothing, **EVIDENCE.get(name, {})}
    lines = [line.strip() for line in call("recipes").out.splitlines()]
    assert "94.01 % (95 % interval 93.99 to 94.03) on cifar10 in 50 runs, 1.45e+14 FLOPs" in lines
    assert "71.23 % on cifar10 in 1 run, 7.05e+12 FLOPs" in lines and "8.12e+14 FLOPs" in lines
    assert len(lines) == len(listed) + len(EVIDENCE)


def test_the_list_without_results(call: Call, evidence: Path) -> None:
    evidence.unlink()
    lines = call("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(item["runs"] is None for item in call("recipes", "--json").document)


def test_the_time_expected_by_earlier_runs_here(call: Call, evidence: Path) -> None:
    run = {"engine": "graph", "threads": 8, "at": 2.0, "other_load": None, "train_s": 2.0, "flops": 2e14}
    leave_rate({**run, "device": "NVIDIA H100", "recipe": "air94"})
    leave_rate({**run, "device": "NVIDIA H100", "recipe": "mine", "flops": 4e14, "at": 3.0})
    listed = {item["name"]: item["expected"] for item in call("recipes", "--json").document}
    facts = {"device": "NVIDIA H100", "engine": "graph", "threads": 8}
    assert listed["air94"] == {"train_s": pytest.approx(1.45), "recipe": "air94", **facts}
    assert listed["hlb"] == {"train_s": pytest.approx(4.06), "recipe": "mine", **facts}
    assert listed["quick90"] is None, "its FLOPs are not known"
    lines = [line.strip() for line in call("recipes").out.splitlines()]
    assert "8.12e+14 FLOPs, about 4.06 s on NVIDIA H100 at the rate of mine" in lines
    assert lines[1].endswith("in 50 runs, 1.45e+14 FLOPs, about 1.45 s on NVIDIA H100")


def test_a_printed_recipe_is_a_recipe_file(call: Call) -> None:
    printed = call("recipes", "air94", "--set", "training.epochs=4")
    Path("mine.toml").write_text(printed.out)
    assert tomllib.loads(printed.out)["training"]["epochs"] == 4.0
    mine = call("recipes", "mine.toml", "--json").document
    assert recipe_from_dict({**mine["recipe"], "name": "air94"}, "here") == load_recipe("air94", "training.epochs=4")
    assert f"# {mine['flops']:.4g} FLOPs on cifar10, " in printed.out
    assert mine["optimizer_flops"] > 0 and mine["parameters"] > 0
    assert "FLOPs on cifar100, " in call("recipes", "quick100").out


def test_flops_leave_out_images_that_are_held_out(call: Call) -> None:
    """Fault B1: they were those of a run on all training images, evaluated on the test images."""
    settings = ["training.batch_size=500", "training.epochs=10", "data.resolution=[[0, 32]]"]
    whole = count_flops(load_recipe("tiny", *settings))
    options = [f"--set={setting}" for setting in settings]
    assert call("recipes", "tiny", *options, "--json").document["flops"] == whole.total
    held_out = call("recipes", "tiny", *options, "--set", "data.holdout=5000", "--json").document
    assert held_out["flops"] == pytest.approx(
        45_000 / 50_000 * whole.training + 5_000 / 10_000 * whole.evaluation, rel=1e-3
    )
