"""The time of a candidate over the time that the base would take to the same accuracy.

Candidates differ in accuracy and in time. Assumption: near its length, the base's error falls as a power of its train
time,

    log(time) = constant + slope * log(error),    slope < 0,

whose slope its own runs of two lengths give. A candidate with error e then competes with a base that is long enough to
reach e, and its relative cost is

    log(cost) = log(time / base time) - slope * (log(error) - log(base error)).

The slope is taken for exact: the interval of a cost holds the spread of runs over seeds alone. Outside the two lengths
the power law is extrapolated: this ranks candidates, a bench confirms them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastcifar import stats
from fastcifar.bench.records import RunRecord

MIN_GAIN = 0.02  # in the logarithm of the error, from twice the epochs: less is noise, and gives no slope
MAX_LOG = 300.0  # a logarithm of costs beyond which they are all alike
Pair = tuple[RunRecord, RunRecord]  # of the same seed, both with an accuracy


def log_error(run: RunRecord, images: int) -> float:
    """The logarithm of the share of misclassified images; half an image where there is none."""
    assert run.accuracy is not None
    return math.log(max(1 - run.accuracy, 0.5 / images))


def log_time_ratio(a: RunRecord, b: RunRecord) -> float:
    """The logarithm of b's train time over a's."""
    assert a.train_s is not None and b.train_s is not None
    return math.log(b.train_s / a.train_s)


def error_slope(pairs: Sequence[Pair], images: int) -> float | None:
    """How the logarithm of the base's time goes with that of its error, from pairs of a shorter and a longer run of
    it, whose accuracy is of so many images; None where longer runs did not help."""
    if not pairs:
        return None
    time = sum(log_time_ratio(short, long) for short, long in pairs) / len(pairs)
    error = sum(log_error(long, images) - log_error(short, images) for short, long in pairs) / len(pairs)
    return time / error if time > 0 and error < -MIN_GAIN else None


def relative_cost(pairs: Sequence[Pair], slope: float, images: int) -> tuple[float, stats.Interval | None]:
    """A candidate's relative cost, a geometric mean over pairs of base and candidate, and its 95 % interval."""
    logs = stats.estimate(
        [log_time_ratio(base, run) - slope * (log_error(run, images) - log_error(base, images)) for base, run in pairs]
    )
    cost = math.exp(min(logs.mean, MAX_LOG))
    if logs.ci95 is None:
        return cost, None
    low, high = logs.ci95
    return cost, (math.exp(max(low, -MAX_LOG)), math.exp(min(high, MAX_LOG)))
