"""A search among candidate settings within a given time: short runs for all, longer runs for the best.

Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016) over the length of runs, in rungs of about equal time. In a rung the base and the surviving candidates are
interleaved with the same seeds and evaluated on training images held out. What comes next follows from the finished
runs, with several processes also from those in flight, so a search that was killed resumes. Candidates are ranked by
`relative_cost`.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastcifar.bench.plan import BenchPlan, check_name
from fastcifar.bench.records import RunRecord, Task, same_recipe, wall_clock
from fastcifar.bench.rungs import BASE, FRACTIONS, Ladder, Made, by_task, full_run_seconds
from fastcifar.data.dataset import Dataset, holdout_split
from fastcifar.errors import DataError, UsageError
from fastcifar.model.network import create_network
from fastcifar.recipes.parse import merge_changes
from fastcifar.recipes.schema import Recipe
from fastcifar.system.text import read_text
from fastcifar.training.engine import Engine

HOLDOUT = 5000  # training images to evaluate on, where the base holds none out; of few images a tenth


@dataclass(frozen=True)
class Round:
    """A rung's runs with one seed, in their order: all of them, those to be begun, those in flight, and the finished
    ones that are of this rung's time."""

    tasks: list[Task]
    open: list[Task]
    in_flight: list[Task]
    finished: list[RunRecord]  # without those that an earlier rung made
    begun: bool  # by a run that no other rung has, too
    full_run_s: float  # seconds of a run at full length, by this round's runs; 0 where there are none


def budget(seconds_left: float, rungs_left: int, rounds: int) -> float:
    """Seconds that a rung may take up to the end of its next round: an equal share of what is left; for its first
    round all that is left."""
    return seconds_left / rungs_left if rounds else seconds_left


@dataclass(frozen=True)
class Search(Ladder):
    """What is to be searched: a bench of the base and the candidates, and the seconds on the clock it may take."""

    plan: BenchPlan = field(kw_only=True)  # the base first
    seconds: float = field(kw_only=True)

    def next_task(self, runs: list[RunRecord], in_flight: Collection[Task] = ()) -> Task | None:
        """The run to begin next, beside those in flight; None where these have to end before, and where the search is
        over.

        A rung has as many rounds as fit into its budget. A round is only begun where all of it is expected to fit,
        judged by the runs before, and then finished. A rung begins when the one before is complete.
        """
        made = by_task(runs)
        if wall_clock(runs) >= self.seconds:
            return None
        left, full_run_s = self.seconds, 0.0
        counted: set[Task] = set()
        names = list(self.names)
        for number in range(len(FRACTIONS)):
            if len(names) == 1:
                return None
            *before, current = self.rounds(made, in_flight, number, names, counted)
            waiting = [task for each in before for task in each.in_flight]
            complete = [each for each in before if not each.in_flight]
            full_run_s = complete[-1].full_run_s if complete else full_run_s
            spent = wall_clock(run for each in before for run in each.finished)
            expected = (full_run_s or full_run_seconds(runs)) * self.length(waiting + current.tasks)
            go_on = current.begun and full_run_s > 0  # the very first round is judged by its own runs
            if go_on or spent + expected <= budget(left, len(FRACTIONS) - number, len(before)):
                return current.open[0]
            if waiting or not complete:
                return None
            left -= spent
            names = self.rung(made, number, names).survivors
        return None

    def rounds(
        self, made: Made, in_flight: Collection[Task], number: int, names: list[str], counted: set[Task]
    ) -> list[Round]:
        """A rung's rounds up to the first that has runs to be begun. `counted` holds the runs of earlier rungs; those
        of the rounds before the last one are added."""
        rounds: list[Round] = []
        for seed in self.seeds:
            tasks = self.round_tasks(number, names, seed)
            runs = [made[task] for task in tasks if task in made]
            own = {task for task in tasks if task.fraction == FRACTIONS[number]} - counted
            current = Round(
                tasks,
                [task for task in tasks if task not in made and task not in in_flight],
                [task for task in tasks if task in in_flight],
                [run for run in runs if run.task not in counted],
                any(task in made or task in in_flight for task in own),
                full_run_seconds(runs),
            )
            rounds.append(current)
            if current.open:
                return rounds
            counted.update(tasks)
        raise UsageError("The search has used up all seeds: begin another with a smaller --seed.")


def load_candidates(path: Path, base: Recipe) -> dict[str, Recipe]:
    """The base and the candidates of a TOML file, which has a table with what differs from the base for each.

    Raises DataError for a file that cannot be read; UsageError for one that is not valid TOML, for a name that is none,
    for settings that no recipe has, and for two that are the same.
    """
    try:
        tree = tomllib.loads(read_text(path))
    except OSError as error:
        raise DataError(f"Candidates file {path} cannot be read: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"Candidates file {path} is not valid TOML: {error}.") from None
    recipes = {BASE: base}
    for name, changes in tree.items():
        recipes[name] = candidate(name, changes, recipes, path)
    if len(recipes) == 1:
        raise UsageError(f"{path} holds no candidates: give each a table [name] with what differs from the base.")
    return recipes


def candidate(name: str, changes: Any, recipes: Mapping[str, Recipe], path: Path) -> Recipe:
    """One candidate, checked against the base and the candidates before it."""
    base = recipes[BASE]
    if not isinstance(changes, Mapping):
        raise UsageError(f"In {path}, '{name}' must be a table [{name}] that holds what differs from the base.")
    check_name(name, str(path))
    if name == BASE:
        raise UsageError(f"In {path}, a candidate is called '{BASE}', which the recipe itself is: rename it.")
    changed = merge_changes(base, changes, f"candidate '{name}' of {path}")
    if changed.data.holdout != base.data.holdout:
        raise UsageError(f"In {path}, '{name}' sets data.holdout: all are evaluated on the same images; use --set.")
    for other, recipe in recipes.items():
        if same_recipe(changed, recipe):
            raise UsageError(f"In {path}, '{name}' is the same recipe as '{other}'.")
    return changed


def plan_search(
    recipes: Mapping[str, Recipe],
    dataset: Dataset,
    device: torch.device,
    engine: Engine,
    minutes: float,
    first_seed: int = 1000,
    ranks: int = 1,
) -> Search:
    """The search among these recipes, the base first.

    Raises UsageError for a network that cannot be built: now, not at its first run.
    """
    images = len(dataset.train.images)
    holdout = recipes[BASE].data.holdout or min(HOLDOUT, images // 10)
    holdout_split(dataset, holdout)  # raises where it leaves no images to train on
    held_out = {}
    for name, recipe in recipes.items():
        create_network(recipe.network, len(dataset.classes))
        held_out[name] = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, holdout=holdout))
    seeds = range(first_seed, 2**63)
    plan = BenchPlan(held_out, dict.fromkeys(recipes, engine), dataset, device, seeds)
    return Search(list(recipes), seeds, holdout, dataset.name, ranks, plan=plan, seconds=60 * minutes)
