"""Terminal output of bench and search: live views, and reports as tables or as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastcifar.bench.records import MAX_OTHER_LOAD, wall_clock
from fastcifar.bench.report import POINT, Comparison, Report, Summary, label
from fastcifar.cli.display.screen import Screen, View, duration
from fastcifar.stats import Estimate, Interval

if TYPE_CHECKING:
    from fastcifar.bench.plan import BenchPlan
    from fastcifar.bench.records import RunRecord
    from fastcifar.bench.rungs import CandidateResult, Ladder, Rung
    from fastcifar.bench.runner import Progress
    from fastcifar.bench.search import Search


class RunsView(View):
    """A line a finished run, where the output is no terminal."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.progress: Progress | None = None
        self.printed: int | None = None

    def update(self, progress: Progress) -> None:
        """Keep the latest state; returns at once."""
        self.progress = progress

    def lines(self) -> Iterable[str]:
        if self.progress is None:
            return
        runs = list(self.progress.runs)
        self.printed = self.progress.before if self.printed is None else self.printed
        for run in runs[self.printed :]:
            yield run_line(run)
        self.printed = len(runs)


class BenchView(RunsView):
    """Runs done, accuracy and time of each recipe, and the time to go."""

    def __init__(self, screen: Screen, plan: BenchPlan) -> None:
        super().__init__(screen)
        self.plan = plan

    def draw(self) -> RenderableType:
        progress = self.progress
        if progress is None:
            return Text("starting")
        runs = list(progress.runs)
        return Group(summary_table(self.plan.report(runs), compact=True), self.line(progress, len(runs)))

    def line(self, progress: Progress, done: int) -> Text:
        """The run in flight, and the time to go."""
        left = progress.seconds_left()
        to_go = f"; {duration(left)} to go" if left else ""
        now = f"; {run_in_flight(progress)}" if done < progress.total else ""
        return Text(f"{done} of {progress.total} runs{now}{to_go}")


def run_line(run: RunRecord) -> str:
    """A finished run in one line."""
    if run.accuracy is None or run.train_s is None:
        what = run.error or "diverged"
    else:
        what = f"{100 * run.accuracy:.2f} % in {duration(run.train_s)}"
    return f"{label(run.name, run.fraction)}, seed {run.seed}: {what}"


def run_in_flight(progress: Progress) -> str:
    """Name, seed and step of the run in flight."""
    task, status = progress.task, progress.status
    if task is None:
        return "starting"
    step = f", step {status.steps_done} of {status.total_steps}" if status else ""
    return f"{label(task.name, task.fraction)}, seed {task.seed}{step}"


def points(estimate: Estimate | None) -> str:
    """A mean accuracy in percent with its 95 % interval."""
    if estimate is None:
        return ""
    half = f" ± {(estimate.ci95[1] - estimate.mean) / POINT:.2f}" if estimate.ci95 else ""
    return f"{estimate.mean / POINT:.2f}{half}"


def lower_bound(estimate: Estimate | None) -> str:
    """The lower end of the 95 % interval of a mean accuracy, in percent."""
    return f"{estimate.ci95[0] / POINT:.2f}" if estimate and estimate.ci95 else ""


def seconds(estimate: Estimate | None) -> str:
    """A mean time in seconds with its 95 % interval."""
    if estimate is None:
        return ""
    half = f" ± {figure(estimate.ci95[1] - estimate.mean)}" if estimate.ci95 else ""
    return f"{figure(estimate.mean)}{half}"


