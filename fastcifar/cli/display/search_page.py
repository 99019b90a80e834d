"""The page of a search: what it found, who went on from rung to rung, and cost against accuracy in each rung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fastcifar.bench.report import POINT
from fastcifar.cli.display.bench import SEARCH_HEADINGS, between, candidate_cells, points, remark
from fastcifar.cli.display.bench_pictures import listed
from fastcifar.cli.display.chart import Plot
from fastcifar.cli.display.figures import shorten
from fastcifar.cli.display.html import SERIES, Cell, Part, inline, legend, page, table

if TYPE_CHECKING:
    from fastcifar.bench.records import RunRecord
    from fastcifar.bench.rungs import CandidateResult, Ladder, Rung

MOST_COST = 3.0  # that is drawn; what costs more is drawn there
OTHERS, OTHERS_NAME = 6, "the others"  # the series, gray, of candidates that did not go on to the last rung


def search_page(search: Ladder, runs: list[RunRecord], device: str, data: Mapping[str, Any]) -> str:
    """The page of a search as far as it has come; `data` is what `--json` holds, kept without the single runs."""
    rungs = search.rungs(runs)
    series = colors(rungs)
    parts = [ladder_part(rungs, series)] if any(one.cost is not None for rung in rungs for one in rung.results) else []
    gone = {(run.name, run.fraction): shorten(run.error or "diverged", 40) for run in runs if run.accuracy is None}
    parts += [rung_part(rung, after, series, gone) for rung, after in zip_longest(rungs, rungs[1:])]
    base, *candidates = search.names
    subtitle = (
        f"{len(candidates)} candidates against {base} on {search.dataset}, {len(runs)} runs on {device}; "
        f"accuracy on {search.holdout:,} training images held out."
    )
    return page(remark(search, runs), subtitle, parts, {key: value for key, value in data.items() if key != "runs"})


def colors(rungs: Sequence[Rung]) -> dict[str, int]:
    """A series for each candidate: colours of their own for the first of the last rung, gray for the others."""
    last = [one.name for one in rungs[-1].results] if rungs else []
    own = [number for number in range(SERIES) if number != OTHERS]
    return dict(zip(last, own, strict=False))


def ladder_part(rungs: Sequence[Rung], series: Mapping[str, int]) -> Part:
    """The relative cost of each candidate from rung to rung; the line of one that was dropped ends."""
    costs = [(rung.fraction, one) for rung in rungs for one in rung.results if one.cost is not None]
    ends = [1.0, *(drawn_cost(one.cost) for _, one in costs)]
    lengths = [100 * rung.fraction for rung in rungs]
    plot = Plot(
        "Relative cost by rung", ("length of the runs, % of the epochs", [0.0, *lengths]), ("relative cost", ends)
    )
    plot.level(1.0, "the base", "zero")
    for name in dict.fromkeys(one.name for _, one in costs):
        mine = [(100 * fraction, one) for fraction, one in costs if one.name == name]
        group = plot.group(series.get(name, OTHERS))
        plot.line(group, [(at, drawn_cost(one.cost)) for at, one in mine], name)
        for at, one in mine:
            plot.point(group, (at, drawn_cost(one.cost)), f"at {at:g} % of the epochs, {candidate_words(one)}")
    went = [f"{len(rung.results) - 1} at {length(rung)}" for rung in rungs]
    return Part(
        f"Candidates by the length of their runs: {listed(went)}",
        legend_of(series, [one.name for rung in rungs for one in rung.results]) + inline(plot.svg),
        "Relative cost: a candidate's train time over the time in which the base would reach the same accuracy; below "
        "1 is better. Lines end where a candidate was dropped (gray) or where the time was spent. Costs above "
        f"{MOST_COST:g} are drawn there.",
    )


def length(rung: Rung) -> str:
    """How long the runs of a rung are."""
    return "full length" if rung.fraction == 1 else f"{rung.fraction:g} of the epochs"


def rung_part(rung: Rung, after: Rung | None, series: Mapping[str, int], gone: Mapping[tuple[str, float], str]) -> Part:
    """One rung: its table, and cost against accuracy; `gone` says why runs of that name and length came to nothing."""
    on = {one.name for one in after.results} if after else set()
    rows: list[Sequence[Cell]] = []
    for place, one in enumerate(rung.results):
        _, runs, accuracy, train_s, cost, interval = candidate_cells(one)
        row: list[Cell] = [one.name, (f"{place}" if place else "", place or None), (runs, one.runs)]
        cost = gone.get((one.name, rung.fraction), cost) if one.accuracy is None else cost
        row += [(accuracy, one.accuracy.mean if one.accuracy else None)]
        row += [(train_s, one.train_s.mean if one.train_s else None), (cost, one.cost)]
        row += [(interval, one.cost_ci95[0] if one.cost_ci95 else None)]
        rows.append([*row, *(["went on" if one.name in on else "dropped"] if after else [])])
    body = table(["candidate", "place", *SEARCH_HEADINGS, *(["then"] if after else [])], rows)
    known = [one for one in rung.results if one.cost is not None and one.accuracy is not None]
    if known:
        body += legend_of(series, [one.name for one in known]) + inline(cost_plot(rung, known, series).svg)
    best = next((one.name for one in rung.results[1:] if one.cost is not None), None)
    return Part(
        f"At {length(rung)} {best} comes first" if best else f"At {length(rung)} nothing can be ranked",
        body,
        f"Over {rung.seeds} seeds that all candidates of the rung finished. A point is a candidate with its 95 % "
        "intervals: the farther left and up, the better; the dashed line is the base's accuracy.",
    )


def cost_plot(rung: Rung, known: Sequence[CandidateResult], series: Mapping[str, int]) -> Plot:
    """Relative cost against accuracy, a point a candidate."""
    ends = [end for one in known for end in one.cost_ci95 or (one.cost,)]
    costs = [1.0, *map(drawn_cost, ends)]
    means = [one.accuracy for one in [rung.results[0], *known] if one.accuracy]
    accuracies = [end / POINT for one in means for end in one.ci95 or (one.mean,)]
    plot = Plot("Relative cost and accuracy", ("relative cost", costs), ("accuracy, %", accuracies))
    plot.upright(1.0, "as costly as the base", "zero")
    if base := rung.results[0].accuracy:
        plot.level(base.mean / POINT, f"the base: {points(base)} %")
    for one in reversed(known):  # the best on top
        group, words = plot.group(series.get(one.name, OTHERS)), candidate_words(one)
        at = (drawn_cost(one.cost), one.accuracy.mean / POINT if one.accuracy else 0.0)
        plot.point(group, at, words, "mean")
        if one.cost_ci95:
            plot.line(group, [(drawn_cost(end), at[1]) for end in one.cost_ci95], words)
        if one.accuracy and one.accuracy.ci95:
            plot.line(group, [(at[0], end / POINT) for end in one.accuracy.ci95], words)
    return plot


def drawn_cost(cost: float | None) -> float:
    """Where a relative cost is drawn."""
    return min(cost or 0.0, MOST_COST)


def candidate_words(one: CandidateResult) -> str:
    """A candidate as its tooltip."""
    interval = f" ({between(one.cost_ci95, 1, '.3f')})" if one.cost_ci95 else ""
    return f"{one.name}: {points(one.accuracy)} %, relative cost {one.cost:.3f}{interval}"


def legend_of(series: Mapping[str, int], names: Sequence[str]) -> Markup:
    """Those of the names, but for the base, that have a colour of their own, and what the others have."""
    own = [name for name in series if series[name] and name in names]
    others = [OTHERS_NAME] if any(name not in series for name in names) else []
    return legend([*own, *others], [*(series[name] for name in own), *[OTHERS] * len(others)])
