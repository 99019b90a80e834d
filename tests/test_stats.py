"""The statistics of repeated runs: agreement with SciPy, and by simulation what the anytime-valid interval promises."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastcifar import stats

settings.register_profile("stats", deadline=None, derandomize=True)
settings.load_profile("stats")

DF = st.one_of(st.just(1.0), st.just(10_000.0), st.integers(1, 2000).map(float), st.floats(0.5, 10_000))
VALUES = st.lists(st.floats(-100, 100).map(lambda value: round(value, 4)), min_size=2, max_size=40)
PAIRS = st.lists(st.tuples(st.floats(0.5, 50), st.floats(0.5, 50)), min_size=2, max_size=40)
ORDERS = st.permutations(range(1, 31))


def close(found: float | None, expected: float, rel: float = 1e-8) -> bool:
    return found is not None and math.isclose(found, expected, rel_tol=rel, abs_tol=1e-14)


def spread(values: list[float]) -> float:
    """The standard deviation, relative: SciPy's own arithmetic loses its digits where it is next to nothing."""
    return float(np.std(values)) / (1e-300 + float(np.abs(values).max()))


# --- Student's t ---


@given(st.floats(-1e6, 1e6), DF)
@example(-1e6, 1.0)
@example(-40.0, 10_000.0)
@example(0.0, 3.0)
def test_cdf_is_scipys(t: float, df: float) -> None:
    assert close(stats.student_t_cdf(t, df), scipy.stats.t.cdf(t, df))


@given(st.one_of(st.floats(1e-12, 1 - 1e-12), st.floats(-100, -1).map(lambda power: 10**power)), DF)
@example(1e-250, 2.0)
@example(0.5, 7.0)
@example(0.975, 1.0)
def test_quantile_is_scipys(p: float, df: float) -> None:
    assume(abs(p - 0.5) > 1e-6 or p == 0.5)  # SciPy's own has few digits there, and beyond 1e150
    assume(p > 1e-60 or df >= 1)
    assert close(stats.student_t_quantile(p, df), scipy.stats.t.ppf(p, df))


@pytest.mark.parametrize("df", [1, 3, 30, 9999, 10_000])
def test_extreme_tails(df: int) -> None:
    for t in (-1e3, -50.0, -37.0, -8.0):
        assert math.isclose(stats.student_t_cdf(t, df), scipy.stats.t.cdf(t, df), rel_tol=1e-9)
    assert stats.student_t_cdf(-math.inf, df) == 0 and stats.student_t_cdf(math.inf, df) == 1
    for p in (1e-300, 1e-100, 1e-20):
        assert math.isclose(stats.student_t_cdf(stats.student_t_quantile(p, df), df), p, rel_tol=1e-9)


def test_many_degrees_of_freedom_are_normal() -> None:
    assert stats.student_t_cdf(-1.96, 1e18) == pytest.approx(stats.student_t_cdf(-1.96, 9e6), abs=1e-7)


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(ValueError):
        stats.student_t_cdf(0, 0)
    for p in (0, 1, math.nan):
        with pytest.raises(ValueError):
            stats.student_t_quantile(p, 5)


# --- estimates and comparisons ---


@given(VALUES)
def test_estimate(values: list[float]) -> None:
    assume(spread(values) > 1e-6)
    found = stats.estimate(values)
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.ci95 is not None
    assert np.allclose([found.mean, found.std or 0], [np.mean(values), np.std(values, ddof=1)], rtol=1e-9, atol=1e-12)
    assert np.allclose(found.ci95, interval, rtol=1e-8, atol=1e-8)


def test_one_value_has_no_spread_and_json_holds_that() -> None:
    found = stats.estimate([0.94])
    assert json.loads(json.dumps(asdict(found), allow_nan=False)) == {"mean": 0.94, "std": None, "ci95": None}
    assert stats.paired_difference([1.0], [3.0]) == stats.Comparison(2.0, None, None)
    assert stats.time_ratio([2.0], [1.0]) == stats.Comparison(0.5, None, None)
    assert stats.p_below_target([0.95], 0.94) is None


