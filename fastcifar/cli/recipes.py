"""`fastcifar recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from fastcifar.cli.options import AsJson, Quiet, Settings, document


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, or the path of a TOML file.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the recipes, or print one in full as TOML.

    Example: fastcifar recipes air94 > mine.toml
    """
    from fastcifar.cli.display.screen import Screen, facts
    from fastcifar.recipes.parse import load_recipe, recipe_names, recipe_to_dict, recipe_to_toml

    screen = Screen(as_json, quiet)
    if name is None:
        listed = [load_recipe(known) for known in recipe_names()]
        rows = [(item.name, item.summary) for item in listed]
        screen.result(facts(rows), [{"name": item, "summary": summary} for item, summary in rows])
        return
    from fastcifar.training.flops import count_flops, optimizer_flops

    found = load_recipe(name, *settings or ())
    counted, updates = count_flops(found), optimizer_flops(found)
    screen.result(
        f"# {counted.total:.4g} operations on CIFAR-10, {updates:.3g} more in the optimizer; "
        f"{counted.parameters:,} trained parameters.\n{recipe_to_toml(found)}".rstrip(),
        {
            **document("recipes"),
            "name": found.name,
            "summary": found.summary,
            "recipe": recipe_to_dict(found),
            "flops": counted.total,
            "optimizer_flops": updates,
            "parameters": counted.parameters,
        },
    )
