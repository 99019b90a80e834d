"""The evidence beside the recipes, summarized: `python -m fastcifar.bench.evidence` rewrites `summary.json`.

The results files in `recipes/evidence` hold runs of the recipes that come with the program. `fastcifar recipes` shows
their summary, which it reads without torch.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fastcifar.bench.code_digest import PACKAGE
from fastcifar.bench.records import RunRecord, same_recipe
from fastcifar.bench.report import summarize
from fastcifar.bench.results import load
from fastcifar.recipes.parse import intended_dataset, load_recipe, recipe_names

EVIDENCE = PACKAGE / "recipes" / "evidence"
SUMMARY = "summary.json"


def evidence_summary(folder: Path = EVIDENCE) -> dict[str, dict[str, Any]]:
    """Accuracy (mean, 95 % interval), runs and FLOPs by recipe, of the results files in a folder.

    Only full runs count that were evaluated on the test images of the dataset that a recipe is for, as published, and
    whose recipe is today's of that name; a recipe without any has FLOPs alone. Loads torch, which counts them.
    """
    from fastcifar.training.flops import count_flops

    runs = evidence_runs(folder)
    report = summarize(runs, recipe_names(), None)
    summaries = {summary.name: summary for summary in report.recipes}
    document: dict[str, dict[str, Any]] = {}
    for name in recipe_names():
        _, classes = intended_dataset(name)
        entry: dict[str, Any] = {"flops": count_flops(load_recipe(name), classes).total}
        summary = summaries.get(name)
        if summary and summary.accuracy:
            ci95 = list(summary.accuracy.ci95) if summary.accuracy.ci95 else None
            entry |= {"accuracy": summary.accuracy.mean, "ci95": ci95, "runs": summary.runs - summary.diverged}
        document[name] = entry
    return document


def evidence_runs(folder: Path) -> list[RunRecord]:
    """The runs that count, each under the name of its recipe; of a seed that several files hold, the first."""
    runs: dict[tuple[str, int], RunRecord] = {}
    known = recipe_names()
    parts = [load(path) for path in sorted(folder.glob("*.jsonl"))]
    for part in parts:
        for run in part.runs:
            recipe = part.header.recipes[run.name]
            if not part.header.dataset["published"] or recipe.data.holdout or run.fraction != 1:
                continue
            if recipe.name not in known or part.header.dataset["name"] != intended_dataset(recipe.name)[0]:
                continue
            if same_recipe(recipe, load_recipe(recipe.name)):
                runs.setdefault((recipe.name, run.seed), dataclasses.replace(run, name=recipe.name))
    return list(runs.values())


def main() -> None:
    """Rewrite the summary."""
    from fastcifar.system.files import write_text

    write_text(EVIDENCE / SUMMARY, json.dumps(evidence_summary(), indent=2) + "\n")


if __name__ == "__main__":
    main()
