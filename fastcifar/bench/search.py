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
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from fastcifar import stats
from fastcifar.bench.plan import Plan, check_name, same
from fastcifar.bench.results import Record, Results
from fastcifar.bench.runner import Progress, failed, run_timed
from fastcifar.data.dataset import holdout_split
from fastcifar.errors import DataError, MachineError, UsageError
from fastcifar.model.network import create_network
from fastcifar.recipes.parse import merge_changes
from fastcifar.recipes.schema import Recipe
from fastcifar.stats import Estimate
from fastcifar.training.engine import Engine

FRACTIONS = (0.25, 0.5, 1.0)  # of the recipes' epochs, rung by rung
KEPT = 1 / 3  # of a rung's candidates, at least one, rounded up
HOLDOUT = 5000  # training images to judge on, where the base keeps none back; of few images a tenth
BASE = "base"
LEAST_GAIN = 0.02  # in the logarithm of the error, from twice the epochs: less is noise, which nothing is judged by
LARGEST = 300.0  # a logarithm of costs beyond which they are all alike
Task = tuple[str, int]  # a run: its name in the results file, and its seed
Made = Mapping[Task, Record]


@dataclass(frozen=True)
class Standing:
    """How one candidate stands in a rung; accuracies are fractions, times seconds.

    `cost` is its time over the base's at the same accuracy, a geometric mean over seeds, with an interval that takes
    the slope of the base's error for exact; None for the base, for one that failed, and where no slope is known.
    """

    name: str
    runs: int
    accuracy: Estimate | None  # None for one that diverged, or could not run
    train_s: Estimate | None
    cost: float | None
    cost_ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Rung:
    """All candidates of one length of runs, the base in front, then the best first."""

    fraction: float
    seeds: int
    standings: list[Standing]


@dataclass(frozen=True)
class Search:
    """What is to be searched: a bench of all candidates at all lengths, and the seconds it may take."""

    plan: Plan
    names: list[str]  # the base, then the candidates
    seconds: float
    holdout: int  # images that accuracies are of

    def next_task(self, runs: list[Record]) -> Task | None:
        """The next run; None where the search is over.

        A rung has as many rounds as fit into its share of the time, and at least one where that fits into all that is
        left; how long a round is going to take is judged by the runs before, so that one begun is also finished.
        """
        made = index(runs)
        left = self.seconds
        if sum(run["wall_s"] for run in runs) >= left:
            return None
        counted: set[Task] = set()
        a_run = 0.0  # seconds of a run at full length, judged by the latest ones
        for number in range(len(FRACTIONS)):
            names = self.entrants(made, number)
            if len(names) == 1:
                return None
            spent, rounds, share = 0.0, 0, left / (len(FRACTIONS) - number)
            for seed in self.plan.seeds:
                tasks = self.round(number, names, seed)
                missing = [task for task in tasks if task not in made]
                finished = [task for task in tasks if task in made and task not in counted]
                if missing:
                    begun = bool(finished and a_run)  # the very first round is judged by its own runs
                    expected = (a_run or mean_wall(made, finished)) * lengths(tasks)
                    if begun or spent + expected <= (share if rounds else left):
                        return missing[0]
                    break
                counted.update(finished)
                spent, rounds = spent + sum(made[task]["wall_s"] for task in finished), rounds + 1
                a_run = mean_wall(made, tasks)
            if not rounds:
                return None
            left -= spent
        return None

    def round(self, number: int, names: list[str], seed: int) -> list[Task]:
        """A rung's runs with one seed, the base in the middle, in alternating order; behind those of the first rung
        the base at the next length, which tells the slope."""
        candidates = [name for name in names if name != BASE]
        middle = len(candidates) // 2
        tasks = [(at(name, FRACTIONS[number]), seed) for name in (*candidates[:middle], BASE, *candidates[middle:])]
        tasks = tasks if seed % 2 == 0 else tasks[::-1]
        return tasks if number else [*tasks, (at(BASE, FRACTIONS[1]), seed)]

    def entrants(self, made: Made, number: int) -> list[str]:
        """The base and the candidates that came into a rung: the best of the rung before, without those that failed."""
        if number == 0:
            return self.names
        before = self.rung(made, number - 1).standings[1:]
        best = before[: math.ceil(KEPT * len(before))]
        return [BASE, *(each.name for each in best if each.accuracy is not None)]

    def rung(self, made: Made, number: int) -> Rung:
        """How the candidates stand in a rung, by the seeds that all of them finished."""
        names, fraction = self.entrants(made, number), FRACTIONS[number]
        seeds = list(takewhile(lambda seed: all(t in made for t in self.round(number, names, seed)), self.plan.seeds))
        slope = self.slope(made, number)
        standings = [self.standing(made, name, fraction, seeds, slope) for name in names]
        return Rung(fraction, len(seeds), [standings[0], *sorted(standings[1:], key=merit)])

    def standing(self, made: Made, name: str, fraction: float, seeds: list[int], slope: float | None) -> Standing:
        """One candidate's figures, held against the base's runs with the same seeds."""
        own, base = ([made[at(each, fraction), seed] for seed in seeds] for each in (name, BASE))
        if not own or any(run["diverged"] for run in own):
            return Standing(name, len(own), None, None, None, None)
        accuracy, train_s = (stats.estimate([run[key] for run in own]) for key in ("accuracy", "train_s"))
        pairs = [(run, other) for run, other in zip(own, base, strict=True) if not other["diverged"]]
        if name == BASE or slope is None or not pairs:
            return Standing(name, len(own), accuracy, train_s, None, None)
        logs = stats.estimate(
            [
                math.log(run["train_s"] / other["train_s"]) - slope * (self.log_error(run) - self.log_error(other))
                for run, other in pairs
            ]
        )
        low, high = logs.ci95 or (0.0, 0.0)
        interval = (math.exp(max(low, -LARGEST)), math.exp(min(high, LARGEST))) if logs.ci95 else None
        return Standing(name, len(own), accuracy, train_s, math.exp(min(logs.mean, LARGEST)), interval)

    def slope(self, made: Made, number: int) -> float | None:
        """How the logarithm of the base's time goes with that of its error, from the length before to this one (in the
        first rung to the next), over common seeds; None where longer runs did not help."""
        first = max(0, number - 1)
        short, long = at(BASE, FRACTIONS[first]), at(BASE, FRACTIONS[first + 1])
        seeds = [seed for name, seed in made if name == short and (long, seed) in made]
        pairs = [(made[short, seed], made[long, seed]) for seed in seeds]
        pairs = [(a, b) for a, b in pairs if not a["diverged"] and not b["diverged"]]
        if not pairs:
            return None
        time = sum(math.log(b["train_s"] / a["train_s"]) for a, b in pairs) / len(pairs)
        error = sum(self.log_error(b) - self.log_error(a) for a, b in pairs) / len(pairs)
        return time / error if time > 0 and error < -LEAST_GAIN else None

    def log_error(self, run: Record) -> float:
        """The logarithm of the share of images taken for another class; half an image where there is none."""
        return math.log(max(1 - run["accuracy"], 0.5 / self.holdout))

    def rungs(self, runs: list[Record]) -> list[Rung]:
        """All rungs in which every entrant has a run, as far as the search has come."""
        made, reached = index(runs), []
        for number in range(len(FRACTIONS)):
            rung = self.rung(made, number)
            if not rung.seeds or len(rung.standings) == 1:
                break
            reached.append(rung)
        return reached

    def needed(self, runs: list[Record]) -> float:
        """Seconds that one round of the first rung takes, judged by the runs there are."""
        made = index(runs)
        return mean_wall(made, list(made)) * lengths(self.round(0, self.names, 0))


