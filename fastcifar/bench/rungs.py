"""What the runs of a search say: the rungs, who went on from one to the next, and what each candidate costs.

All of it follows from the runs and what their results file says of them, so that `report` shows a search as `search`
does. Pure functions of run records, without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heapreplace
from itertools import takewhile
from typing import Any

from fastcifar import stats
from fastcifar.bench.records import Header, RunRecord, Task
from fastcifar.bench.relative_cost import error_slope, relative_cost
from fastcifar.stats import Estimate

FRACTIONS = (0.25, 0.5, 1.0)  # of the recipes' epochs, rung by rung
KEPT = 1 / 3  # of a rung's candidates, at least one, rounded up
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
class Ladder:
    """The rungs that the candidates of a search climb.

    `names` are those of the base, which comes first, and of the candidates; `seeds` are in their order; accuracies are
    of `holdout` training images of `dataset`.
    """

    names: Sequence[str]
    seeds: Sequence[int]
    holdout: int
    dataset: str
    ranks: int = 1  # processes that share the runs

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
        seeds = list(takewhile(lambda seed: all(t in made for t in self.round_tasks(number, names, seed)), self.seeds))
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
        names = list(self.names)
        for number in range(len(FRACTIONS)):
            rung = self.rung(made, number, names)
            if not rung.seeds or len(names) == 1:
                break
            reached.append(rung)
            names = rung.survivors
        return reached

    def length(self, tasks: Iterable[Task]) -> float:
        """How long these runs take together, in the time of a run at full length, where each goes to the rank that is
        free first."""
        ends = [0.0] * self.ranks
        for task in tasks:
            heapreplace(ends, ends[0] + task.fraction)
        return max(ends)

    def first_round_seconds(self, runs: list[RunRecord]) -> float:
        """Seconds that one round of the first rung takes, judged by the runs there are."""
        return full_run_seconds(runs) * self.length(self.round_tasks(0, list(self.names), 0))


def recorded_ladder(header: Header, runs: Sequence[RunRecord]) -> Ladder | None:
    """The ladder of a results file; None where `search` did not make its runs: it alone makes shorter ones."""
    if BASE not in header.recipes or all(run.fraction == 1 for run in runs):
        return None
    names = [BASE, *(name for name in header.recipes if name != BASE)]
    seeds = [run.seed for run in runs]
    holdout = header.recipes[BASE].data.holdout
    return Ladder(names, range(min(seeds), max(seeds) + 1), holdout, header.dataset["name"]) if holdout else None


def by_task(runs: list[RunRecord]) -> dict[Task, RunRecord]:
    """The runs by name, seed and fraction."""
    return {run.task: run for run in runs}


def completed_pairs(pairs: Iterable[tuple[RunRecord, RunRecord]]) -> list[tuple[RunRecord, RunRecord]]:
    """The pairs of which both runs have an accuracy."""
    return [(a, b) for a, b in pairs if a.accuracy is not None and b.accuracy is not None]


def full_run_seconds(runs: list[RunRecord]) -> float:
    """Seconds of a run at full length, judged by these runs; zero without any."""
    return sum(run.wall_s for run in runs) / sum(run.fraction for run in runs) if runs else 0.0
