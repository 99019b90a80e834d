"""What a person sees of a search: the rungs with how the candidates stand, while it runs and at the end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastcifar.bench import Progress
from fastcifar.bench_view import points, screen_table, seconds, told_runs
from fastcifar.console import Screen, View, duration
from fastcifar.search import BASE, Rung, Search, Standing

HEADINGS = ["", "runs", "accuracy, %", "train time, s", "of the base's time", "95 %"]


class SearchView(View):
    """The rungs so far, what runs now, and how much of the time is left."""

    def __init__(self, screen: Screen, search: Search) -> None:
        super().__init__(screen)
        self.search = search
        self.progress: Progress | None = None
        self.told: int | None = None

    def update(self, progress: Progress) -> None:
        """Keep the latest state; returns at once."""
        self.progress = progress

    def draw(self) -> RenderableType:
        progress = self.progress
        if progress is None:
            return Text("starting")
        runs = list(progress.runs)
        left = self.search.seconds - sum(run["wall_s"] for run in runs)
        step = f", step {progress.status.steps_done} of {progress.status.total_steps}" if progress.status else ""
        line = f"{len(runs)} runs; {progress.now}, seed {progress.seed}{step}; {duration(max(0.0, left))} to go"
        return Group(*map(rung_table, self.search.rungs(runs)), Text(line))

    def lines(self) -> Iterable[str]:
        if self.progress is None:
            return
        runs = list(self.progress.runs)
        self.told = self.progress.before if self.told is None else self.told
        yield from told_runs(runs[self.told :])
        self.told = len(runs)


def rung_table(rung: Rung) -> Table:
    """A row a candidate, the best first."""
    rows = [cells(each) for each in rung.standings]
    return screen_table([f"{rung.fraction:g} of the epochs", *HEADINGS[1:]], rows)


def cells(one: Standing) -> list[str]:
    """One candidate's row."""
    figures = [one.name, f"{one.runs}", points(one.accuracy), seconds(one.train_s)]
    if one.accuracy is None:
        return [*figures, "diverged", ""]
    cost = "" if one.cost is None else f"{one.cost:.3f}"
    return [*figures, cost, f"{one.cost_ci95[0]:.3f} … {one.cost_ci95[1]:.3f}" if one.cost_ci95 else ""]


def remark(rungs: list[Rung]) -> str:
    """What the search found, in a sentence."""
    if not rungs:
        return "The time was too short for one run of every candidate: give more --minutes, or fewer candidates."
    last, others = rungs[-1], rungs[-1].standings[1:]
    if not others or others[0].cost is None:
        return "No candidate can be judged: the base learned nothing from longer runs; give it more epochs."
    best = others[0]
    where = "at full length" if last.fraction == 1 else f"at {last.fraction:g} of the epochs"
    interval = f" ({best.cost_ci95[0]:.3f} to {best.cost_ci95[1]:.3f})" if best.cost_ci95 else ""
    verdict = f"{best.name} takes {best.cost:.3f}{interval} of the time that {BASE} takes to the same accuracy, {where}"
    certain = best.cost_ci95 is not None and (best.cost_ci95[1] < 1 or best.cost_ci95[0] > 1)
    return f"{verdict}; confirm it with other seeds." if certain else f"{verdict}: no difference shown."


def report(rungs: list[Rung]) -> RenderableType:
    """The whole search for a terminal."""
    return Group(*map(rung_table, rungs), Text(remark(rungs)))


def introduction(search: Search, device: str, path: Path) -> str:
    """One line before the start."""
    return (
        f"{len(search.names) - 1} candidates against {BASE} on {search.plan.dataset.name}, "
        f"{duration(search.seconds)} on {device}, kept in {path}"
    )