def index(runs: list[Record]) -> dict[Task, Record]:
    """The runs by name and seed."""
    return {(run["name"], run["seed"]): run for run in runs}


def mean_wall(made: Made, tasks: list[Task]) -> float:
    """Seconds of a run at full length, judged by these runs; zero without any."""
    return float(sum(made[task]["wall_s"] for task in tasks) / lengths(tasks)) if tasks else 0.0


def lengths(tasks: list[Task]) -> float:
    """What runs add up to, in runs at full length."""
    return sum(float(name.rpartition("@")[2]) for name, _ in tasks)


def at(name: str, fraction: float) -> str:
    """The name in the results file of a candidate's runs of one length."""
    return f"{name}@{fraction:g}"


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
        check_name(name, str(path))
        if name == BASE:
            raise UsageError(f"In {path}, a candidate is called '{BASE}', which the recipe itself is: rename it.")
        changed = merge_changes(base, changes, f"candidate '{name}' of {path}")
        if changed.data.holdout != base.data.holdout:
            raise UsageError(f"In {path}, '{name}' sets data.holdout: all are judged on the same images; use --set.")
        for other, settings in chosen.items():
            if same(changed, settings):
                raise UsageError(f"In {path}, '{name}' is the same recipe as '{other}'.")
        chosen[name] = changed
    if len(chosen) == 1:
        raise UsageError(f"{path} holds no candidates: give each a table [name] with what differs from the base.")
    return chosen


def prepare(chosen: Mapping[str, Recipe], plan: Plan, engine: Engine, minutes: float) -> Search:
    """The search for these recipes, the base first; `plan` tells dataset, device and seeds.

    Raises UsageError for a network that cannot be built: not at the turn of its first run.
    """
    images = len(plan.dataset.train.images)
    holdout = chosen[BASE].data.holdout or min(HOLDOUT, images // 10)
    holdout_split(plan.dataset, holdout)
    recipes = {}
    for fraction in FRACTIONS:
        for name, each in chosen.items():
            training = dataclasses.replace(each.training, epochs=each.training.epochs * fraction)
            data = dataclasses.replace(each.data, holdout=holdout)
            recipes[at(name, fraction)] = dataclasses.replace(each, training=training, data=data)
    for each in chosen.values():
        create_network(each.network, len(plan.dataset.classes))
    engines = dict.fromkeys(recipes, engine)
    plan = dataclasses.replace(plan, recipes=recipes, engines=engines)
    return Search(plan, list(chosen), 60 * minutes, holdout)


def run(search: Search, path: Path, on_change: Callable[[Progress], None] = lambda progress: None) -> list[Record]:
    """Make runs until the time is spent, each on disk before the next begins; returns all of the results file.

    A candidate that this machine cannot run is a line that says so, like one that diverged; the others go on.
    """
    with Results(path, search.plan.header()) as results:
        progress = Progress(0, results.runs, before=len(results.runs))
        while (task := search.next_task(results.runs)) is not None:
            progress.now, progress.seed, progress.status = *task, None
            on_change(progress)
            began = time.monotonic()
            try:
                line = run_timed(search.plan, *task, progress)
            except MachineError as error:
                if task[0].partition("@")[0] == BASE:
                    raise
                line = {**failed(search.plan, *task), "error": str(error), "wall_s": time.monotonic() - began}
            results.add(line)
        on_change(progress)
        return results.runs