def test_no_values_and_unequal_lengths_are_refused() -> None:
    for call in (
        lambda: stats.estimate([]),
        lambda: stats.p_below_target([], 0.94),
        lambda: stats.paired_difference([], []),
        lambda: stats.time_ratio([], []),
        lambda: stats.paired_difference([1.0, 2.0], [1.0]),
        lambda: stats.time_ratio([1.0], [1.0, 2.0]),
        lambda: stats.time_ratio([0.0, 1.0], [1.0, 2.0]),
    ):
        with pytest.raises(ValueError):
            call()


@given(st.floats(0.01, 1), st.integers(2, 50))
def test_equal_values_have_no_spread_and_are_certain(value: float, runs: int) -> None:
    values, nothing = [value] * runs, [0.0] * runs
    assert stats.estimate(values) == stats.Estimate(value, 0.0, (value, value))
    assert stats.paired_difference(values, values) == stats.Comparison(0.0, (0.0, 0.0), 1.0)
    assert stats.paired_difference(nothing, values) == stats.Comparison(value, (value, value), 0.0)
    assert stats.time_ratio(values, values) == stats.Comparison(1.0, (1.0, 1.0), 1.0)
    assert [stats.p_below_target(values, target) for target in (value / 2, value, value * 2)] == [0.0, 1.0, 1.0]


@given(PAIRS)
def test_paired_difference_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    assume(spread([y - x for x, y in pairs]) > 1e-6)
    found, expected = stats.paired_difference(a, b), scipy.stats.ttest_rel(b, a)
    assert close(found.p, expected.pvalue)
    assert np.allclose(found.ci95 or 0, expected.confidence_interval(0.95), rtol=1e-8, atol=1e-8)
    assert found.effect == pytest.approx(np.mean(b) - np.mean(a), abs=1e-9)
    back = stats.paired_difference(b, a)
    assert (back.effect, back.p) == (-found.effect, found.p)


@given(PAIRS)
def test_time_ratio_is_scipys_on_logarithms(pairs: list[tuple[float, float]]) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    assume(spread([math.log(y / x) for x, y in pairs]) > 1e-6)
    found, expected = stats.time_ratio(a, b), scipy.stats.ttest_rel(np.log(b), np.log(a))
    assert close(found.p, expected.pvalue)
    assert found.effect == pytest.approx(scipy.stats.gmean(b) / scipy.stats.gmean(a), rel=1e-9)
    assert np.allclose(found.ci95 or 0, np.exp(expected.confidence_interval(0.95)), rtol=1e-8)


@given(VALUES, st.floats(-100, 100))
def test_p_below_target_is_scipys(values: list[float], target: float) -> None:
    assume(spread(values) > 1e-6)
    assert close(
        stats.p_below_target(values, target), scipy.stats.ttest_1samp(values, target, alternative="greater").pvalue
    )


def test_p_below_target_is_small_above_it() -> None:
    values = [0.9401, 0.9405, 0.9403, 0.9404, 0.9402]
    below, at, above = (stats.p_below_target(values, target) for target in (0.9393, 0.9403, 0.9413))
    assert below is not None and at is not None and above is not None
    assert below < 1e-3 and at == pytest.approx(0.5) and above > 1 - 1e-3


def exact_power(runs: int, effect: float, alpha: float) -> float:
    """The power of a two-sided paired t-test for a difference of `effect` standard deviations."""
    critical = scipy.stats.t.ppf(1 - alpha / 2, runs - 1)
    shift = effect * math.sqrt(runs)
    upper = scipy.stats.nct.sf(critical, runs - 1, shift)
    return float(upper + np.nan_to_num(scipy.stats.nct.cdf(-critical, runs - 1, shift)))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("effect", [0.08, 0.2, 0.5, 1.0, 2.0, 4.0])
