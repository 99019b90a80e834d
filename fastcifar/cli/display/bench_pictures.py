"""The pictures on the page of a bench, each with a title that says the finding."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from markupsafe import Markup

from fastcifar.bench.records import RunRecord
from fastcifar.bench.report import POINT, Course, Report, Summary, label
from fastcifar.cli.display.bench import between, figure, points, run_line, seconds, spread
from fastcifar.cli.display.chart import Plot
from fastcifar.cli.display.html import Part, inline, legend, pictures

MOST_POINTS = 2000  # in one picture; of more runs every n-th is drawn
MOST_STEPS = 400  # of a line
MOST_COURSES = 6  # pictures of how an interval narrowed
MOST_ROWS = 40  # recipes, or comparisons, in one picture
BINS = 40  # of a histogram, across the picture
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

Item = TypeVar("Item")


def name_of(one: Summary) -> str:
    """A recipe's name with the length of its runs."""
    return label(one.name, one.fraction)


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many others there are."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} other{'s' * (left > 1)}" if left > 0 else "")


def thin(items: Sequence[Item], most: int) -> tuple[Sequence[Item], str]:
    """At most so many of the items, and what has to be said about it."""
    step = math.ceil(len(items) / max(1, most))
    return (items, "") if step <= 1 else (items[::step], f" Of {len(items):,} every {ordinal(step)} is drawn.")


def ordinal(number: int) -> str:
    """2nd, 3rd, 4th…"""
    ends = {1: "st", 2: "nd", 3: "rd"} if number % 100 not in (11, 12, 13) else {}
    return f"{number}{ends.get(number % 10, 'th')}"


def run_words(run: RunRecord) -> str:
    """A finished run as its tooltip."""
    timed = "" if run.train_s is None else f" in {figure(run.train_s)} s"
    where = f"\n{run.machine}" if run.machine else ""
    return f"{label(run.name, run.fraction)}, seed {run.seed}: {100 * (run.accuracy or 0):.2f} %{timed}{where}"


def runs_part(runs: Sequence[RunRecord], report: Report) -> Part:
    """Every finished run over its train time and accuracy, and the means with their intervals."""
    finished = [run for run in runs if run.accuracy is not None and run.train_s is not None]
    drawn, said = thin(finished, MOST_POINTS)
    times = [run.train_s for run in finished if run.train_s is not None]
    accuracies = [100 * run.accuracy for run in finished if run.accuracy is not None]
    for one in report.recipes:
        times += (one.train_s and one.train_s.ci95) or ()
        accuracies += [100 * end for end in (one.accuracy and one.accuracy.ci95) or ()]
    accuracies += [] if report.target is None else [report.target]
    plot = Plot("Every run: train time and accuracy", ("train time, s", times), ("accuracy, %", accuracies))
    if report.target is not None:
        plot.level(report.target, f"target: {report.target:g} %")
    for i, one in enumerate(report.recipes):
        group = plot.group(i)
        for run in drawn:
            if (run.name, run.fraction) == (one.name, one.fraction):
                plot.point(group, (run.train_s or 0.0, 100 * (run.accuracy or 0.0)), run_words(run))
    for i, one in enumerate(report.recipes):
        draw_means(plot, i, one)
    gone = [run_line(run) for run in runs if run.accuracy is None]
    missing = f" Not drawn: {len(gone)} that diverged or failed ({listed(gone)})." if gone else ""
    aim = "" if report.target is None else f" The dashed line is the target, {report.target:g} %."
    title = "Every run: its train time and its accuracy"
    if len(report.comparisons) == 1 and (ratio := report.comparisons[0].time_ratio) is not None:
        each = report.comparisons[0]
        title = f"{label(each.b, each.fraction)} takes {ratio:.3g} times as long as {label(each.a, each.fraction)}"
    return Part(
        title,
        legend([name_of(one) for one in report.recipes]) + inline(plot.svg),
        f"A point is a run; the large one is a recipe's mean, its cross the 95 % intervals.{aim}{said}{missing} Drag "
        "over a part of a picture to enlarge it, or use its buttons; a click on a name hides its points.",
    )


