"""The page of a bench: its verdict, every run, accuracies by recipe, differences by seed, how they settled, drift.

All figures come from `bench.report`, as the terminal's do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fastcifar.bench.records import RunRecord
from fastcifar.bench.report import POINT, Report, Summary, TimeSummary, courses, label
from fastcifar.cli.display.bench import (
    between,
    flops_figure,
    lower_bound,
    points,
    probability,
    remarks,
    runs_cell,
    seconds,
    spread,
)
from fastcifar.cli.display.bench_pictures import (
    courses_part,
    differences_part,
    drift_part,
    listed,
    name_of,
    runs_part,
    spread_part,
)
from fastcifar.cli.display.html import Cell, Part, page, paragraphs, table
from fastcifar.stats import Estimate, Interval


def bench_page(
    runs: Sequence[RunRecord], names: Sequence[str], report: Report, margin: float, data: Mapping[str, Any]
) -> str:
    """The page of these runs of the recipes of these names; `margin` in percentage points, `data` what `--json` holds.

    The page keeps the data without the single runs, which would make it large.
    """
    parts = [summary_part(report), runs_part(runs, report)]
    if any(one.accuracy and one.accuracy.std is not None for one in report.recipes):
        parts.append(spread_part(runs, report))
    found = courses(runs, names, margin)
    if found:
        parts.append(differences_part(report, found))
        parts.append(courses_part(report, found, margin))
    if len({run.at for run in runs}) > 1:
        parts.append(drift_part(runs, report))
    kept = {key: value for key, value in data.items() if key != "runs"}
    return page(finding(report), subtitle(runs, report), parts, kept)


def finding(report: Report) -> str:
    """The result in a sentence: the verdict of one comparison, or who is more and who less accurate than the first."""
    compared = report.comparisons
    if len(compared) == 1:
        return compared[0].verdict
    if not compared:
        return means(report)
    words = {"more": "more accurate", "less": "less accurate", "": "no difference shown"}
    sides: dict[str, list[str]] = {key: [] for key in words}
    for each in compared:
        sides[side(each.accuracy_ci95)].append(label(each.b, each.fraction))
    said = [f"{words[key]}: {listed(names)}" for key, names in sides.items() if names]
    references = dict.fromkeys(label(each.a, each.fraction) for each in compared)
    return f"Against {listed(list(references))}, {'; '.join(said)}."


def side(interval: Interval | None) -> str:
    """Whether an interval of a difference says more or less; nothing where it holds zero."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return ""
    return "more" if interval[0] > 0 else "less"


def means(report: Report) -> str:
    """The accuracies of a few recipes; of many, the best one's."""
    finished = [one for one in report.recipes if one.accuracy is not None]
    if not finished:
        return "No run came to an end."
    if len(finished) > 3:
        best = max(finished, key=lambda one: one.accuracy.mean if one.accuracy else 0.0)
        return f"Of {len(finished)} recipes {name_of(best)} is the most accurate: {points(best.accuracy)} %"
    return "; ".join(f"{name_of(one)}: {points(one.accuracy)} %{in_time(one)}" for one in finished)


def in_time(one: Summary) -> str:
    """The train time, where there is one."""
    return f" in {seconds(one.train_s)} s" if one.train_s else ""


def subtitle(runs: Sequence[RunRecord], report: Report) -> str:
    """How many runs of what, and where."""
    seeds = [run.seed for run in runs]
    which = (
        "" if not seeds else f", seeds {min(seeds)} to {max(seeds)}" if len(set(seeds)) > 1 else f", seed {seeds[0]}"
    )
    where = "; ".join(map(str, report.machines)) or "an unknown machine"
    count = "1 run" if len(runs) == 1 else f"{len(runs):,} runs"
    return f"{count} of {listed([name_of(one) for one in report.recipes], 8)}{which}; on {where}."


def summary_part(report: Report) -> Part:
    """The verdicts and the tables."""
    said = finding(report)
    body = paragraphs([sentence for sentence in remarks(report) if sentence != said]) + recipes_table(report)
    if report.comparisons:
        body += comparisons_table(report)
    return Part(
        "In figures" if means(report) == said else means(report),
        body,
        "Accuracy on the images that a run is judged by, train time in seconds. What stands behind ± is half the 95 % "
        "interval of the mean, std the standard deviation over runs. Differences in percentage points, times as "
        "ratios, over runs with the same seed.",
    )


def recipes_table(report: Report) -> Markup:
    """A row a recipe and machine."""
    target = [] if report.target is None else [f"p(< {report.target:g} %)"]
    columns = ["recipe", "runs", "accuracy, %", "at least, %", "std", "train time, s", "std"]
    flops = any(one.flops is not None for one in report.recipes)
    columns += [*(["FLOPs"] if flops else []), *target]
    several = len(report.machines) > 1
    rows: list[list[Cell]] = []
    for one in report.recipes:
        timed_by: list[TimeSummary | None] = [*one.times] or [None]
        for each in timed_by:
            timed = each.train_s if each else None
            row: list[Cell] = [name_of(one), (runs_cell(one), one.runs)]
            row += [estimate_cell(points, one.accuracy), estimate_cell(lower_bound, one.accuracy)]
            row += [(spread(one.accuracy, POINT), one.accuracy.std if one.accuracy else None)]
            row += [estimate_cell(seconds, timed), (spread(timed, 1), timed.std if timed else None)]
            row += [(flops_figure(one.flops), one.flops)] if flops else []
            row += [(probability(one.p_target), one.p_target)] if target else []
            row += [f"{each.machine or ''}, {each.engine or ''}" if each else ""] if several else []
            rows.append(row)
    return table([*columns, *(["machine"] if several else [])], rows)


def estimate_cell(show: Any, estimate: Estimate | None) -> Cell:
    """An estimate as shown by a function, sorted by its mean."""
    return show(estimate), estimate.mean if estimate else None


def comparisons_table(report: Report) -> Markup:
    """A row a comparison."""
    columns = ["recipe", "against", "seeds", "points", "95 %", "p", "time ratio", "95 %", "p"]
    rows: list[list[Cell]] = []
    for each in report.comparisons:
        ratio = "" if each.time_ratio is None else f"{each.time_ratio:.3f}"
        row: list[Cell] = [label(each.b, each.fraction), label(each.a, each.fraction), (f"{each.pairs}", each.pairs)]
        row += [(f"{each.accuracy_difference / POINT:+.3f}", each.accuracy_difference)]
        row += [(between(each.accuracy_ci95, 1 / POINT, "+.2f"), each.accuracy_ci95[0] if each.accuracy_ci95 else None)]
        row += [("any time" if each.sequential else probability(each.accuracy_p), each.accuracy_p)]
        row += [(ratio, each.time_ratio), (between(each.time_ci95, 1, ".3f"), (each.time_ci95 or (None,))[0])]
        rows.append([*row, (probability(each.time_p), each.time_p)])
    return table(columns, rows)