def test_runs_needed_is_within_two_of_the_exact_number(effect: float, power: float, alpha: float) -> None:
    found = stats.runs_needed(0.002, -0.002 * effect, power, alpha)
    assert exact_power(found + 2, effect, alpha) >= power
    assert found <= 4 or exact_power(found - 3, effect, alpha) < power


def test_runs_needed_at_the_ends() -> None:
    assert stats.runs_needed(0.0, 0.001) == 2
    assert stats.runs_needed(1.0, 1e-9) == pytest.approx(7.849e18, rel=1e-3)
    with pytest.raises(ValueError):
        stats.runs_needed(0.002, 0.0)


# --- outliers and drift ---


def test_outliers() -> None:
    times = [3.01, 3.02, 2.99, 3.00, 3.01, 2.98, 3.03, 3.00, 3.02]
    assert stats.outliers([*times, 3.01]) == []
    assert stats.outliers([3.30, *times, 2.0]) == [0, 10]
    assert stats.outliers([*times[:8], 30.0]) == []  # nine values are too few to tell
    assert stats.outliers([1.0] * 20) == []
    assert stats.outliers([1.0] * 19 + [2.0]) == [19]


@given(st.lists(st.floats(0.1, 10), min_size=10, max_size=40))
def test_outliers_are_those_of_the_paper(values: list[float]) -> None:
    deviation = scipy.stats.median_abs_deviation(values)
    assume(deviation > 1e-3)
    scores = 0.6745 * np.abs(np.array(values) - np.median(values)) / deviation
    assume(np.abs(scores - 3.5).min() > 1e-3)  # the paper rounds its constant
    assert stats.outliers(values) == list(np.flatnonzero(scores > 3.5))


