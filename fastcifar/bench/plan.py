"""A bench: many runs of several recipes with the same seeds, interleaved, so that drift of the machine affects all.

The pending runs are those that no results file holds yet: a bench that was killed resumes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastcifar.bench.code_digest import code_digest
from fastcifar.bench.records import Header, RunRecord, Task, same_recipe
from fastcifar.bench.report import Report, summarize
from fastcifar.data.dataset import Dataset
from fastcifar.errors import UsageError
from fastcifar.recipes.parse import bind_overrides, load_recipe, recipe_title
from fastcifar.recipes.schema import Recipe
from fastcifar.system.device import device_name
from fastcifar.training.engine import Engine, bind_engines
from fastcifar.version import versions


@dataclass(frozen=True)
class BenchPlan:
    """What a bench is to do: recipes and engines by name; the others are compared with the first recipe."""

    recipes: Mapping[str, Recipe]
    engines: Mapping[str, Engine]
    dataset: Dataset
    device: torch.device
    seeds: range
    target: float | None = None  # percent
    until_clear: bool = False
    margin: float = 0.1  # percentage points

    def header(self) -> Header:
        """What all runs in a results file share."""
        return Header(
            versions()["fastcifar"],
            code_digest(),
            str(torch.__version__),
            device_name(self.device),
            torch.get_num_threads() if self.device.type == "cpu" else None,
            {name: self.engines[name].name for name in self.recipes},
            {name: self.precision(name) for name in self.recipes},
            {"name": self.dataset.name, "digest": self.dataset.digest, "published": self.dataset.published},
            dict(self.recipes),
        )

    def precision(self, name: str) -> str:
        """The precision a recipe trains in on this device: its own on CUDA, float32 elsewhere."""
        return self.recipes[name].training.precision if self.device.type == "cuda" else "float32"

    def recipe(self, task: Task) -> Recipe:
        """The recipe of a run, shortened to the run's fraction of its length."""
        recipe = self.recipes[task.name]
        training = dataclasses.replace(recipe.training, epochs=recipe.training.epochs * task.fraction)
        return dataclasses.replace(recipe, training=training)

    def report(self, runs: list[RunRecord]) -> Report:
        """The report of the runs so far."""
        return summarize(runs, list(self.recipes), self.target, self.margin if self.until_clear else None)


def parse_contenders(
    arguments: Iterable[str], settings: Iterable[str], engines: Iterable[str] = ()
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """The recipes and the engines' names of a command line: `air94`, `mine.toml` or `wide=air94`, with settings and
    engines for one name or for all.

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
    overrides = bind_overrides(settings, list(files))
    recipes = {name: load_recipe(file, *overrides[name]) for name, file in files.items()}
    engine_names = bind_engines(engines, list(files), "auto")
    for i, (name, recipe) in enumerate(recipes.items()):
        for other in list(recipes)[:i]:
            if same_recipe(recipe, recipes[other]) and engine_names[name] == engine_names[other]:
                raise UsageError(f"'{other}' and '{name}' are the same recipe with the same settings.")
    return recipes, engine_names


def check_name(name: str, where: str) -> None:
    """Raise UsageError unless a recipe can be called so in a results file."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"'{name}' in '{where}' is no name: use letters, digits, dots and dashes.")


def pending_runs(plan: BenchPlan, done: set[Task], rank: int = 0, ranks: int = 1) -> list[Task]:
    """The runs that one of several ranks has still to make, in order: seed by seed, the recipes forward and backward
    in turn.

    All recipes of a seed fall to one rank, so that what is compared ran on the same device.
    """
    open_seeds = [seed for seed in plan.seeds if any(Task(name, seed) not in done for name in plan.recipes)]
    tasks: list[Task] = []
    for seed in open_seeds[rank::ranks]:
        names = list(plan.recipes) if seed % 2 == 0 else list(plan.recipes)[::-1]
        tasks += [Task(name, seed) for name in names if Task(name, seed) not in done]
    return tasks


def default_path(recipes: Iterable[str]) -> Path:
    """The results file of a bench without --out."""
    return Path("bench") / f"{'-'.join(recipes)}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
