"""The summary of the evidence beside the recipes: which runs count, and that the stored one is up to date."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from bench_helpers import header, run, write

from fastcifar.bench.evidence import EVIDENCE, SUMMARY, evidence_summary
from fastcifar.recipes.parse import load_recipe, recipe_names
from fastcifar.recipes.schema import Data
from fastcifar.training.flops import count_flops


def test_only_full_runs_of_todays_recipe_on_the_test_images_of_its_dataset_count(tmp_path: Path) -> None:
    good = [run("mine", seed, 0.9 + 0.001 * seed) for seed in range(3)]
    recipes = {
        "mine": load_recipe("tiny"),
        "shorter": load_recipe("tiny", "training.epochs=1"),
        "held": dataclasses.replace(load_recipe("hlb"), data=Data(holdout=5000)),
    }
    write(tmp_path / "a.jsonl", header("mine"), [*good, run("mine", 9, 0.1, fraction=0.5), run("mine", 8, None)])
    others = header(*recipes, recipes=recipes)
    write(tmp_path / "b.jsonl", others, [run("shorter", 5, 0.1), run("held", 5, 0.1), run("mine", 0, 0.1)])
    unpublished = {"name": "cats", "digest": "e", "published": False}
    write(tmp_path / "c.jsonl", header("mine", dataset=unpublished), [run("mine", 7, 0.1)])
    other = {"name": "cifar100", "digest": "f", "published": True}
    write(tmp_path / "d.jsonl", header("mine", dataset=other), [run("mine", 6, 0.1)])
    small = header("mine", dataset=other, recipes={"mine": load_recipe("quick100")})
    write(tmp_path / "e.jsonl", small, [run("mine", 6, 0.6)])
    summary = evidence_summary(tmp_path)
    assert summary["quick100"]["runs"] == 1 and summary["quick100"]["accuracy"] == 0.6
    assert summary["quick100"]["flops"] == count_flops(load_recipe("quick100"), 100).total
    assert list(summary) == recipe_names()
    assert summary["tiny"]["runs"] == 3 and summary["tiny"]["accuracy"] == pytest.approx(0.901)
    low, high = summary["tiny"]["ci95"]
    assert low < 0.901 < high
    assert summary["tiny"]["flops"] == count_flops(load_recipe("tiny")).total
    assert summary["hlb"].keys() == {"flops"}
    json.dumps(summary, allow_nan=False)


def test_the_stored_summary_is_what_the_evidence_gives() -> None:
    stored = json.loads((EVIDENCE / SUMMARY).read_text(encoding="utf-8"))
    assert stored == evidence_summary(), "rebuild it: python -m fastcifar.bench.evidence"
