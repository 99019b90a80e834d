"""A search among candidate settings within a given time: short runs for all, longer runs for the best.

Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016) over the length of runs, in rungs of about equal time. In a rung the base and the surviving candidates are
interleaved with the same seeds and evaluated on training images held out. What comes next follows from the finished
runs, with several processes also from those in flight, so a search that was killed resumes. Candidates are ranked by
`relative_cost`.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from heapq import heapreplace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from fastcifar import stats
from fastcifar.bench.plan import BenchPlan, check_name
from fastcifar.bench.records import RunRecord, Task, same_recipe, wall_clock
from fastcifar.bench.relative_cost import error_slope, relative_cost
from fastcifar.data.dataset import Dataset, holdout_split
from fastcifar.errors import DataError, UsageError
from fastcifar.model.network import create_network
from fastcifar.recipes.parse import merge_changes
from fastcifar.recipes.schema import Recipe
from fastcifar.stats import Estimate
from fastcifar.system.text import read_text
from fastcifar.training.engine import Engine

FRACTIONS = (0.25, 0.5, 1.0)  # of the recipes' epochs, rung by rung
KEPT = 1 / 3  # of a rung's candidates, at least one, rounded up
HOLDOUT = 5000  # training images to evaluate on, where the base holds none out; of few images a tenth
BASE = "base"
Made = Mapping[Task, RunRecord]


@dataclass(frozen=True)
class CandidateResult:
    """One candidate in a rung; accuracies are fractions, times seconds.

    `cost` is its relative cost, None for the base, for one that failed, and where no slope is known.
    """

    name: str
    runs: int
    accuracy: Estimate | None  # None for one that diverged, or could not run
    train_s: Estimate | None
    cost: float | None = None
    cost_ci95: tuple[float, float] | None = None

    @property
    def sort_key(self) -> tuple[bool, float, float]:
        """The better, the smaller: by cost where it is known, else by accuracy; what failed comes last."""
        accuracy = self.accuracy.mean if self.accuracy else 0.0
        return self.accuracy is None, self.cost if self.cost is not None else math.inf, -accuracy


@dataclass(frozen=True)
class Rung:
    """All candidates of one length of runs, the base in front, then the best first."""

    fraction: float
    seeds: int
    results: list[CandidateResult]

    @property
    def survivors(self) -> list[str]:
        """The base and the candidates that go on: the best, without those that failed."""
        base, *others = self.results
        best = others[: math.ceil(KEPT * len(others))]
        return [base.name, *(each.name for each in best if each.accuracy is not None)]

    def document(self) -> dict[str, Any]:
        """What `--json` holds of it."""
        return {"fraction": self.fraction, "seeds": self.seeds, "standings": [asdict(each) for each in self.results]}


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
class Search:
    """What is to be searched: a bench of the base and the candidates, and the seconds on the clock it may take."""

    plan: BenchPlan  # the base first
    seconds: float
    holdout: int  # images that accuracies are of
    ranks: int = 1  # processes that share the runs

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
        names = list(self.plan.recipes)
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
        for seed in self.plan.seeds:
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

    def length(self, tasks: Iterable[Task]) -> float:
        """How long these runs take together, in the time of a run at full length, where each goes to the rank that is
        free first."""
        ends = [0.0] * self.ranks
        for task in tasks:
            heapreplace(ends, ends[0] + task.fraction)
        return max(ends)

    def round_tasks(self, number: int, names: list[str], seed: int) -> list[Task]:
        """A rung's runs with one seed, the base in the middle, in alternating order; behind those of the first rung
        the base at the next length, which gives the slope."""
        candidates = [name for name in names if name != BASE]
        middle = len(candidates) // 2
        order = [*candidates[:middle], BASE, *candidates[middle:]]
        tasks = [Task(name, seed, FRACTIONS[number]) for name in (order if seed % 2 == 0 else reversed(order))]
        return tasks if number else [*tasks, Task(BASE, seed, FRACTIONS[1])]

    def rung(self, made: Made, number: int, names: list[str]) -> Rung:
        """The results of a rung, by the seeds that all of its candidates finished."""
        fraction = FRACTIONS[number]
        seeds = list(
            takewhile(lambda seed: all(t in made for t in self.round_tasks(number, names, seed)), self.plan.seeds)
        )
        slope = self.slope(made, number)
        results = [self.candidate_result(made, name, fraction, seeds, slope) for name in names]
        return Rung(fraction, len(seeds), [results[0], *sorted(results[1:], key=lambda result: result.sort_key)])

    def candidate_result(
        self, made: Made, name: str, fraction: float, seeds: list[int], slope: float | None
    ) -> CandidateResult:
        """One candidate's figures, compared with the base's runs with the same seeds."""
        runs = [made[Task(name, seed, fraction)] for seed in seeds]
        accuracies = [run.accuracy for run in runs if run.accuracy is not None]
        times = [run.train_s for run in runs if run.train_s is not None]
        if not runs or len(accuracies) < len(runs):
            return CandidateResult(name, len(runs), None, None)
        accuracy, train_s = stats.estimate(accuracies), stats.estimate(times)
        pairs = completed_pairs((made[Task(BASE, run.seed, fraction)], run) for run in runs)
        if name == BASE or slope is None or not pairs:
            return CandidateResult(name, len(runs), accuracy, train_s)
        return CandidateResult(name, len(runs), accuracy, train_s, *relative_cost(pairs, slope, self.holdout))

    def slope(self, made: Made, number: int) -> float | None:
        """The slope of the base's error from the length before to this one (in the first rung to the next), over
        common seeds."""
        first = max(0, number - 1)
        short, long = FRACTIONS[first], FRACTIONS[first + 1]
        shorter = [run for task, run in made.items() if task.name == BASE and task.fraction == short]
        longer = [made.get(Task(BASE, run.seed, long)) for run in shorter]
        pairs = [(a, b) for a, b in zip(shorter, longer, strict=True) if b is not None]
        return error_slope(completed_pairs(pairs), self.holdout)

    def rungs(self, runs: list[RunRecord]) -> list[Rung]:
        """All rungs in which every survivor has a run, as far as the search has come."""
        made, reached = by_task(runs), list[Rung]()
        names = list(self.plan.recipes)
        for number in range(len(FRACTIONS)):
            rung = self.rung(made, number, names)
            if not rung.seeds or len(names) == 1:
                break
            reached.append(rung)
            names = rung.survivors
        return reached

    def first_round_seconds(self, runs: list[RunRecord]) -> float:
        """Seconds that one round of the first rung takes, judged by the runs there are."""
        return full_run_seconds(runs) * self.length(self.round_tasks(0, list(self.plan.recipes), 0))


def by_task(runs: list[RunRecord]) -> dict[Task, RunRecord]:
    """The runs by name, seed and fraction."""
    return {run.task: run for run in runs}


def completed_pairs(pairs: Iterable[tuple[RunRecord, RunRecord]]) -> list[tuple[RunRecord, RunRecord]]:
    """The pairs of which both runs have an accuracy."""
    return [(a, b) for a, b in pairs if a.accuracy is not None and b.accuracy is not None]


def full_run_seconds(runs: list[RunRecord]) -> float:
    """Seconds of a run at full length, judged by these runs; zero without any."""
    return sum(run.wall_s for run in runs) / sum(run.fraction for run in runs) if runs else 0.0


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
    engines = dict.fromkeys(recipes, engine)
    plan = BenchPlan(held_out, engines, dataset, device, range(first_seed, 2**63))
    return Search(plan, 60 * minutes, holdout, ranks)
