"""`fastcifar recipes`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fastcifar.cli.completion import complete_recipe
from fastcifar.cli.options import AsJson, Quiet, Settings, document


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe, or the path of a TOML file.", autocompletion=complete_recipe)
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the recipes with their results, or print one in full as TOML.

    Example: fastcifar recipes air94 > mine.toml
    """
    from fastcifar.cli.display.recipes import recipe_table
    from fastcifar.cli.display.screen import Screen

    screen = Screen(as_json, quiet)
    if name is None:
        listed = list_recipes()
        screen.result(recipe_table(listed), listed)
    else:
        described, toml = describe_recipe(name, settings or [])
        screen.result(
            f"# {described['flops']:.4g} FLOPs on {described['dataset']}, {described['optimizer_flops']:.3g} more in "
            f"the optimizer; {described['parameters']:,} trained parameters.\n{toml}".rstrip(),
            described,
        )


def list_recipes() -> list[dict[str, Any]]:
    """The built-in recipes with the results in their evidence, and the time expected on this machine; None where there
    are none. Without torch."""
    from fastcifar.bench.rates import expected_time, kept_rates
    from fastcifar.recipes.parse import intended_dataset, load_recipe, recipe_names, stored_evidence

    evidence, rates = stored_evidence(), kept_rates()
    return [
        {
            "name": name,
            "summary": load_recipe(name).summary,
            "dataset": intended_dataset(name)[0],
            **{key: evidence.get(name, {}).get(key) for key in ("flops", "accuracy", "ci95", "runs")},
            "expected": expected_time(name, evidence.get(name, {}).get("flops"), rates),
        }
        for name in recipe_names()
    ]


def describe_recipe(name: str, settings: list[str]) -> tuple[dict[str, Any], str]:
    """The JSON document of one recipe on the dataset that it is for, and the recipe as TOML."""
    from fastcifar.recipes.parse import intended_dataset, load_recipe, recipe_to_dict, recipe_to_toml
    from fastcifar.training.flops import count_flops, optimizer_flops

    recipe = load_recipe(name, *settings)
    dataset, classes = intended_dataset(recipe.name)
    flops = count_flops(recipe, classes)
    described = {
        **document("recipes"),
        "name": recipe.name,
        "summary": recipe.summary,
        "recipe": recipe_to_dict(recipe),
        "dataset": dataset,
        "flops": flops.total,
        "optimizer_flops": optimizer_flops(recipe, classes),
        "parameters": flops.parameters,
    }
    return described, recipe_to_toml(recipe)