def figure(value: float) -> str:
    """Three digits or more, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def flops_figure(flops: int | None) -> str:
    """FLOPs in three digits, such as 1.45e14."""
    return "" if flops is None else f"{flops:.3g}".replace("e+", "e")


def spread(estimate: Estimate | None, unit: float) -> str:
    """A standard deviation in the unit."""
    return f"{estimate.std / unit:.2g}" if estimate and estimate.std is not None else ""


def probability(p: float | None) -> str:
    """A p-value."""
    return "" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def runs_cell(one: Summary) -> str:
    """How many runs, and how many of them diverged."""
    return f"{one.runs}" + (f" ({one.diverged} diverged)" if one.diverged else "")


def summary_table(report: Report, compact: bool = False) -> Table:
    """A row a recipe: means with their 95 % intervals; times stand here where they are of one machine."""
    headings = ["", "runs", "accuracy, %", *([] if compact else ["std"]), "train time, s"]
    headings += [] if compact else ["std", *([f"p(< {report.target:g} %)"] if report.target else [])]
    rows = []
    for one in report.recipes:
        row = [label(one.name, one.fraction), runs_cell(one), points(one.accuracy)]
        row += [] if compact else [spread(one.accuracy, POINT)]
        row += [seconds(one.train_s)]
        row += [] if compact else [spread(one.train_s, 1), *([probability(one.p_target)] if report.target else [])]
        rows.append(row)
    return screen_table(headings, rows)


def machine_table(report: Report) -> Table:
    """A row a recipe and machine: train times that are not pooled."""
    rows = []
    for one in report.recipes:
        for each in one.times:
            where = f"{each.machine}, {each.engine}" if each.machine else ""
            row = [label(one.name, one.fraction), f"{each.runs}", seconds(each.train_s), spread(each.train_s, 1)]
            rows.append([*row, where])
    table = screen_table(["", "runs", "train time, s", "std", "machine"], rows)
    table.columns[-1].justify = "left"
    return table


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
    one_reference = len({(each.a, each.fraction) for each in report.comparisons}) == 1
    return [comparison_row(each, one_reference) for each in report.comparisons]


def comparison_row(each: Comparison, one_reference: bool) -> list[str]:
    """One comparison; the recipe compared with stands in the row unless it is the same for all."""
    name = label(each.b, each.fraction)
    return [
        name if one_reference else f"{name} against {each.a}",
        f"{each.accuracy_difference / POINT:+.3f}",
        between(each.accuracy_ci95, 1 / POINT, "+.2f"),
        "any time" if each.sequential else probability(each.accuracy_p),
        "" if each.time_ratio is None else f"{each.time_ratio:.3f}",
        between(each.time_ci95, 1, ".3f"),
        probability(each.time_p),
    ]


def between(interval: Interval | None, factor: float, form: str) -> str:
    """The ends of an interval."""
    return "" if interval is None else " … ".join(f"{factor * end:{form}}" for end in interval)


def comparison_headings(report: Report) -> list[str]:
    """Of the table of comparisons: differences in percentage points, ratios of time."""
    references = {(each.a, each.fraction) for each in report.comparisons}
    against = f"against {label(*references.pop())}" if len(references) == 1 else ""
    return [against, "points", "95 %", "p", "time", "95 %", "p"]


def remarks(report: Report) -> list[str]:
    """The sentences under the tables."""
    sentences = [each.verdict for each in report.comparisons]
    for one in report.recipes:
        name = label(one.name, one.fraction)
        if one.left_out:
            sentences.append(
                f"{name}: {one.left_out} of {one.runs} runs are left out of the times, as others used more than "
                f"{100 * MAX_OTHER_LOAD:.0f} % of the processors meanwhile."
            )
        if one.outliers:
            seeds = ", ".join(map(str, one.outliers[:8])) + (", …" if len(one.outliers) > 8 else "")
            sentences.append(f"{name}: the train time of seed {seeds} is an outlier; was the machine disturbed?")
        if one.drift is not None:
            way = "longer" if one.drift > 0 else "shorter"
            sentences.append(f"{name}: runs became {way} by {100 * abs(one.drift):.0f} % from first to last.")
    if report.comparisons and report.comparisons[0].sequential:
        sentences.append("The accuracy intervals are anytime-valid (Wang and Ramdas, Anytime-valid t-tests, 2024).")
    return sentences


def screen_report(report: Report) -> RenderableType:
    """The report for a terminal."""
    parts: list[RenderableType] = [summary_table(report)]
    if any(len(one.times) > 1 for one in report.recipes):
        parts.append(machine_table(report))
    if report.comparisons:
        parts.append(screen_table(comparison_headings(report), comparison_rows(report)))
    machines = report.machines
    where = [f"Times on {machines[0]}."] if len(machines) == 1 else []
    return Group(*parts, *(Text(line) for line in [*remarks(report), *where]))


def markdown(report: Report) -> str:
    """The report for a README or a note."""
    lines = markdown_table(*markdown_summary(report))
    if report.comparisons:
        lines += ["", *markdown_table(comparison_headings(report), comparison_rows(report))]
    return "\n".join([*lines, "", *(f"- {line}" for line in remarks(report))]).rstrip()


def markdown_summary(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of recipes; a recipe has a row for each machine that its times are of."""
    with_flops = any(one.flops is not None for one in report.recipes)
    headings = ["recipe", "runs", "accuracy, %", "at least, %", "std", "train time, s", "machine"]
    headings += [*(["FLOPs"] if with_flops else []), *([f"p(< {report.target:g} %)"] if report.target else [])]
    rows = []
    for one in report.recipes:
        row = [label(one.name, one.fraction), runs_cell(one), points(one.accuracy), lower_bound(one.accuracy)]
        row.append(spread(one.accuracy, POINT))
        times = [(seconds(each.train_s), str(each.machine or "")) for each in one.times] or [("", "")]
        rest = [
            *([flops_figure(one.flops)] if with_flops else []),
            *([probability(one.p_target)] if report.target else []),
        ]
        rows.append([*row, *times[0], *rest])
        rows += [[""] * len(row) + [*each] + [""] * len(rest) for each in times[1:]]
    return headings, rows