@given(ORDERS, st.integers(3, 30), st.integers(1, 6))
def test_mann_kendall_is_scipys_with_and_without_ties(order: list[int], length: int, coarse: int) -> None:
    values = [float(rank // coarse) for rank in order[:length]]
    assume(len(set(values)) > 1)
    expected = scipy.stats.kendalltau(range(length), values, method="asymptotic").pvalue
    assert close(stats.mann_kendall(values), expected)
    slope = scipy.stats.theilslopes([value + 1 for value in values]).slope
    change = slope * (length - 1) / (np.median(values) + 1)
    found = stats.drift([value + 1 for value in values])
    assert found is None if expected >= 0.01 else close(found, change)


def test_drift() -> None:
    warming = [3.0 * (1 + 0.1 * i / 19) + 0.01 * (-1) ** i for i in range(20)]
    assert stats.drift(warming) == pytest.approx(0.095, abs=0.01)
    assert stats.drift(warming[::-1]) == pytest.approx(-0.095, abs=0.01)
    assert stats.drift([3.0, 3.1] * 10) is None
    assert [stats.drift([2.0] * n) for n in range(4)] == [None] * 4
    with pytest.raises(ValueError):
        stats.drift([1.0, 0.0])


# --- the anytime-valid interval ---


def single_interval(values: list[float], alpha: float = 0.05, scale: float = 1.0) -> stats.Interval:
    """The interval that all values give alone, which the sequence intersects with those before."""
    return stats._single_intervals(values, alpha, scale)[-1]


def e_value(values: list[float], mu: float, scale: float) -> float:
    """The Bayes factor that `confidence_sequence` describes, by integrating over sigma and the effect size."""
    x = np.array(values) - mu

    def given_effect(effect: float) -> float:
        """The likelihood times 1/sigma, integrated over log(sigma) about its peak, up to a constant."""
        log_sigma = math.log(np.sqrt(np.mean(x**2))) + np.linspace(-6, 6, 2001)
        residual = ((x[:, None] / np.exp(log_sigma) - effect) ** 2).sum(0) / 2
        return float(np.trapezoid(np.exp(-residual - len(x) * (log_sigma - log_sigma.mean())), log_sigma))

    def weighted(effect: float) -> float:
        return given_effect(effect) * float(scipy.stats.norm.pdf(effect, 0, scale))

    return float(scipy.integrate.quad(weighted, -8 * scale, 8 * scale, limit=200)[0]) / given_effect(0)


@pytest.mark.parametrize(("runs", "alpha", "scale"), [(5, 0.05, 1.0), (8, 0.1, 0.7), (12, 0.01, 1.0), (30, 0.05, 0.5)])
def test_at_its_ends_the_bayes_factor_is_one_over_alpha(runs: int, alpha: float, scale: float) -> None:
    values = list(np.random.default_rng(runs).normal(0.3, 1, runs))
    low, high = single_interval(values, alpha, scale)
    assert e_value(values, low, scale) == pytest.approx(1 / alpha, rel=1e-5)
    assert e_value(values, high, scale) == pytest.approx(1 / alpha, rel=1e-5)
    assert e_value(values, (low + high) / 2, scale) < 1


def test_before_five_runs_it_says_nothing() -> None:
    assert stats.confidence_sequence([]) == []
    intervals = stats.confidence_sequence([1.0, 1.1, 0.9, 1.0, 1.2])
    assert [math.isinf(high) for _, high in intervals] == [True] * 4 + [False]


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=60), st.floats(-3, 3), st.floats(0.1, 10))
def test_it_moves_and_scales_with_the_values(values: list[float], shift: float, factor: float) -> None:
    low, high = single_interval(values)
    moved = single_interval([factor * value + shift for value in values])
    assert np.allclose(moved, (factor * low + shift, factor * high + shift), atol=1e-6)
    wider = single_interval(values, alpha=0.01)
    assert wider[0] <= low <= high <= wider[1]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_the_sequence_only_narrows_and_is_the_intersection(values: list[float]) -> None:
    intervals = stats.confidence_sequence(values)
    alone = [single_interval(values[: n + 1]) for n in range(len(values))]
    for (low, high), (next_low, next_high) in itertools.pairwise(intervals):
        assert low <= next_low <= next_high <= high
    low, high = max(low for low, _ in alone), min(high for _, high in alone)
    assert low > high or intervals[-1] == (low, high)


def test_equal_values_leave_one_point() -> None:
    assert stats.confidence_sequence([0.0] * 5)[-1] == (0.0, 0.0)
    assert stats.confidence_sequence([0.25] * 9)[-1] == (0.25, 0.25)


def test_verdict() -> None:
    assert stats.verdict((0.001, 0.002), 0.005) == "different"
    assert stats.verdict((-0.002, -0.001), 0.005) == "different"
    assert stats.verdict((-0.001, 0.002), 0.005) == "equivalent"
    assert stats.verdict((-0.001, 0.002), 0.001) == "open"
    assert stats.verdict((0.0, 0.0), 0.0) == "equivalent"
    assert stats.verdict((-math.inf, math.inf), 0.001) == "open"


# --- what it promises, by simulation ---

COMPARISONS, RUNS, STD = 2000, 200, 0.0015
Array = NDArray[np.float64]


def half_widths(values: Array) -> tuple[Array, Array, Array]:
    """Means and half widths after every run (columns): of the anytime-valid interval, and of the t interval."""
    n = np.arange(1, values.shape[1] + 1)
    means = values.cumsum(1) / n
    squares = np.maximum((values**2).cumsum(1) - n * means**2, 0)
    unit = np.array([stats._half_width(int(k), 1.0, 0.05, 1.0) for k in n])
    with np.errstate(invalid="ignore", divide="ignore"):
        fixed = scipy.stats.t.ppf(0.975, n - 1) * np.sqrt(squares / (n - 1) / n)
        return means, np.where(np.isinf(unit), np.inf, np.sqrt(squares) * unit), np.where(n < 2, np.inf, fixed)


