"""Executing the runs of a bench, each written to disk before the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcifar.bench.distributed import Ranks, earlier_files, together
from fastcifar.bench.plan import Plan, remaining
from fastcifar.bench.results import Record, Results, differences, load
from fastcifar.errors import Diverged, UsageError
from fastcifar.recipes.parse import eval_split
from fastcifar.training.run import train
from fastcifar.training.trainer import Status


@dataclass
class Progress:
    """Where a bench stands: changed in place, read by whoever draws it."""

    total: int
    runs: list[Record]
    now: str = ""  # the recipe in flight
    seed: int = 0
    status: Status | None = None  # of the run in flight
    began: float = field(default_factory=time.monotonic)
    before: int = 0  # runs that an earlier process made

    def seconds_left(self) -> float | None:
        """Time to go at the pace so far; None before the first run is finished."""
        made = len(self.runs) - self.before
        return (self.total - len(self.runs)) * (time.monotonic() - self.began) / made if made else None


def make(
    plan: Plan, path: Path, ranks: Ranks, on_change: Callable[[Progress], None] = lambda progress: None
) -> list[Record]:
    """Make all runs that no results file holds yet, this rank's part of them, and return everybody's.

    Raises UsageError where the file, or another rank, is about something else.
    """
    with together(ranks), Results(ranks.file(path), plan.header()) as results:
        earlier = [load(file) for file in earlier_files(path, ranks)]
        for header, _ in earlier:
            check_same(results.header, header, "an earlier results file")
        others = [run for _, runs in earlier for run in runs]
        told = ranks.gather((results.header, asked(plan), results.runs + others))
        for rank, (header, arguments, _) in enumerate(told):
            check_same(told[0][0], header, f"rank {rank}")
            if arguments != told[0][1]:
                raise UsageError(f"Rank {rank} was started with other arguments than rank 0: start all alike.")
        done = [run for _, _, runs in told for run in runs]
        run_all(plan, results, remaining(plan, done, ranks.rank, ranks.size), on_change)
        return sorted((run for runs in ranks.gather(results.runs + others) for run in runs), key=lambda run: run["at"])


def asked(plan: Plan) -> tuple[Any, ...]:
    """What a plan asks for besides what its header says."""
    return list(plan.seeds), plan.target, plan.until_clear, plan.margin


def check_same(expected: Record, found: Record, where: str) -> None:
    """Raise UsageError where runs cannot be put together."""
    if different := differences(found, expected):
        raise UsageError(f"The runs of {where} are of another bench ({'; '.join(different)}).")


def run_all(
    plan: Plan,
    results: Results,
    tasks: list[tuple[str, int]],
    on_change: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Make the runs, each written to disk before the next; with `until_clear`, stop when all comparisons are."""
    total = len(results.runs) + len(tasks)
    progress = Progress(total, results.runs, before=len(results.runs))
    on_change(progress)
    for position, (name, seed) in enumerate(tasks):
        progress.now, progress.seed, progress.status = name, seed, None
        results.add(run_timed(plan, name, seed, progress))
        on_change(progress)
        seed_done = position + 1 == len(tasks) or tasks[position + 1][1] != seed
        if plan.until_clear and seed_done and plan.report(results.runs).clear:
            break


def run_timed(plan: Plan, name: str, seed: int, progress: Progress) -> Record:
    """One training as a line of the results file, with the seconds that passed meanwhile; `progress` takes up where
    the run stands. One that diverges is a line too."""
    began = time.monotonic()
    chosen = plan.recipes[name]

    def watch(status: Status) -> None:
        progress.status = status

    line = failed(plan, name, seed)
    try:
        result = train(
            chosen, plan.dataset, seed=seed, device=plan.device, engine=plan.engine(name), on_change=watch
        ).result
    except Diverged:
        pass
    else:
        keys = ("accuracy", "accuracy_no_tta", "train_s", "epochs_s", "eval_s", "peak_memory")
        figures = {key: getattr(result, key) for key in keys}
        line = {**line, "diverged": False, **figures, "accuracy_on": eval_split(chosen), "at": time.time()}
    return {**line, "wall_s": time.monotonic() - began}


def failed(plan: Plan, name: str, seed: int) -> Record:
    """The line of a run that came to no end."""
    line = {"name": name, "recipe": plan.recipes[name].name, "seed": seed}
    return {**line, "diverged": True, "accuracy": None, "train_s": None, "at": time.time()}
