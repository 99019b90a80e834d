"""What the runs of a bench say: each recipe's accuracy and time, and how they compare with the first one's.

Pure functions of the lines of results files.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fastcifar import stats
from fastcifar.bench.results import Record
from fastcifar.stats import Estimate

LEVEL = 0.05  # of all tests and intervals
POWER = 0.8
POINT = 0.01  # a percentage point, as a fraction
FINEST = 0.05 * POINT  # the difference in accuracy that people ask for: the records' own margin


@dataclass(frozen=True)
class Summary:
    """One recipe over its runs; accuracies are fractions, times seconds."""

    name: str
    runs: int
    diverged: int
    accuracy: Estimate | None  # None where no run came to its end
    train_s: Estimate | None
    p_target: float | None  # one-sided, of "the mean is below the target": small where it is clearly above
    outliers: list[int]  # seeds whose train time is far from the others'
    drift: float | None  # relative change of the train time from the first run to the last, where there is a trend


@dataclass(frozen=True)
class Comparison:
    """One recipe, b, against the first, a, over the seeds that both finished: b minus a, and b's time over a's."""

    a: str
    b: str
    pairs: int
    accuracy_difference: float
    accuracy_ci95: list[float] | None
    accuracy_p: float | None  # None with `sequential`, whose interval may be looked at any time
    time_ratio: float
    time_ci95: list[float] | None
    time_p: float | None
    sequential: bool
    clear: bool
    verdict: str


@dataclass(frozen=True)
class Report:
    """All of it; `clear` where a sequential bench may stop."""

    recipes: list[Summary]
    comparisons: list[Comparison]
    target: float | None  # percent

    @property
    def clear(self) -> bool:
        return bool(self.comparisons) and all(each.clear for each in self.comparisons)

    @property
    def missed(self) -> list[str]:
        """The recipes whose mean accuracy is below the target, or that finished no run."""
        if self.target is None:
            return []
        return [r.name for r in self.recipes if r.accuracy is None or 100 * r.accuracy.mean < self.target]

    def document(self) -> dict[str, Any]:
        """What `--json` holds of it."""
        return {
            "recipes": [asdict(each) for each in self.recipes],
            "comparisons": [asdict(each) for each in self.comparisons],
            "target": self.target,
        }


def summarize(runs: list[Record], names: list[str], target: float | None, margin: float | None = None) -> Report:
    """The report of these runs; with a `margin` (percentage points) the comparisons are sequential ones.

    Each recipe is held against the first one, or the first whose runs are as long.
    """
    by_name = {name: sorted((r for r in runs if r["name"] == name), key=lambda r: r["seed"]) for name in names}
    finished = {name: [run for run in lines if run["accuracy"] is not None] for name, lines in by_name.items()}
    summaries = [summary(name, by_name[name], finished[name], target) for name in names]
    first: dict[str, str] = {}  # of each length of runs: a search has several, which stand behind the @ of a name
    against = [(first.setdefault(name.partition("@")[2], name), name) for name in names]
    against = [(reference, name) for reference, name in against if name != reference]
    comparisons = []
    for reference, name in against:
        if pairs := paired(finished[reference], finished[name]):
            comparisons.append(compare(reference, name, pairs, margin, len(against)))
    return Report(summaries, comparisons, target)


def summary(name: str, lines: list[Record], finished: list[Record], target: float | None) -> Summary:
    """One recipe's figures."""
    accuracies, times = [run["accuracy"] for run in finished], [run["train_s"] for run in finished]
    in_order = [run["train_s"] for run in sorted(finished, key=lambda run: run["at"])]
    p_target = None
    if target is not None and len(accuracies) > 1:
        p_target = stats.p_below_target(accuracies, target / 100)
    return Summary(
        name,
        len(lines),
        len(lines) - len(finished),
        stats.estimate(accuracies) if accuracies else None,
        stats.estimate(times) if times else None,
        p_target,
        [finished[i]["seed"] for i in stats.outliers(times)],
        stats.drift(in_order) if len(in_order) > 1 else None,
    )


def paired(a: list[Record], b: list[Record]) -> list[tuple[Record, Record]]:
    """The runs of two recipes with the same seeds, in the order in which the pairs were complete."""
    by_seed = {run["seed"]: run for run in a}
    pairs = [(by_seed[run["seed"]], run) for run in b if run["seed"] in by_seed]
    return sorted(pairs, key=lambda pair: max(pair[0]["at"], pair[1]["at"]))


def compare(a: str, b: str, pairs: list[tuple[Record, Record]], margin: float | None, comparisons: int) -> Comparison:
    """b against a. With a margin the interval is an anytime-valid sequence (see `stats.confidence_sequence`), its
    level split among the comparisons."""
    accuracies, times = ([[run[key] for run in side] for side in zip(*pairs, strict=True)] for key in KEYS)
    difference, ratio = stats.paired_difference(*accuracies), stats.time_ratio(*times)
    interval, p, clear = difference.ci95, difference.p, False
    if margin is not None:
        values = [y - x for x, y in zip(*accuracies, strict=True)]
        interval, p = stats.confidence_sequence(values, LEVEL / comparisons)[-1], None
        clear = stats.verdict(interval, margin * POINT) != "open"
        interval = interval if math.isfinite(interval[0]) and math.isfinite(interval[1]) else None
    spread = stats.estimate([y - x for x, y in zip(*accuracies, strict=True)]).std
    return Comparison(
        a,
        b,
        len(pairs),
        difference.effect,
        None if interval is None else list(interval),
        p,
        ratio.effect,
        None if ratio.ci95 is None else list(ratio.ci95),
        ratio.p,
        margin is not None,
        clear,
        f"{accuracy_in_words(b, a, difference.effect, interval, margin, spread)} {time_in_words(b, ratio)}",
    )


KEYS = ("accuracy", "train_s")


def accuracy_in_words(b: str, a: str, effect: float, interval: Any, margin: float | None, spread: float | None) -> str:
    """What is known of the accuracies."""
    if interval is None or spread is None:
        return f"Too few runs to tell the accuracies of {b} and {a} apart."
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


def time_in_words(b: str, ratio: stats.Comparison) -> str:
    """What is known of the times."""
    if ratio.ci95 is None or ratio.ci95[0] <= 1 <= ratio.ci95[1]:
        return "No difference in time shown."
    return f"{b} takes {ratio.effect:.3g} times as long ({ratio.ci95[0]:.3g} to {ratio.ci95[1]:.3g})."
