"""A search among candidate settings within a given time: short runs for all, longer runs for the best.

Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016) over the length of runs, in rungs of about equal time. In a rung the base and the candidates that are left take
turns with the same seeds, judged on training images held out. What comes next follows from the results file alone, so
a search that was killed goes on where it stopped.

Candidates differ in accuracy and in time. What counts is their time over the time that the base would take to the same
accuracy: how the base's error falls with its time is measured too, by its runs of two lengths.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from fastcifar import bench, recipe, stats
from fastcifar.bench import Progress
from fastcifar.errors import DataError, UsageError
from fastcifar.recipe import Recipe
from fastcifar.results import Record, Results
from fastcifar.stats import Estimate

FRACTIONS = (0.25, 0.5, 1.0)  # of the recipes' epochs, rung by rung
KEPT = 1 / 3  # of a rung's candidates, at least one, rounded up
HOLDOUT = 5000  # training images to judge on, where the base keeps none back
BASE = "base"


@dataclass(frozen=True)
class Standing:
    """How one candidate stands in a rung; accuracies are fractions, times seconds.

    `cost` is its time over the base's at the same accuracy, a geometric mean over seeds; None for the base, for one
    that diverged, and where the base learned nothing from longer runs.
    """

    name: str
    runs: int
    accuracy: Estimate | None
    train_s: Estimate | None
    cost: float | None
    cost_ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Rung:
    """All candidates of one length of runs, the best first, the base in front."""

    fraction: float
    seeds: int
    standings: list[Standing]


@dataclass(frozen=True)
class Search:
    """What is to be searched: a bench of all candidates at all lengths, and the seconds it may take."""

    plan: bench.Plan
    names: list[str]  # the base, then the candidates
    seconds: float

    def rung(self, runs: list[Record], number: int) -> Rung:
        """How the candidates stand in a rung, by the seeds that all of them finished."""
        names = self.entrants(runs, number)
        fraction = FRACTIONS[number]
        seeds = self.seeds(runs, number, names)
        base = [found(runs, at(BASE, fraction), seed) for seed in seeds]
        slope = self.slope(runs, number)
        standings = [self.standing(runs, name, fraction, seeds, base, slope) for name in names]
        return Rung(fraction, len(seeds), [standings[0], *sorted(standings[1:], key=merit)])

    def standing(
        self, runs: list[Record], name: str, fraction: float, seeds: list[int], base: list[Record], slope: float | None
    ) -> Standing:
        """One candidate's figures; the more accurate of two without a cost has the smaller one of minus infinity."""
        own = [found(runs, at(name, fraction), seed) for seed in seeds]
        if not own or any(run["diverged"] for run in own):
            return Standing(name, len(own), None, None, None, None)
        accuracy, train_s = (stats.estimate([run[key] for run in own]) for key in ("accuracy", "train_s"))
        if name == BASE or slope is None or any(run["diverged"] for run in base):
            return Standing(name, len(own), accuracy, train_s, None, None)
        logs = stats.estimate(
            [
                math.log(run["train_s"] / other["train_s"]) - slope * (log_error(run) - log_error(other))
                for run, other in zip(own, base, strict=True)
            ]
        )
        interval = None if logs.ci95 is None else (math.exp(logs.ci95[0]), math.exp(logs.ci95[1]))
        return Standing(name, len(own), accuracy, train_s, math.exp(logs.mean), interval)

    def slope(self, runs: list[Record], number: int) -> float | None:
        """How the logarithm of the base's time goes with that of its error, between this length and the next (at the
        end the one before); None where longer runs did not help."""
        pair = sorted({number, number + 1 if number + 1 < len(FRACTIONS) else number - 1})
        short, long = (
            {run["seed"]: run for run in runs if run["name"] == at(BASE, FRACTIONS[each]) and not run["diverged"]}
            for each in pair
        )
        both = short.keys() & long.keys()
        time = sum(math.log(long[seed]["train_s"] / short[seed]["train_s"]) for seed in both)
        error = sum(log_error(long[seed]) - log_error(short[seed]) for seed in both)
        return time / error if time > 0 > error else None

    def entrants(self, runs: list[Record], number: int) -> list[str]:
        """The base and the candidates that came into a rung: the best of the rung before."""
        if number == 0:
            return self.names
        before = self.rung(runs, number - 1).standings[1:]
        return [BASE, *(each.name for each in before[: math.ceil(KEPT * len(before))])]

    def seeds(self, runs: list[Record], number: int, names: list[str]) -> list[int]:
        """The seeds that all entrants of a rung finished."""
        done = {(run["name"], run["seed"]) for run in runs}
        return list(takewhile(lambda seed: done.issuperset(self.round(number, names, seed)), self.plan.seeds))

    def round(self, number: int, names: list[str], seed: int) -> list[tuple[str, int]]:
        """A rung's runs with one seed, in alternating order; behind them the first rung has the base's next length."""
        tasks = [(at(name, FRACTIONS[number]), seed) for name in names]
        tasks = tasks if seed % 2 == 0 else tasks[::-1]
        return tasks if number else [*tasks, (at(BASE, FRACTIONS[1]), seed)]

    def next_task(self, runs: list[Record]) -> tuple[str, int] | None:
        """The next run, as its name in the results file and its seed; None where the search is over.

        A rung has as many rounds as fit into its share of the time, and at least one where that fits into all that is
        left; how long a round is going to take is judged by those before, so that one begun is also finished.
        """
        if sum(run["wall_s"] for run in runs) >= self.seconds:
            return None
        done = {(run["name"], run["seed"]): run["wall_s"] for run in runs}
        left, a_run = self.seconds, 0.0
        for number, fraction in enumerate(FRACTIONS):
            names = self.entrants(runs, number)
            costs: list[float] = []  # of its finished rounds
            for seed in self.plan.seeds:
                tasks = self.round(number, names, seed)
                missing = [task for task in tasks if task not in done]
                if missing:
                    expected = stats.estimate(costs).mean if costs else a_run * fraction * len(tasks)
                    limit = left / (len(FRACTIONS) - number) if costs else left
                    if sum(costs) + expected <= limit:
                        return missing[0]
                    break
                costs.append(sum(done[task] for task in tasks))
            if not costs:
                return None
            left -= sum(costs)
            a_run = sum(costs) / sum(len(self.round(number, names, seed)) for seed in range(len(costs))) / fraction
        return None

    def rungs(self, runs: list[Record]) -> list[Rung]:
        """All rungs in which every entrant has a run, as far as the search has come."""
        reached: list[Rung] = []
        for number in range(len(FRACTIONS)):
            rung = self.rung(runs, number)
            if not rung.seeds:
                break
            reached.append(rung)
        return reached


