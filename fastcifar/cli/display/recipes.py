"""Terminal output of recipes: the list, with the results kept beside the recipes and the time expected here."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fastcifar.cli.display.screen import duration, facts


def recipe_table(recipes: list[dict[str, Any]]) -> Table:
    """What each item of `recipes --json` is, and what its runs reached where there are any."""
    return facts((recipe["name"], "\n".join(filter(None, (recipe["summary"], results(recipe))))) for recipe in recipes)


def results(recipe: dict[str, Any]) -> str:
    """Accuracy with its interval, number of runs, FLOPs and expected time of a run; each where it is known."""
    parts = []
    if recipe["accuracy"] is not None:
        interval = ""
        if recipe["ci95"] is not None:
            interval = " (95 % interval {:.2f} to {:.2f})".format(*(100 * bound for bound in recipe["ci95"]))
        count = f"{recipe['runs']:,} run{'' if recipe['runs'] == 1 else 's'}"
        parts.append(f"{100 * recipe['accuracy']:.2f} %{interval} on {recipe['dataset']} in {count}")
    if recipe["flops"] is not None:
        parts.append(f"{recipe['flops']:.2e} FLOPs")
    if expected := recipe["expected"]:
        whose = "" if expected["recipe"] == recipe["name"] else f" at the rate of {expected['recipe']}"
        parts.append(f"about {duration(expected['train_s'])} on {expected['device']}{whose}")
    return ", ".join(parts)