def markdown_table(headings: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table: the first column to the left, figures to the right."""
    rule = ["---", *("---" if heading == "machine" else "---:" for heading in headings[1:])]
    return ["| " + " | ".join(line) + " |" for line in [headings, rule, *rows]]


def introduction(plan: BenchPlan, device: str, path: Path) -> str:
    """One line before the start."""
    return f"{', '.join(plan.recipes)} on {plan.dataset.name}: {len(plan.seeds)} runs each on {device}, kept in {path}"


SEARCH_HEADINGS = ["runs", "accuracy, %", "train time, s", "relative cost", "95 %"]


class SearchView(RunsView):
    """The rungs so far, the run in flight, and how much of the time is left."""

    def __init__(self, screen: Screen, search: Search) -> None:
        super().__init__(screen)
        self.search = search
        self.tables: list[Table] = []
        self.drawn = -1  # runs that the tables are of

    def draw(self) -> RenderableType:
        progress = self.progress
        if progress is None:
            return Text("starting")
        runs = list(progress.runs)
        if len(runs) != self.drawn:  # tables change with a finished run alone
            self.tables, self.drawn = [rung_table(rung) for rung in self.search.rungs(runs)], len(runs)
        left = self.search.seconds - wall_clock(runs)
        return Group(
            *self.tables, Text(f"{len(runs)} runs; {run_in_flight(progress)}; {duration(max(0.0, left))} to go")
        )


def rung_table(rung: Rung) -> Table:
    """A row a candidate, the best first."""
    rows = [candidate_cells(each) for each in rung.results]
    return screen_table([f"at {rung.fraction:g}", *SEARCH_HEADINGS], rows)


def candidate_cells(one: CandidateResult) -> list[str]:
    """One candidate's row."""
    figures = [one.name, f"{one.runs}", points(one.accuracy), seconds(one.train_s)]
    if one.accuracy is None:
        return [*figures, "failed", ""]
    cost = "" if one.cost is None else f"{one.cost:.3f}"
    return [*figures, cost, between(one.cost_ci95, 1, ".3f")]


def remark(search: Ladder, runs: list[RunRecord]) -> str:
    """The result of a search, in a sentence."""
    rungs = search.rungs(runs)
    if not rungs:
        needed = f" (one round of all takes about {duration(search.first_round_seconds(runs))})" if runs else ""
        return f"The time was too short for one run of every candidate{needed}: give more --minutes."
    base, *others = rungs[-1].results
    where = "at full length" if rungs[-1].fraction == 1 else f"at {rungs[-1].fraction:g} of the epochs"
    if base.accuracy is None:
        return f"{base.name} itself diverged {where}: lower its rates."
    if others[0].accuracy is None:
        return f"No candidate came to an end {where}."
    best = others[0]
    if best.cost is None:
        return f"No candidate can be judged {where}: {base.name} learned nothing from longer runs; give it more epochs."
    low, high = best.cost_ci95 or (0.0, math.inf)
    interval = f" ({low:.3f} to {high:.3f})" if best.cost_ci95 else ""
    cost = (
        f"{best.name} takes {best.cost:.3f}{interval} of the time that {base.name} takes to the same accuracy, {where}"
    )
    if low > 1:
        return f"No candidate beats {base.name}: the best, {cost}."
    return f"{cost}; confirm it with other seeds." if high < 1 else f"{cost}: no difference shown."


def search_report(search: Ladder, runs: list[RunRecord]) -> RenderableType:
    """The whole search for a terminal."""
    return Group(*map(rung_table, search.rungs(runs)), Text(remark(search, runs)))


def search_introduction(search: Search, device: str, path: Path) -> str:
    """One line before the start."""
    base, *candidates = search.plan.recipes
    return (
        f"{len(candidates)} candidates against {base} on {search.plan.dataset.name}, "
        f"{duration(search.seconds)} on {device}, kept in {path}"
    )
