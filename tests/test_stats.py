"""The statistics, held against SciPy, and the promise of the confidence sequence against simulated benches."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats as scipy_stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastcifar import stats

values = st.lists(st.floats(0.5, 100), min_size=2, max_size=40)
pairs = st.lists(st.tuples(st.floats(0.5, 100), st.floats(0.5, 100)), min_size=2, max_size=40)
EXACT = {"rel": 1e-6, "abs": 1e-9}


@given(st.floats(-60, 60), st.one_of(st.integers(1, 200), st.floats(0.5, 20_000)))
@settings(max_examples=300, deadline=None)
def test_students_t(t: float, df: float) -> None:
    assert stats.student_t_cdf(t, df) == pytest.approx(scipy_stats.t.cdf(t, df), rel=1e-7, abs=1e-13)


@given(st.floats(1e-8, 1 - 1e-8), st.integers(1, 10_000))
@settings(max_examples=150, deadline=None)
def test_quantiles_of_students_t(p: float, df: int) -> None:
    assert stats.student_t_quantile(p, df) == pytest.approx(scipy_stats.t.ppf(p, df), rel=1e-7, abs=1e-9)


@given(values)
@settings(max_examples=100, deadline=None)
def test_an_estimate_is_the_t_interval(xs: list[float]) -> None:
    assume(np.std(xs) > 1e-3)
    found = stats.estimate(xs)
    low, high = scipy_stats.t.interval(0.95, len(xs) - 1, np.mean(xs), scipy_stats.sem(xs))
    assert found.mean == pytest.approx(np.mean(xs), **EXACT)
    assert found.std == pytest.approx(np.std(xs, ddof=1), **EXACT)
    assert found.ci95 == pytest.approx((low, high), **EXACT)


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_pairs_are_compared_as_scipy_does(xs: list[tuple[float, float]]) -> None:
    a, b = (list(side) for side in zip(*xs, strict=True))
    assume(np.std(np.subtract(b, a)) > 1e-3 and np.std(np.log(b) - np.log(a)) > 1e-4)
    theirs = scipy_stats.ttest_rel(b, a)
    ours = stats.paired_difference(a, b)
    assert ours.effect == pytest.approx(np.mean(np.subtract(b, a)), **EXACT)
    assert ours.p == pytest.approx(theirs.pvalue, **EXACT)
    assert ours.ci95 == pytest.approx(tuple(theirs.confidence_interval(0.95)), **EXACT)
    logs = scipy_stats.ttest_rel(np.log(b), np.log(a))
    ratio = stats.time_ratio(a, b)
    assert ratio.effect == pytest.approx(scipy_stats.gmean(np.divide(b, a)), **EXACT)
    assert ratio.p == pytest.approx(logs.pvalue, **EXACT)
    assert ratio.ci95 == pytest.approx(tuple(np.exp(logs.confidence_interval(0.95))), **EXACT)


@given(values, st.floats(0.5, 100))
@settings(max_examples=100, deadline=None)
def test_the_target_is_tested_from_one_side(xs: list[float], target: float) -> None:
    assume(np.std(xs) > 1e-3)
    theirs = scipy_stats.ttest_1samp(xs, target, alternative="greater").pvalue
    assert stats.p_below_target(xs, target) == pytest.approx(theirs, **EXACT)


def test_few_or_equal_values_are_no_accident() -> None:
    assert stats.estimate([3.0]) == stats.Estimate(3.0, None, None)
    assert stats.paired_difference([1.0], [2.0]) == stats.Comparison(1.0, None, None)
    same = stats.paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.effect, same.ci95, same.p) == (0, (0, 0), 1)
    shifted = stats.paired_difference([1.0, 2.0], [2.0, 3.0])
    assert (shifted.effect, shifted.p) == (1, 0)
    assert stats.p_below_target([0.9], 0.8) is None
    assert stats.p_below_target([0.9, 0.9], 0.8) == 0 and stats.p_below_target([0.7, 0.7], 0.8) == 1
    with pytest.raises(ValueError, match="zip"):
        stats.paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="above zero"):
        stats.time_ratio([0.0], [1.0])


@pytest.mark.parametrize(("std", "difference"), [(1.0, 1.0), (1.0, 0.3), (0.15, 0.05), (2.0, 5.0)])
def test_the_runs_needed_have_the_power(std: float, difference: float) -> None:
    def power(n: int) -> float:
        """Of the exact noncentral t."""
        bound = scipy_stats.t.ppf(0.975, n - 1)
        shift = difference / std * math.sqrt(n)
        return float(scipy_stats.nct.sf(bound, n - 1, shift) + scipy_stats.nct.cdf(-bound, n - 1, shift))

    runs = stats.runs_needed(std, difference)
    assert power(runs + 2) >= 0.8
    assert runs <= 4 or power(runs - 2) < 0.8


def test_outliers_and_drift() -> None:
    calm = [1.0 + 0.01 * math.sin(7 * i) for i in range(20)]
    assert stats.outliers(calm) == []
    assert stats.outliers([*calm, 2.0]) == [20]
    assert stats.outliers([1.0] * 9 + [5.0]) == [9]
    assert stats.outliers([1.0, 1.0, 9.0]) == []  # too few to tell
    assert stats.drift(calm) is None
    rising = [1.0 + 0.01 * i + 0.002 * math.sin(7 * i) for i in range(21)]
    assert stats.drift(rising) == pytest.approx(0.2 / 1.1, rel=0.05)


@given(st.lists(st.floats(0, 1), min_size=12, max_size=30, unique=True))
@settings(max_examples=50, deadline=None)
def test_trends_are_kendalls(xs: list[float]) -> None:
    tau = scipy_stats.kendalltau(range(len(xs)), xs, method="asymptotic")
    assert stats.mann_kendall(xs) == pytest.approx(tau.pvalue, **EXACT)


# ---------------------------------------------------------------------------------------------- the confidence sequence

RUNS, BENCHES = 200, 2000
Draw = Callable[[np.random.Generator], np.ndarray]


def intervals(differences: np.ndarray, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """`stats.sequence_interval` after every run of many benches (rows) at once; a test holds the two together."""
    n = np.arange(1, differences.shape[1] + 1)
    mean = np.cumsum(differences, 1) / n
    squares = np.maximum(np.cumsum(differences**2, 1) - n * mean**2, 0)
    g = 1 + n
    r = (np.sqrt(g) / alpha) ** (2 / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.where(r < g, np.sqrt(squares / n * g * (r - 1) / np.maximum(g - r, 1e-300)), np.inf)
    return mean - half, mean + half


def gaussian(random: np.random.Generator) -> np.ndarray:
    """Differences of accuracies with the spread of the record scripts, 0.15 points each."""
    a, b = random.normal(0.94, 0.0015, (2, BENCHES, RUNS))
    return np.asarray(b - a)


def counted(random: np.random.Generator) -> np.ndarray:
    """The same as whole images right of 10,000, some of which are right in one run in two, others nearly always."""
    a, b = (random.binomial(9350, 0.998, (BENCHES, RUNS)) + random.binomial(100, 0.5, (BENCHES, RUNS)) for _ in "ab")
    return np.asarray((b - a) / 10_000)


def test_the_simulation_uses_the_programs_formula() -> None:
    differences = np.random.default_rng(1).normal(0.001, 0.002, (3, 30))
    low, high = intervals(differences)
    for row in range(3):
        for n in (1, 2, 5, 30):
            found = stats.sequence_interval(list(differences[row, :n]))
            assert found == pytest.approx((low[row, n - 1], high[row, n - 1]), rel=1e-6)


@pytest.mark.parametrize("draw", [gaussian, counted])
def test_looking_after_every_run_raises_no_false_alarm(draw: Draw) -> None:
    differences = draw(np.random.default_rng(2))
    low, high = intervals(differences)
    alarms = ((low > 0) | (high < 0)).any(1).mean()
    assert alarms <= 0.05
    # What the fixed-size interval does when it is looked at as often: the reason for all this.
    n = np.arange(1, RUNS + 1)
    mean = np.cumsum(differences, 1) / n
    std = np.sqrt(np.maximum(np.cumsum(differences**2, 1) - n * mean**2, 0) / np.maximum(n - 1, 1))
    half = scipy_stats.t.ppf(0.975, np.maximum(n - 1, 1)) * std / np.sqrt(n)
    peeking = ((np.abs(mean) > half) & (n > 2)).any(1).mean()
    assert peeking > 0.2


def test_what_stopping_early_saves() -> None:
    """A true difference of 0.2 points: told after a few of the 200 runs a fixed plan would make."""
    differences = gaussian(np.random.default_rng(3)) + 0.002
    low, high = intervals(differences)
    clear = (low > 0) | (high < 0)
    stopped = np.where(clear.any(1), clear.argmax(1) + 1, RUNS)
    wrong = (high[np.arange(BENCHES), stopped - 1] < 0).mean()
    assert stopped.mean() < 40 and wrong <= 0.05
    # Alike within a tenth of a point: the null benches stop as well.
    low, high = intervals(gaussian(np.random.default_rng(4)))
    alike = ((low >= -0.001) & (high <= 0.001)).argmax(1) + 1
    assert np.median(alike) < RUNS


def test_the_sequence_never_widens_and_says_what_it_says() -> None:
    differences = list(np.random.default_rng(5).normal(0.001, 0.002, 100))
    sequence = stats.confidence_sequence(differences)
    assert len(sequence) == 100
    for (low, high), (lower, upper) in pairwise(sequence):
        assert low <= lower <= upper <= high
    assert stats.verdict((0.1, 0.2), 0.5) == "different"
    assert stats.verdict((-0.1, 0.2), 0.5) == "equivalent"
    assert stats.verdict((-0.1, 0.6), 0.5) == "open"
