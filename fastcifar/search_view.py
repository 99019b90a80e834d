"""What a person sees of a search: the rungs with how the candidates stand, while it runs and at the end."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastcifar.bench_view import RunsView, points, screen_table, seconds
from fastcifar.console import Screen, duration
from fastcifar.results import Record
from fastcifar.search import BASE, Rung, Search, Standing

HEADINGS = ["runs", "accuracy, %", "train time, s", "of the base's time", "95 %"]


class SearchView(RunsView):
    """The rungs so far, what runs now, and how much of the time is left."""

    def __init__(self, screen: Screen, search: Search) -> None:
        super().__init__(screen)
        self.search = search
        self.tables: list[Table] = []
        self.drawn = -1  # runs that the tables are of

    def draw(self) -> RenderableType:
        progress = self.progress
        if progress is None:
            return Text("starting")
        runs, status = list(progress.runs), progress.status
        if len(runs) != self.drawn:  # tables change with a finished run alone
            self.tables, self.drawn = [rung_table(rung) for rung in self.search.rungs(runs)], len(runs)
        left = self.search.seconds - sum(run["wall_s"] for run in runs)
        step = f", step {status.steps_done} of {status.total_steps}" if status else ""
        line = f"{len(runs)} runs; {progress.now}, seed {progress.seed}{step}; {duration(max(0.0, left))} to go"
        return Group(*self.tables, Text(line))


def rung_table(rung: Rung) -> Table:
    """A row a candidate, the best first."""
    rows = [cells(each) for each in rung.standings]
    return screen_table([f"at {rung.fraction:g}", *HEADINGS], rows)


def cells(one: Standing) -> list[str]:
    """One candidate's row."""
    figures = [one.name, f"{one.runs}", points(one.accuracy), seconds(one.train_s)]
    if one.accuracy is None:
        return [*figures, "failed", ""]
    cost = "" if one.cost is None else f"{one.cost:.3f}"
    return [*figures, cost, f"{one.cost_ci95[0]:.3f} … {one.cost_ci95[1]:.3f}" if one.cost_ci95 else ""]


def remark(search: Search, runs: list[Record]) -> str:
    """What the search found, in a sentence."""
    rungs = search.rungs(runs)
    if not rungs:
        needed = f" (one round of all takes about {duration(search.needed(runs))})" if runs else ""
        return f"The time was too short for one run of every candidate{needed}: give more --minutes."
    base, *others = rungs[-1].standings
    where = "at full length" if rungs[-1].fraction == 1 else f"at {rungs[-1].fraction:g} of the epochs"
    if base.accuracy is None:
        return f"{BASE} itself diverged {where}: lower its rates."
    if others[0].accuracy is None:
        return f"No candidate came to an end {where}."
    best = others[0]
    if best.cost is None:
        return f"No candidate can be judged {where}: {BASE} learned nothing from longer runs; give it more epochs."
    low, high = best.cost_ci95 or (0.0, math.inf)
    interval = f" ({low:.3f} to {high:.3f})" if best.cost_ci95 else ""
    figure = f"{best.name} takes {best.cost:.3f}{interval} of the time that {BASE} takes to the same accuracy, {where}"
    if low > 1:
        return f"No candidate beats {BASE}: the best, {figure}."
    return f"{figure}; confirm it with other seeds." if high < 1 else f"{figure}: no difference shown."


def report(search: Search, runs: list[Record]) -> RenderableType:
    """The whole search for a terminal."""
    return Group(*map(rung_table, search.rungs(runs)), Text(remark(search, runs)))


def introduction(search: Search, device: str, path: Path) -> str:
    """One line before the start."""
    return (
        f"{len(search.names) - 1} candidates against {BASE} on {search.plan.dataset.name}, "
        f"{duration(search.seconds)} on {device}, kept in {path}"
    )
