"""What a person sees of a bench: a row a recipe while it runs, and the report as a table or as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastcifar.bench.plan import Plan
from fastcifar.bench.report import POINT, Report, Summary
from fastcifar.bench.results import Record
from fastcifar.bench.runner import Progress
from fastcifar.bench.search import BASE, Rung, Search, Standing
from fastcifar.cli.display.screen import Screen, View, duration
from fastcifar.stats import Estimate


class RunsView(View):
    """A line a finished run, where the output is no terminal."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.progress: Progress | None = None
        self.told: int | None = None

    def update(self, progress: Progress) -> None:
        """Keep the latest state; returns at once."""
        self.progress = progress

    def lines(self) -> Iterable[str]:
        if self.progress is None:
            return
        runs = list(self.progress.runs)
        self.told = self.progress.before if self.told is None else self.told
        for run in runs[self.told :]:
            what = "diverged" if run["diverged"] else f"{100 * run['accuracy']:.2f} % in {duration(run['train_s'])}"
            yield f"{run['name']}, seed {run['seed']}: {what}"
        self.told = len(runs)


class BenchView(RunsView):
    """Runs done, accuracy and time of each recipe, and the time to go."""

    def __init__(self, screen: Screen, plan: Plan) -> None:
        super().__init__(screen)
        self.plan = plan

    def draw(self) -> RenderableType:
        progress = self.progress
        if progress is None:
            return Text("starting")
        runs = list(progress.runs)
        return Group(summary_table(self.plan.report(runs), compact=True), self.line(progress, len(runs)))

    def line(self, progress: Progress, done: int) -> Text:
        """What runs now, and the time to go."""
        status, left = progress.status, progress.seconds_left()
        step = f", step {status.steps_done} of {status.total_steps}" if status else ""
        to_go = f"; {duration(left)} to go" if left else ""
        now = f"; {progress.now}, seed {progress.seed}{step}" if done < progress.total else ""
        return Text(f"{done} of {progress.total} runs{now}{to_go}")


def points(estimate: Estimate | None) -> str:
    """A mean accuracy in percent with its 95 % interval."""
    if estimate is None:
        return ""
    half = f" ± {(estimate.ci95[1] - estimate.mean) / POINT:.2f}" if estimate.ci95 else ""
    return f"{estimate.mean / POINT:.2f}{half}"


def seconds(estimate: Estimate | None) -> str:
    """A mean time in seconds with its 95 % interval."""
    if estimate is None:
        return ""
    half = f" ± {figure(estimate.ci95[1] - estimate.mean)}" if estimate.ci95 else ""
    return f"{figure(estimate.mean)}{half}"


def figure(value: float) -> str:
    """Three digits or more, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(estimate: Estimate | None, unit: float) -> str:
    return f"{estimate.std / unit:.2g}" if estimate and estimate.std is not None else ""


def probability(p: float | None) -> str:
    return "" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def columns(report: Report, compact: bool) -> list[str]:
    """The headings of the table of recipes."""
    full = ["", "runs", "accuracy, %", "std", "train time, s", "std"]
    return full[:3] + full[4:5] if compact else [*full, *([f"p(< {report.target:g} %)"] if report.target else [])]


def cells(one: Summary, report: Report, compact: bool) -> list[str]:
    """One recipe's row."""
    runs = f"{one.runs}" + (f" ({one.diverged} diverged)" if one.diverged else "")
    full = [one.name, runs, points(one.accuracy), spread(one.accuracy, POINT), seconds(one.train_s)]
    if compact:
        return full[:3] + full[4:5]
    return [*full, spread(one.train_s, 1), *([probability(one.p_target)] if report.target else [])]


def summary_table(report: Report, compact: bool = False) -> Table:
    """A row a recipe: means with their 95 % intervals."""
    return screen_table(columns(report, compact), [cells(one, report, compact) for one in report.recipes])


def screen_table(headings: list[str], rows: list[list[str]]) -> Table:
    """A table for a terminal: names to the left, figures to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def comparison_rows(report: Report) -> list[list[str]]:
    """A row a comparison: the differences with their intervals and p-values."""
    rows = []
    references = {each.a for each in report.comparisons}
    for each in report.comparisons:
        low, high = each.accuracy_ci95 or (None, None)
        between = f"{low / POINT:+.2f} … {high / POINT:+.2f}" if low is not None and high is not None else ""
        times = f"{each.time_ci95[0]:.3f} … {each.time_ci95[1]:.3f}" if each.time_ci95 else ""
        difference = f"{each.accuracy_difference / POINT:+.3f}"
        p = "any time" if each.sequential else probability(each.accuracy_p)
        ratio = [f"{each.time_ratio:.3f}", times, probability(each.time_p)]
        name = each.b if len(references) == 1 else f"{each.b} against {each.a}"
        rows.append([name, difference, between, p, *ratio])
    return rows


def headings(report: Report) -> list[str]:
    """Of the table of comparisons: differences in percentage points, ratios of time."""
    references = {each.a for each in report.comparisons}
    against = f"against {references.pop()}" if len(references) == 1 else ""
    return [against, "points", "95 %", "p", "time", "95 %", "p"]


def remarks(report: Report) -> list[str]:
    """The sentences under the tables."""
    found = [each.verdict for each in report.comparisons]
    for one in report.recipes:
        if one.outliers:
            seeds = ", ".join(map(str, one.outliers[:8])) + (", …" if len(one.outliers) > 8 else "")
            found.append(
                f"{one.name}: the train time of seed {seeds} is far from the others'; was the machine disturbed?"
            )
        if one.drift is not None:
            way = "longer" if one.drift > 0 else "shorter"
            found.append(f"{one.name}: runs became {way} by {100 * abs(one.drift):.0f} % from first to last.")
    if report.comparisons and report.comparisons[0].sequential:
        found.append(
            "The accuracy intervals hold at whatever moment one stops (Wang and Ramdas, Anytime-valid t-tests, 2024)."
        )
    return found


def screen_report(report: Report) -> RenderableType:
    """The report for a terminal."""
    parts: list[RenderableType] = [summary_table(report)]
    if report.comparisons:
        parts.append(screen_table(headings(report), comparison_rows(report)))
    return Group(*parts, *(Text(line) for line in remarks(report)))


def markdown(report: Report) -> str:
    """The report for a README."""

    def table(headings: list[str], rows: list[list[str]]) -> list[str]:
        rule = ["---", *["---:"] * (len(headings) - 1)]
        return ["| " + " | ".join(line) + " |" for line in [headings, rule, *rows]]

    lines = table(columns(report, False), [cells(one, report, False) for one in report.recipes])
    if report.comparisons:
        lines += ["", *table(headings(report), comparison_rows(report))]
    return "\n".join([*lines, "", *(f"- {line}" for line in remarks(report))]).rstrip()


def introduction(plan: Plan, device: str, path: Path) -> str:
    """One line before the start."""
    return f"{', '.join(plan.recipes)} on {plan.dataset.name}: {len(plan.seeds)} runs each on {device}, kept in {path}"


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
    rows = [standing_cells(each) for each in rung.standings]
    return screen_table([f"at {rung.fraction:g}", *HEADINGS], rows)


def standing_cells(one: Standing) -> list[str]:
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


def search_introduction(search: Search, device: str, path: Path) -> str:
    """One line before the start."""
    return (
        f"{len(search.names) - 1} candidates against {BASE} on {search.plan.dataset.name}, "
        f"{duration(search.seconds)} on {device}, kept in {path}"
    )
