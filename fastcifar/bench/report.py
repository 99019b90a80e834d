"""What the runs of a bench say: each recipe's accuracy and time, and how they compare with the first one's.

Pure functions of run records. Accuracy is pooled over all runs; times stand by machine and engine, never pooled, and
without the runs beside which others used the processors (`MAX_OTHER_LOAD`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastcifar import stats
from fastcifar.bench.records import Machine, RunRecord
from fastcifar.stats import Estimate, Interval

LEVEL = 0.05  # of all tests and intervals
POWER = 0.8
POINT = 0.01  # a percentage point, as a fraction
FINEST = 0.05 * POINT  # the difference in accuracy that people look for: the records' own margin
Pair = tuple[RunRecord, RunRecord]  # of two recipes, with the same seed, both with an accuracy
Groups = dict[tuple[str, float], list[RunRecord]]  # by name and fraction


@dataclass(frozen=True)
class TimeSummary:
    """One recipe's train times on one machine with one engine, seconds."""

    machine: Machine | None
    engine: str | None
    runs: int  # whose times count
    left_out: int  # runs beside which others used the processors
    train_s: Estimate | None  # None where all were left out
    outliers: list[int]  # seeds whose train time is far from the others'
    drift: float | None  # relative change from the first run to the last, where there is a trend


@dataclass(frozen=True)
class Summary:
    """One recipe over its runs of one length; accuracies are fractions, times seconds.

    `train_s`, `outliers` and `drift` are of the times where all runs are of one machine; see `times` otherwise.
    """

    name: str
    fraction: float  # of the recipe's epochs
    runs: int
    diverged: int
    accuracy: Estimate | None  # None where no run was finished
    train_s: Estimate | None
    p_target: float | None  # one-sided, of "the mean is below the target": small where it is clearly above
    outliers: list[int]
    drift: float | None
    flops: int | None
    times: list[TimeSummary]

    @property
    def left_out(self) -> int:
        """Runs that are left out of the times."""
        return sum(each.left_out for each in self.times)


@dataclass(frozen=True)
class TimeRatio:
    """b's train time over a's on one machine, over the seeds whose times both count."""

    machine: Machine | None
    pairs: int
    ratio: float
    ci95: Interval | None
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """One recipe, b, with the first, a, over the seeds that both finished: b minus a, and b's time over a's.

    `time_ratio`, `time_ci95` and `time_p` are None unless all pairs of times are of one machine; see `times` then.
    """

    a: str
    b: str
    fraction: float
    pairs: int
    accuracy_difference: float
    accuracy_ci95: Interval | None
    accuracy_p: float | None  # None with `sequential`, whose interval is anytime-valid
    time_ratio: float | None
    time_ci95: Interval | None
    time_p: float | None
    times: list[TimeRatio]
    sequential: bool
    clear: bool
    verdict: str


@dataclass(frozen=True)
class Course:
    """A comparison of accuracies pair by pair, in the order in which the pairs were complete."""

    a: str
    b: str
    fraction: float
    seeds: list[int]
    differences: list[float]  # b minus a, of one
    intervals: list[Interval]  # the anytime-valid confidence sequence after each pair
    clear_after: int | None  # pairs after which it first excluded zero or lay within the margin


@dataclass(frozen=True)
class Report:
    """All recipes and comparisons."""

    recipes: list[Summary]
    comparisons: list[Comparison]
    target: float | None  # percent

    @property
    def clear(self) -> bool:
        """Whether a sequential bench may stop."""
        return bool(self.comparisons) and all(comparison.clear for comparison in self.comparisons)

    @property
    def missed(self) -> list[str]:
        """The recipes whose mean accuracy is below the target, or that finished no run."""
        if self.target is None:
            return []
        return [r.name for r in self.recipes if r.accuracy is None or 100 * r.accuracy.mean < self.target]

    @property
    def machines(self) -> list[Machine]:
        """The machines that times are of."""
        return list(
            dict.fromkeys(each.machine for one in self.recipes for each in one.times if each.machine and each.runs)
        )

    def document(self) -> dict[str, Any]:
        """What `--json` holds of it."""
        return {
            "recipes": [asdict(summary) for summary in self.recipes],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "target": self.target,
        }