def draw_means(plot: Plot, series: int, one: Summary) -> None:
    """The means of a recipe with their intervals as a cross; nothing where its times are of several machines."""
    if one.accuracy is None or one.train_s is None:
        return
    across, down = one.train_s.mean, 100 * one.accuracy.mean
    group = plot.group(series)
    words = f"{name_of(one)}, mean of {one.runs} runs: {points(one.accuracy)} % in {seconds(one.train_s)} s"
    plot.point(group, (across, down), words, "mean")
    if one.train_s.ci95:
        plot.line(group, [(end, down) for end in one.train_s.ci95], words)
    if one.accuracy.ci95:
        plot.line(group, [(across, 100 * end) for end in one.accuracy.ci95], words)


def spread_part(runs: Sequence[RunRecord], report: Report) -> Part:
    """The distribution of accuracies: a row a recipe."""
    shown = report.recipes[:MOST_ROWS]
    values = {
        (one.name, one.fraction): [
            run for run in runs if run.accuracy is not None and (run.name, run.fraction) == (one.name, one.fraction)
        ]
        for one in shown
    }
    ends = [100 * run.accuracy for group in values.values() for run in group if run.accuracy is not None]
    names = [name_of(one) for one in shown]
    plot = Plot("Accuracies by recipe", ("accuracy, %", ends), height=70 + 90.0 * len(names), rows=names)
    said = ""
    for i, one in enumerate(shown):
        made = values[one.name, one.fraction]
        draw_histogram(plot, i, made)
        drawn, left_out = thin(made, MOST_POINTS // len(values))
        said = left_out or said
        group = plot.group(i)
        for run in drawn:
            jitter = 0.12 + 0.22 * (run.seed * 0.618034 % 1)
            plot.point(group, (100 * (run.accuracy or 0.0), i + jitter), run_words(run))
        draw_row_mean(plot, i, one)
    stds = [f"{spread(one.accuracy, POINT)} in {name_of(one)}" for one in report.recipes if spread(one.accuracy, POINT)]
    return Part(
        f"Accuracy spreads by {listed(stds)} (standard deviation, points)" if stds else "Accuracies by recipe",
        inline(plot.svg),
        "Bars count all runs, points below them are single runs; the large point is the mean with its 95 % interval."
        f"{said}{first_rows(len(report.recipes))}",
    )


def first_rows(count: int) -> str:
    """Says that a picture has not all rows, where it has not."""
    return f" The first {MOST_ROWS} of {count}." if count > MOST_ROWS else ""


def draw_histogram(plot: Plot, row: int, runs: Sequence[RunRecord]) -> None:
    """How many runs fall into each stripe of the picture, as bars that stand on the row's line."""
    width = (plot.x.high - plot.x.low) / BINS
    counts = Counter(int((100 * run.accuracy - plot.x.low) / width) for run in runs if run.accuracy is not None)
    group = plot.group(row)
    for place, count in sorted(counts.items()):
        left, top = plot.x.low + place * width, row - 0.3 * count / max(counts.values())
        words = f"{count} runs of {left:.2f} to {left + width:.2f} %"
        plot.line(group, [(left, row), (left, top), (left + width, top), (left + width, row)], words, "bar")


def draw_row_mean(plot: Plot, row: int, one: Summary) -> None:
    """The mean accuracy of a recipe with its interval on the row's line."""
    if one.accuracy is None:
        return
    group, words = plot.group(row), f"{name_of(one)}, mean: {points(one.accuracy)} %"
    plot.point(group, (100 * one.accuracy.mean, row + 0.04), words, "mean")
    if one.accuracy.ci95:
        plot.line(group, [(100 * end, row + 0.04) for end in one.accuracy.ci95], words)


def differences_part(report: Report, found: Sequence[Course]) -> Part:
    """The differences in accuracy with the same seed: a row a comparison."""
    shown = found[:MOST_ROWS]
    names = [f"{label(each.b, each.fraction)} − {label(each.a, each.fraction)}" for each in shown]
    values = [100 * value for each in shown for value in each.differences]
    words = "Differences in accuracy by seed"
    plot = Plot(
        words, ("difference in accuracy, percentage points", [0.0, *values]), height=70 + 80.0 * len(shown), rows=names
    )
    plot.upright(0.0, "no difference", "zero")
    said = ""
    for i, (each, compared) in enumerate(zip(shown, report.comparisons, strict=False)):
        drawn, left_out = thin(list(zip(each.seeds, each.differences, strict=True)), MOST_POINTS // len(shown))
        said = left_out or said
        group = plot.group(series_of(report, each))
        for seed, value in drawn:
            jitter = 0.1 + 0.25 * (seed * 0.618034 % 1)
            plot.point(group, (100 * value, i + jitter), f"{names[i]}, seed {seed}: {100 * value:+.2f} points")
        mean, interval = 100 * compared.accuracy_difference, compared.accuracy_ci95
        words = f"{names[i]}: {mean:+.3f} points" + (f" ({between(interval, 100, '+.2f')})" if interval else "")
        plot.point(group, (mean, i - 0.1), words, "mean")
        if interval:
            plot.line(group, [(100 * end, i - 0.1) for end in interval], words)
    references = {(one.a, one.fraction) for one in found}
    of = f" of {label(*references.pop())}" if len(references) == 1 else ""
    ahead = [
        f"{label(one.b, one.fraction)} {'' if of else f'of {label(one.a, one.fraction)} '}{won(one)}" for one in found
    ]
    return Part(
        f"Ahead{of} with the same seed: {listed(ahead)}",
        inline(plot.svg),
        "A point is the difference of two runs with the same seed; above them the mean with its 95 % interval "
        f"({'anytime-valid' if report.comparisons[0].sequential else 'paired t'}).{said}{first_rows(len(found))}",
    )


def won(course: Course) -> str:
    """With how many seeds b was the more accurate."""
    return f"in {sum(value > 0 for value in course.differences)} of {len(course.differences)}"


def courses_part(report: Report, found: Sequence[Course], margin: float) -> Part:
    """How the anytime-valid intervals of the differences narrowed, and where they were clear."""
    clear = [each.clear_after for each in found if each.clear_after is not None]
    if len(found) == 1:
        title = f"{course_title(found[0])}{', where --until-clear stops' if clear else ': --until-clear goes on'}"
    elif len(clear) < len(found):
        title = f"{len(clear)} of {len(found)} comparisons are clear: --until-clear goes on"
    else:
        title = f"All clear after {max(clear)} of {len(found[0].seeds)} seeds: there --until-clear stops"
    left_out = len(found) - MOST_COURSES
    drawn = [(course_title(one), course_picture(one, margin, series_of(report, one))) for one in found[:MOST_COURSES]]
    return Part(
        title,
        drawn[0][1] if len(drawn) == 1 else pictures(drawn),
        "The difference's anytime-valid 95 % confidence sequence, whose level is split among the comparisons: one may "
        f"look after every seed. It is clear when it excludes zero or lies within ±{margin:g} points (dashed); a bench "
        "with --until-clear stops when all are." + (f" The other {left_out} are not drawn." if left_out > 0 else ""),
    )


def series_of(report: Report, course: Course) -> int:
    """The series, and so the colour, of the recipe that is compared."""
    keys = [(one.name, one.fraction) for one in report.recipes]
    return keys.index((course.b, course.fraction))


def course_title(each: Course) -> str:
    """What a comparison came to."""
    b, a, count = label(each.b, each.fraction), label(each.a, each.fraction), len(each.seeds)
    if each.clear_after is None:
        return f"{b} against {a}: not clear after {count} seeds"
    return f"{b} against {a}: clear after {each.clear_after} of {count} seeds"


def course_picture(each: Course, margin: float, series: int) -> Markup:
    """The interval after each seed as a band; nothing before it is finite, cut off where it is very wide."""
    count = len(each.seeds)
    steps = [(n, 100 * low, 100 * high) for n, (low, high) in enumerate(each.intervals, 1) if math.isfinite(high - low)]
    if not steps:
        return Markup("<p>No finite interval yet: it takes a few more seeds.</p>")
    _, low, high = steps[-1]
    reach = 5 * max(high - low, 0.01)
    floor, ceiling = min(0.0, low) - reach, max(0.0, high) + reach
    shown = [*thin(steps, MOST_STEPS)[0], steps[-1]]
    lows = [(float(n), max(floor, below)) for n, below, _ in shown]
    highs = [(float(n), min(ceiling, above)) for n, _, above in shown]
    reached = [0.0, *(end for _, end in [*lows, *highs])]
    plot = Plot(course_title(each), ("seeds", [0.0, float(count)]), ("difference, points", reached), height=300)
    plot.level(0.0, "no difference", "zero")
    for end in (-margin, margin):
        plot.level(end, f"equivalence margin: {end:+g} points")
    group = plot.group(series)
    plot.band(group, lows, highs)
    plot.line(group, lows)
    plot.line(group, highs)
    for n, below, above in shown:
        if floor < below and above < ceiling:
            words = f"after {n} seeds: {below:+.3f} to {above:+.3f} points"
            plot.line(group, [(float(n), below), (float(n), above)], words, "mark sense")
    if each.clear_after is not None:
        plot.upright(float(each.clear_after), f"clear after {each.clear_after} seeds")
    return inline(plot.svg)


def unit_of(seconds: float) -> tuple[float, str]:
    """The unit of time, in seconds, that suits a period, and what it is called."""
    units = ((DAY, "days"), (HOUR, "hours"), (MINUTE, "minutes"))
    return next(((unit, name) for unit, name in units if seconds > 3 * unit), (1.0, "seconds"))


def drift_part(runs: Sequence[RunRecord], report: Report) -> Part:
    """Train times over the hours in which they were measured, as a share of their recipe's mean."""
    mean = {
        (one.name, one.fraction, each.machine, each.engine): each.train_s.mean
        for one in report.recipes
        for each in one.times
        if each.train_s
    }
    start = min(run.at for run in runs)
    unit, name = unit_of(max(run.at for run in runs) - start)
    placed = []
    for run in runs:
        usual = mean.get((run.name, run.fraction, run.machine, run.engine))
        if usual and run.train_s is not None and run.undisturbed:
            placed.append((run, (run.at - start) / unit, 100 * (run.train_s / usual - 1)))
    drawn, said = thin(placed, MOST_POINTS)
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(start))
    x = (f"{name} since {began}", [at for _, at, _ in placed])
    plot = Plot(
        "Train times over the day", x, ("time over its mean, %", [0.0, *(far for *_, far in placed)]), height=300
    )
    plot.level(0.0, "the mean of each recipe", "zero")
    for i, one in enumerate(report.recipes):
        group = plot.group(i)
        for run, at, far in drawn:
            if (run.name, run.fraction) == (one.name, one.fraction):
                plot.point(group, (at, far), f"{run_words(run)}\n{far:+.1f} % from the mean")
    changes = [f"{name_of(one)} {100 * one.drift:+.0f} %" for one in report.recipes if one.drift is not None]
    left_out = sum(one.left_out for one in report.recipes)
    without = f" Left out: {left_out} beside which others used the processors." if left_out else ""
    return Part(
        f"Train times drifted from first to last: {listed(changes)}"
        if changes
        else "No drift of the train times shown",
        legend([name_of(one) for one in report.recipes]) + inline(plot.svg),
        "When each run ended, and how far its train time is from the mean of its recipe on its machine."
        f"{said}{without}",
    )
