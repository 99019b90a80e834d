"""Many runs of several recipes with the same seeds, by turns, so that drift of the machine hits all alike.

What remains to be done is what no results file holds yet: a bench that was killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastcifar.bench.report import Report, summarize
from fastcifar.bench.results import Record, code_digest
from fastcifar.data.dataset import Dataset
from fastcifar.errors import UsageError
from fastcifar.recipes.parse import bind_overrides, load_recipe, recipe_title, recipe_to_dict
from fastcifar.recipes.schema import Recipe
from fastcifar.system.device import device_name
from fastcifar.training.engine import EAGER, Engine, bind_engines
from fastcifar.version import versions


@dataclass(frozen=True)
class Plan:
    """What a bench is to do: recipes by name, the first the one that the others are held against."""

    recipes: dict[str, Recipe]
    dataset: Dataset
    device: torch.device
    seeds: range
    target: float | None = None  # percent
    until_clear: bool = False
    margin: float = 0.1  # percentage points
    engines: Mapping[str, Engine] = field(default_factory=dict)  # by the name of the recipe; eager where none is given

    def header(self) -> Record:
        """What all runs in a results file share."""
        return {
            "version": versions()["fastcifar"],
            "code": code_digest(),
            "torch": str(torch.__version__),
            "device": device_name(self.device),
            "engine": {name: self.engine(name).name for name in self.recipes},
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "dataset": {"name": self.dataset.name, "digest": self.dataset.digest},
            "recipes": {name: recipe_to_dict(each) for name, each in self.recipes.items()},
        }

    def engine(self, name: str) -> Engine:
        """How the steps of a recipe are executed."""
        return self.engines.get(name, EAGER)

    def report(self, runs: list[Record]) -> Report:
        """What the runs so far say."""
        return summarize(runs, list(self.recipes), self.target, self.margin if self.until_clear else None)


def named(
    arguments: Iterable[str], settings: Iterable[str], engines: Iterable[str] = ()
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """The recipes and engines of a command line: `air94`, `mine.toml` or `wide=air94`, with settings and engines bound
    to names or for all.

    Raises UsageError for a name given twice, and for two names of one and the same recipe on the same engine.
    """
    files: dict[str, str] = {}
    for argument in arguments:
        name, equals, file = argument.rpartition("=")
        name = name if equals else recipe_title(file)
        if name in files:
            raise UsageError(f"'{name}' is there twice: name the second one, for example other={file}.")
        check_name(name, argument)
        files[name] = file
    bound = bind_overrides(settings, list(files))
    found = {name: load_recipe(file, *bound[name]) for name, file in files.items()}
    asked = bind_engines(engines, list(files), "auto")
    for i, (name, each) in enumerate(found.items()):
        for other in list(found)[:i]:
            if same(each, found[other]) and asked[name] == asked[other]:
                raise UsageError(f"'{other}' and '{name}' are the same recipe with the same settings.")
    return found, asked


def check_name(name: str, where: str) -> None:
    """Raise UsageError for a name of a recipe that is none."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"'{name}' in '{where}' is no name: use letters, digits, dots and dashes.")


def same(a: Recipe, b: Recipe) -> bool:
    """Whether two recipes differ in nothing but their names and summaries."""
    return dataclasses.replace(a, name="", summary="") == dataclasses.replace(b, name="", summary="")


def remaining(plan: Plan, runs: list[Record], rank: int = 0, ranks: int = 1) -> list[tuple[str, int]]:
    """The runs still to be made by one of several ranks, in order: seed by seed, the recipes by turns.

    All recipes of a seed fall to one rank, so that what is compared was made on the same device.
    """
    done = {(run["name"], run["seed"]) for run in runs}
    open_seeds = [seed for seed in plan.seeds if any((name, seed) not in done for name in plan.recipes)]
    tasks = []
    for seed in open_seeds[rank::ranks]:
        order = list(plan.recipes) if seed % 2 == 0 else list(reversed(plan.recipes))
        tasks += [(name, seed) for name in order if (name, seed) not in done]
    return tasks


def default_path(recipes: Iterable[str]) -> Path:
    """Where results go when nothing else is asked."""
    return Path("bench") / f"{'-'.join(recipes)}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