def summarize(
    runs: Sequence[RunRecord], names: Sequence[str], target: float | None, margin: float | None = None
) -> Report:
    """The report of these runs; with a `margin` (percentage points) the comparisons are sequential ones.

    Recipes are compared with the first one whose runs are as long.
    """
    groups, against = contests(runs, names)
    comparisons = []
    for a, b, fraction in against:
        if pairs := paired(groups[a, fraction], groups[b, fraction]):
            comparisons.append(compare(pairs, margin, len(against)))
    return Report([summary(*key, group, target) for key, group in groups.items()], comparisons, target)


def contests(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[Groups, list[tuple[str, str, float]]]:
    """The runs by recipe and length, in the order of their seeds; and which recipes are compared: a, b, length."""
    made = {(run.name, run.fraction) for run in runs}
    fractions = sorted({run.fraction for run in runs}) or [1.0]
    keys = [(n, f) for f in fractions for n in names if len(fractions) == 1 or (n, f) in made]
    groups: Groups = {key: [] for key in keys}
    for run in sorted(runs, key=lambda run: run.seed):
        if (run.name, run.fraction) in groups:
            groups[run.name, run.fraction].append(run)
    first = {fraction: name for name, fraction in reversed(keys)}
    return groups, [(first[fraction], name, fraction) for name, fraction in keys if first[fraction] != name]


def courses(runs: Sequence[RunRecord], names: Sequence[str], margin: float) -> list[Course]:
    """How each comparison of accuracies went, one for each of `summarize`; `margin` in percentage points."""
    groups, against = contests(runs, names)
    return [
        course(pairs, margin, len(against))
        for a, b, fraction in against
        if (pairs := paired(groups[a, fraction], groups[b, fraction]))
    ]


def course(pairs: list[Pair], margin: float, comparisons: int) -> Course:
    """How the comparison of at least one pair went."""
    values = differences(pairs)
    intervals = stats.confidence_sequence(values, LEVEL / comparisons)
    clear = (n for n, each in enumerate(intervals, 1) if stats.verdict(each, margin * POINT) != "open")
    first, second = pairs[0]
    seeds = [run.seed for _, run in pairs]
    return Course(first.name, second.name, first.fraction, seeds, values, intervals, next(clear, None))


def differences(pairs: list[Pair]) -> list[float]:
    """The accuracies of b minus those of a."""
    return [y.accuracy - x.accuracy for x, y in pairs if x.accuracy is not None and y.accuracy is not None]


def summary(name: str, fraction: float, runs: list[RunRecord], target: float | None) -> Summary:
    """One recipe's figures."""
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    p_target = None
    if target is not None and len(accuracies) > 1:
        p_target = stats.p_below_target(accuracies, target / 100)
    times = time_summaries(runs)
    one = times[0] if len(times) == 1 else None
    counted = {run.flops for run in runs if run.flops is not None}
    return Summary(
        name,
        fraction,
        len(runs),
        len(runs) - len(accuracies),
        stats.estimate(accuracies) if accuracies else None,
        one.train_s if one else None,
        p_target,
        [seed for each in times for seed in each.outliers],
        one.drift if one else None,
        counted.pop() if len(counted) == 1 else None,
        times,
    )


def time_summaries(runs: list[RunRecord]) -> list[TimeSummary]:
    """The times of one recipe by machine and engine, in the order of the runs."""
    finished = [run for run in runs if run.train_s is not None]
    groups = dict.fromkeys((run.machine, run.engine) for run in finished)
    return [time_summary([run for run in finished if (run.machine, run.engine) == key]) for key in groups]


def time_summary(runs: list[RunRecord]) -> TimeSummary:
    """The times of at least one finished run of one machine and engine."""
    counted = [run for run in runs if run.undisturbed]
    times = [run.train_s for run in counted if run.train_s is not None]
    in_order = [run.train_s for run in sorted(counted, key=lambda run: run.at) if run.train_s is not None]
    return TimeSummary(
        runs[0].machine,
        runs[0].engine,
        len(counted),
        len(runs) - len(counted),
        stats.estimate(times) if times else None,
        [counted[i].seed for i in stats.outliers(times)],
        stats.drift(in_order) if len(in_order) > 1 else None,
    )


def paired(a: list[RunRecord], b: list[RunRecord]) -> list[Pair]:
    """The finished runs of two recipes with the same seeds, in the order in which the pairs were complete."""
    by_seed = {run.seed: run for run in a if run.accuracy is not None}
    pairs = [(by_seed[run.seed], run) for run in b if run.accuracy is not None and run.seed in by_seed]
    return sorted(pairs, key=lambda pair: max(pair[0].at, pair[1].at))


def compare(pairs: list[Pair], margin: float | None, comparisons: int) -> Comparison:
    """The second recipe of at least one pair with the first. With a margin the interval is an anytime-valid confidence
    sequence (see `stats.confidence_sequence`), its level split among the comparisons."""
    first, second = pairs[0]
    values = differences(pairs)
    difference = stats.paired_difference([0.0] * len(values), values)
    interval, p, clear = difference.ci95, difference.p, False
    if margin is not None:
        sequence = stats.confidence_sequence(values, LEVEL / comparisons)[-1]
        p, clear = None, stats.verdict(sequence, margin * POINT) != "open"
        interval = sequence if math.isfinite(sequence[0]) and math.isfinite(sequence[1]) else None
    times = time_ratios(pairs)
    one = times[0] if len(times) == 1 else None
    a, b = label(first.name, first.fraction), label(second.name, second.fraction)
    spread = stats.estimate(values).std
    return Comparison(
        first.name,
        second.name,
        first.fraction,
        len(pairs),
        difference.effect,
        interval,
        p,
        one.ratio if one else None,
        one.ci95 if one else None,
        one.p if one else None,
        times,
        margin is not None,
        clear,
        f"{accuracy_in_words(b, a, difference.effect, interval, margin, spread)} {time_in_words(b, times)}",
    )


def time_ratios(pairs: list[Pair]) -> list[TimeRatio]:
    """The ratios of time by machine, over the pairs of one machine whose times both count."""
    counted = [(x, y) for x, y in pairs if x.machine == y.machine and x.undisturbed and y.undisturbed]
    ratios = []
    for machine in dict.fromkeys(x.machine for x, _ in counted):
        sides = [(x.train_s, y.train_s) for x, y in counted if x.machine == machine]
        ratio = stats.time_ratio([a for a, _ in sides if a is not None], [b for _, b in sides if b is not None])
        ratios.append(TimeRatio(machine, len(sides), ratio.effect, ratio.ci95, ratio.p))
    return ratios


def label(name: str, fraction: float) -> str:
    """A recipe's name, with the length of its runs where they are shorter."""
    return name if fraction == 1 else f"{name} at {fraction:g}"


def accuracy_in_words(
    b: str, a: str, effect: float, interval: Interval | None, margin: float | None, spread: float | None
) -> str:
    """What is known of the accuracies."""
    if interval is None or spread is None:
        return f"Too few runs to compare the accuracies of {b} and {a}."
    low, high = (abs(end) / POINT for end in sorted(interval, key=abs))
    if interval[0] > 0 or interval[1] < 0:
        word = "more" if effect > 0 else "less"
        return f"{b} is {word} accurate than {a}, by {abs(effect) / POINT:.2f} points ({low:.2f} to {high:.2f})."
    if margin is not None and high <= margin:
        return f"{b} and {a} are as accurate, within {margin:g} points."
    if margin is not None or spread == 0:
        return f"No difference in accuracy shown between {b} and {a} (at most {high:.2f} points)."
    needed = stats.runs_needed(spread, FINEST, POWER, LEVEL)
    return (
        f"No difference in accuracy shown between {b} and {a}; to see {FINEST / POINT:g} points at {100 * POWER:.0f} % "
        f"power you need about {needed:,} runs each."
    )


def time_in_words(b: str, times: list[TimeRatio]) -> str:
    """What is known of the times."""
    if not times:
        return "No times to compare."
    sentences = []
    for each in times:
        where = f" on {each.machine}" if len(times) > 1 else ""
        if each.ci95 is None or each.ci95[0] <= 1 <= each.ci95[1]:
            sentences.append(f"No difference in time shown{where}.")
        else:
            low, high = each.ci95
            sentences.append(f"{b} takes {each.ratio:.3g} times as long{where} ({low:.3g} to {high:.3g}).")
    return " ".join(sentences)
