"""Count what a step launches on CUDA, without a GPU: `python tests/training/cuda/count_kernels.py [RECIPE ...]`.

For each recipe and each kind of step: PyTorch's operators, kernels, the FLOPs of convolutions and the bytes of each
sort of work. Operators are recorded over fake CUDA tensors, kernels and bytes follow by `kernel_rules`: counted, not
measured. The two figures that matter are the kernels and the bytes outside convolutions. What comes before the
device's part of a step (rates, the batch's plan) and the evaluation are not counted. PyTorch must be built with CUDA:
one for the CPU alone takes SiLU's gradient apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fake_cuda import (
    CUDA,
    Operator,
    Unavailable,
    describe_kind,
    fake_cuda,
    fake_state,
    hooked_environment,
    is_hooked,
    kinds_of_step,
    record_step,
)
from kernel_rules import SORTS, sort_of, work_of

from fastcifar.model.kernels.build import private_folder
from fastcifar.recipes.parse import recipe_names
from fastcifar.training.engine import choose_engine


def count(operators: Iterable[Operator]) -> dict[str, Any]:
    """The sums over a step: `operators` (those that reach the device), `kernels`, `bytes`, `bytes_outside`
    (convolutions), `flops` (of convolutions), and `by_sort` with kernels and bytes."""
    by_sort = {sort: {"kernels": 0, "bytes": 0} for sort in SORTS}
    launched = flops = 0
    for op in operators:
        work = work_of(op)
        launched += work.kernels > 0
        flops += work.flops
        by_sort[sort_of(op)]["kernels"] += work.kernels
        by_sort[sort_of(op)]["bytes"] += work.bytes
    moved = sum(each["bytes"] for each in by_sort.values())
    return {
        "operators": launched,
        "kernels": sum(each["kernels"] for each in by_sort.values()),
        "bytes": moved,
        "bytes_outside": moved - by_sort["convolution"]["bytes"],
        "flops": flops,
        "by_sort": by_sort,
    }


def by_operator(operators: Iterable[Operator]) -> list[dict[str, Any]]:
    """Kernels and bytes of a step by sort, phase and operator, those that move most first."""
    rows: dict[tuple[str, str, str], dict[str, int]] = defaultdict(lambda: {"calls": 0, "kernels": 0, "bytes": 0})
    for op in operators:
        work = work_of(op)
        if work.kernels:
            row = rows[sort_of(op), op.phase or "", op.name]
            row["calls"] += 1
            row["kernels"] += work.kernels
            row["bytes"] += work.bytes
    named = [{"sort": sort, "phase": phase, "operator": name, **row} for (sort, phase, name), row in rows.items()]
    return sorted(named, key=lambda row: -int(row["bytes"]))


def count_recipe(recipe: str, engine: str) -> list[dict[str, Any]]:
    """The counts of each kind of step of a recipe, with its `kind` in words and how many `steps` a run has of it."""
    with fake_cuda():
        state = fake_state(recipe)
        choose_engine(engine, CUDA).install(state)
        counts = []
        for steps in kinds_of_step(state):
            operators = record_step(state, steps[0])
            words = {"recipe": recipe, "kind": describe_kind(state, steps[0]), "steps": len(steps)}
            counts.append({**words, **count(operators), "by_operator": by_operator(operators)})
    return counts


def whole_run(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the steps of a run."""
    steps = sum(each["steps"] for each in counts)

    def mean(pick: Any) -> float:
        return float(sum(pick(each) * each["steps"] for each in counts) / steps)

    return {
        "recipe": counts[0]["recipe"],
        "kind": "mean of a run",
        "steps": steps,
        **{key: mean(lambda each, key=key: each[key]) for key in ("operators", "kernels", "bytes_outside", "flops")},
        "by_sort": {sort: {"bytes": mean(lambda each, sort=sort: each["by_sort"][sort]["bytes"])} for sort in SORTS},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one row a kind of step; bytes in MB."""
    heads = ["recipe", "kind of step", "steps", "operators", "kernels", "GFLOP", "MB outside convolutions", *SORTS]
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2)]
    for row in rows:
        figures = [row["flops"] / 1e9, row["bytes_outside"] / 1e6]
        figures += [row["by_sort"][sort]["bytes"] / 1e6 for sort in SORTS]
        counted = [f"{row[key]:.0f}" for key in ("steps", "operators", "kernels")]
        lines.append([row["recipe"], row["kind"], *counted, *(f"{figure:,.0f}" for figure in figures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Count the recipes named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="Recipes to count; all where none is named.")
    parser.add_argument("--engine", choices=("eager", "compiled"), default="eager", help="Whose kernels run.")
    parser.add_argument("--json", action="store_true", help="Print JSON, with the counts of each operator.")
    options = parser.parse_args()
    if not is_hooked():
        try:
            environment = hooked_environment(private_folder())
        except Unavailable as reason:
            raise SystemExit(f"Nothing can be counted here: {reason}.") from None
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    counts = [count_recipe(recipe, options.engine) for recipe in options.recipes or recipe_names()]
    if options.json:
        print(json.dumps([row for rows in counts for row in rows]))
    else:
        print(table([row for rows in counts for row in (*rows, whole_run(rows))]))


if __name__ == "__main__":
    main()