def at(name: str, fraction: float) -> str:
    """The name in the results file of a candidate's runs of one length."""
    return f"{name}@{fraction:g}"


def found(runs: list[Record], name: str, seed: int) -> Record:
    """The one run of that name and seed."""
    return next(run for run in runs if run["name"] == name and run["seed"] == seed)


def log_error(run: Record) -> float:
    """The logarithm of the share of images taken for another class; half an image where there is none."""
    return math.log(max(1 - run["accuracy"], 0.5 / HOLDOUT))


def merit(standing: Standing) -> tuple[bool, float, float]:
    """The better, the smaller: by cost where it is known, else by accuracy; what diverged comes last."""
    accuracy = standing.accuracy.mean if standing.accuracy else 0.0
    return standing.accuracy is None, standing.cost if standing.cost is not None else math.inf, -accuracy


def candidates(path: Path, base: Recipe) -> dict[str, Recipe]:
    """The candidates of a TOML file with a table each, that holds what differs from the base.

    Raises DataError for a file that cannot be read; UsageError for one that is not valid TOML, for a name that is none,
    for settings that no recipe has, and for two that are the same.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Candidates file {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Candidates file {path} is not valid TOML: {error}.") from None
    chosen = {BASE: base}
    for name, changes in tree.items():
        if not isinstance(changes, Mapping):
            raise UsageError(f"In {path}, '{name}' must be a table [{name}] that holds what differs from the base.")
        bench.check_name(name, str(path))
        if name == BASE:
            raise UsageError(f"In {path}, a candidate is called '{BASE}', which the recipe itself is: rename it.")
        changed = recipe.merge(base, changes, f"candidate '{name}' of {path}")
        for other, settings in chosen.items():
            if bench.same(changed, settings):
                raise UsageError(f"In {path}, '{name}' is the same recipe as '{other}'.")
        chosen[name] = changed
    if len(chosen) == 1:
        raise UsageError(f"{path} holds no candidates: give each a table [name] with what differs from the base.")
    return chosen


def prepare(chosen: Mapping[str, Recipe], plan: bench.Plan, engine: str, minutes: float) -> Search:
    """The search for these recipes, the base first; `plan` tells dataset, device and seeds."""
    recipes = {}
    for fraction in FRACTIONS:
        for name, each in chosen.items():
            training = dataclasses.replace(each.training, epochs=each.training.epochs * fraction)
            data = dataclasses.replace(each.data, holdout=each.data.holdout or HOLDOUT)
            recipes[at(name, fraction)] = dataclasses.replace(each, training=training, data=data)
    engines = dict.fromkeys(recipes, engine)
    return Search(dataclasses.replace(plan, recipes=recipes, engines=engines), list(chosen), 60 * minutes)


def run(search: Search, path: Path, on_change: Callable[[Progress], None] = lambda progress: None) -> list[Record]:
    """Make runs until the time is spent, each on disk before the next begins; returns all of the results file."""
    with Results(path, search.plan.header()) as results:
        progress = Progress(0, results.runs, before=len(results.runs))
        warm: set[str] = set()
        while (task := search.next_task(results.runs)) is not None:
            progress.now, progress.seed, progress.status = *task, None
            on_change(progress)
            results.add(bench.run_timed(search.plan, *task, warm, progress))
        on_change(progress)
        return results.runs