def differences(effect: float = 0.0) -> Array:
    """Differences of paired accuracies, a row for each comparison; the effect is in standard deviations of them."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(0, STD, (2, COMPARISONS, RUNS))
    values: Array = b - a + effect * STD * math.sqrt(2)
    return values


def stopping_times(effect: float) -> Array:
    """After how many runs each comparison first excludes zero; all of them where it never does."""
    means, half, _ = half_widths(differences(effect))
    excluded = np.abs(means) > half
    times: Array = np.where(excluded.any(1), excluded.argmax(1) + 1, RUNS)
    return times


def test_the_simulation_is_of_the_module() -> None:
    values = differences(0.3)[:3]
    means, half, fixed = half_widths(values)
    for row in range(3):
        for n in (1, 4, 5, 6, 20, 77, 200):
            found = single_interval(list(values[row, :n]))
            center, width = means[row, n - 1], half[row, n - 1]
            assert np.allclose(found, (center - width, center + width), rtol=1e-9, atol=1e-12)
        interval = stats.estimate(list(values[row])).ci95
        assert interval is not None and np.isclose(interval[1] - interval[0], 2 * fixed[row, -1])


def test_looking_after_every_run_raises_few_false_alarms() -> None:
    means, half, fixed = half_widths(differences())
    alarms = (np.abs(means) > half).any(1).mean()
    peeking = (np.abs(means) > fixed).any(1).mean()
    print(f"false alarms: {alarms:.2%}; peeking at the t interval: {peeking:.2%}")
    assert alarms <= 0.05
    assert peeking > 0.2


@pytest.mark.parametrize("kind", ["binomial", "heavy", "coarse"])
def test_it_covers_what_is_not_normal(kind: str) -> None:
    rng, shape = np.random.default_rng(11), (COMPARISONS, RUNS)
    if kind == "binomial":  # how many of 10,000 images are right
        values, truth = (rng.binomial(10_000, 0.942, shape) - rng.binomial(10_000, 0.94, shape)) / 10_000, 0.002
    elif kind == "heavy":  # Student's t with three degrees of freedom, in steps of 1/10,000
        values, truth = np.round(STD * rng.standard_t(3, shape), 4), 0.0
    else:  # a spread of one step only, as of 100 images
        values, truth = np.round(rng.normal(0, 1, shape)) / 100, 0.0
    means, half, _ = half_widths(values - truth)
    missed = (np.abs(means) > half).any(1).mean()
    print(f"{kind}: truth ever left out: {missed:.2%}")
    assert missed <= 0.05


@pytest.mark.parametrize(("effect", "most"), [(2.0, 10), (1.0, 25), (0.5, 80)])
def test_a_true_difference_is_found_long_before_the_last_run(effect: float, most: int) -> None:
    times = stopping_times(effect)
    print(f"effect {effect}: {times.mean():.1f} runs on average, 95 % within {np.quantile(times, 0.95):.0f}")
    assert times.mean() < most
    assert (times < RUNS).mean() > 0.99


def test_no_difference_is_found_equivalent_before_the_last_run() -> None:
    means, half, _ = half_widths(differences())
    equivalent = np.abs(means) + half <= 0.001  # a tenth of a percent
    assert equivalent.any(1).all()
    times = equivalent.argmax(1) + 1
    print(f"equivalent: {times.mean():.1f} runs on average, 95 % within {np.quantile(times, 0.95):.0f}")
    assert times.mean() < 80


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (5, 5), (1, 1), (37, 200), (9_401, 10_000)])
def test_the_interval_of_a_share_is_that_of_scipy(hits: int, trials: int) -> None:
    expected = scipy.stats.binomtest(hits, trials).proportion_ci(0.95, "wilson")
    low, high = stats.wilson_interval(hits, trials)
    assert low == pytest.approx(expected.low, abs=1e-12) and high == pytest.approx(expected.high, abs=1e-12)
