"""Making the runs of a bench, each on disk before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fastcifar.bench.distributed import Ranks, earlier_files, here, process_group
from fastcifar.bench.plan import BenchPlan, pending_runs
from fastcifar.bench.records import Header, RunRecord, Task
from fastcifar.bench.results import ResultsFile, differences, load
from fastcifar.errors import Diverged, UsageError
from fastcifar.recipes.parse import eval_split
from fastcifar.recipes.schema import Recipe
from fastcifar.system.device import explain_oom
from fastcifar.training.flops import count_flops
from fastcifar.training.prepared import PreparedTrainings
from fastcifar.training.run import train_prepared
from fastcifar.training.trainer import Status

FIGURES = ("accuracy", "accuracy_no_tta", "train_s", "epochs_s", "eval_s", "peak_memory")  # of a result


@dataclass
class Progress:
    """How far a bench is: changed in place, read by the view that draws it."""

    total: int
    runs: list[RunRecord]
    task: Task | None = None  # the run in flight
    status: Status | None = None  # of the run in flight
    began: float = field(default_factory=time.monotonic)
    before: int = 0  # runs that an earlier process made

    def seconds_left(self) -> float | None:
        """Time to go at the pace so far; None before the first run is finished."""
        made = len(self.runs) - self.before
        return (self.total - len(self.runs)) * (time.monotonic() - self.began) / made if made else None


@dataclass(frozen=True)
class RankState:
    """What the ranks tell each other before a bench or search: what they are to do, and the runs that they hold."""

    header: Header
    arguments: tuple[Any, ...]
    runs: list[RunRecord]


def run_bench(
    plan: BenchPlan, path: Path, ranks: Ranks, on_change: Callable[[Progress], None] = lambda progress: None
) -> list[RunRecord]:
    """Make all runs that no results file holds yet, this rank's share of them; returns the runs of all ranks.

    Raises UsageError where a results file or another rank is of another bench.
    """
    arguments = (list(plan.seeds), plan.target, plan.until_clear, plan.margin)
    with process_group(ranks), open_results(plan, path, ranks, arguments) as (results, runs):
        before, done = len(results.runs), {run.task for run in runs}
        run_all(plan, results, pending_runs(plan, done, ranks.rank, ranks.size), on_change)
        made = ranks.all_gather(results.runs[before:])
    return by_time(runs, *made)


@contextmanager
def open_results(
    plan: BenchPlan, path: Path, ranks: Ranks, arguments: tuple[Any, ...]
) -> Iterator[tuple[ResultsFile, list[RunRecord]]]:
    """Inside, the results file of this rank is open; gives it, and the runs that all ranks have made so far.

    Raises UsageError where a results file or another rank is of another bench, or has other `arguments`.
    """
    with ResultsFile(ranks.file(path), plan.header()) as results:
        earlier = [load(file) for file in earlier_files(path, ranks)]
        for part in earlier:
            check_same(results.header, part.header, "an earlier results file")
        runs = by_time(results.runs, *(part.runs for part in earlier))
        states = ranks.all_gather(RankState(results.header, arguments, runs))
        check_ranks(states)
        yield results, by_time(*(state.runs for state in states))


def by_time(*parts: list[RunRecord]) -> list[RunRecord]:
    """All these runs in the order in which they ended."""
    return sorted((run for part in parts for run in part), key=lambda run: run.at)


def check_ranks(states: list[RankState]) -> None:
    """Raise UsageError unless all ranks are to do the same."""
    for rank, state in enumerate(states):
        check_same(states[0].header, state.header, f"rank {rank}")
        if state.arguments != states[0].arguments:
            raise UsageError(f"Rank {rank} was started with other arguments than rank 0: start all alike.")


def check_same(expected: Header, found: Header, where: str) -> None:
    """Raise UsageError where runs cannot be put together."""
    if different := differences(found, expected):
        raise UsageError(f"The runs of {where} are of another bench ({'; '.join(different)}).")


def run_all(plan: BenchPlan, results: ResultsFile, tasks: list[Task], on_change: Callable[[Progress], None]) -> None:
    """Make the runs; with `until_clear`, stop after a seed at which all comparisons are clear."""
    progress = Progress(len(results.runs) + len(tasks), results.runs, before=len(results.runs))
    prepared = PreparedTrainings(plan.dataset, plan.device)
    on_change(progress)
    for position, task in enumerate(tasks):
        results.add(run_once(plan, task, prepared, progress))
        on_change(progress)
        seed_done = position + 1 == len(tasks) or tasks[position + 1].seed != task.seed
        if plan.until_clear and seed_done and plan.report(results.runs).clear:
            break


def run_once(plan: BenchPlan, task: Task, prepared: PreparedTrainings, progress: Progress) -> RunRecord:
    """Train once; a run that diverges is a record too. `progress` shows how far the run is."""
    progress.task, progress.status = task, None

    def watch(status: Status) -> None:
        progress.status = status

    recipe = plan.recipe(task)
    images = plan.dataset
    flops = recipe_flops(recipe, len(images.classes), len(images.train.images), len(images.test.images))
    began, figures = time.monotonic(), dict[str, Any]()
    try:
        with explain_oom(plan.device, recipe.training.batch_size):
            training = prepared.get(recipe, plan.engines[task.name], task.seed)
        trained = train_prepared(training, task.seed, on_change=watch, siblings=here().local_size > 1)
        figures = {key: getattr(trained.result, key) for key in FIGURES}
        figures |= {"other_load": trained.other_load, "engine": trained.engine}
    except Diverged:
        pass
    return finished(plan, task, began, **figures, flops=flops)


def finished(plan: BenchPlan, task: Task, began: float, **figures: Any) -> RunRecord:
    """The record of a run that ends now and began then (`time.monotonic`); without an accuracy it diverged, or failed
    with an `error`."""
    recipe, header = plan.recipes[task.name], plan.header()
    return RunRecord(
        task.name,
        recipe.name,
        task.seed,
        **{"accuracy": None, "train_s": None, "engine": header.engine[task.name], **figures},
        at=time.time(),
        fraction=task.fraction,
        diverged=figures.get("accuracy") is None,
        accuracy_on=eval_split(recipe),
        wall_s=time.monotonic() - began,
        machine=header.machine,
    )


@cache
def recipe_flops(recipe: Recipe, classes: int, train_images: int, test_images: int) -> int:
    """FLOPs of a run, counted once a recipe."""
    return count_flops(recipe, classes, train_images, test_images).total
