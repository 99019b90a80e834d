"""Making the runs of a search, by one process or several that share them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fastcifar.bench.distributed import Log, Ranks, process_group
from fastcifar.bench.records import RunRecord, Task
from fastcifar.bench.rungs import BASE
from fastcifar.bench.runner import Progress, finished, open_results, run_once
from fastcifar.bench.search import Search
from fastcifar.errors import MachineError
from fastcifar.training.prepared import PreparedTrainings

Entry = tuple[int, RunRecord | None]  # of the log: a rank that is free, and the run that it has finished, if any


class Shares:
    """Which rank makes which run.

    A rank that is free says so in a log, with the run that it has finished, and its next one follows from the log up
    to there. All ranks read the same log, so they agree without a coordinator. Where nothing is to be begun, as at the
    end of a rung, all finish what they have in flight before they go on.
    """

    def __init__(self, search: Search, runs: list[RunRecord], ranks: Ranks, log: Log[Entry]) -> None:
        self.search, self.ranks, self.log = search, ranks, log
        self.runs = runs  # of all ranks, changed in place
        self.in_flight: dict[int, Task] = {}  # by rank
        self.waiting = False  # a rank got no run
        self.followed = 0  # entries of the log

    def next_task(self, run: RunRecord | None) -> Task | None:
        """The next run of this rank, which has finished `run`; None where the others have to finish theirs first."""
        self.follow(self.log.add((self.ranks.rank, run)))
        return self.in_flight.get(self.ranks.rank)

    def follow(self, end: int) -> None:
        """Take notice of the entries up to there."""
        for rank, run in self.log.read(end)[self.followed :]:
            self.in_flight.pop(rank, None)
            if run is not None:
                self.runs.append(run)
            task = None if self.waiting else self.search.next_task(self.runs, self.in_flight.values())
            if task is not None:
                self.in_flight[rank] = task
            self.waiting = task is None
        self.followed = end

    def wait(self) -> None:
        """Wait until no rank has a run in flight."""
        self.follow(max(self.ranks.all_gather(self.followed)))
        self.waiting = False


def run_search(
    search: Search, path: Path, ranks: Ranks, on_change: Callable[[Progress], None] = lambda progress: None
) -> list[RunRecord]:
    """Make runs until the time is spent, each on disk before this rank's next begins; returns those of all ranks.

    A candidate that this machine cannot run is a line that says so, like one that diverged; the others go on.
    Raises UsageError where a results file or another rank is of another search.
    """
    arguments = (search.seconds, search.plan.seeds.start)
    with process_group(ranks) as store, open_results(search.plan, path, ranks, arguments) as (results, runs):
        progress = Progress(0, runs, before=len(runs))
        prepared = PreparedTrainings(search.plan.dataset, search.plan.device)
        shares = Shares(search, runs, ranks, Log(ranks, store))
        while search.next_task(runs) is not None:  # all ranks know the same runs here
            run: RunRecord | None = None
            while (task := shares.next_task(run)) is not None:
                on_change(progress)
                run = run_or_error(search, task, prepared, progress)
                results.add(run)
            on_change(progress)
            shares.wait()
        on_change(progress)
        ranks.all_gather(None)  # the first rank may hold the store, and leaves when all have read it
    return runs


def run_or_error(search: Search, task: Task, prepared: PreparedTrainings, progress: Progress) -> RunRecord:
    """Train once; a candidate that this machine cannot run is a record with an error."""
    began = time.monotonic()
    try:
        return run_once(search.plan, task, prepared, progress)
    except MachineError as error:
        if task.name == BASE:
            raise
        return finished(search.plan, task, began, error=str(error))
