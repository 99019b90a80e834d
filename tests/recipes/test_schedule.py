"""The one kind of schedule."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastcifar.recipes import schedule

points_strategy = st.lists(
    st.tuples(st.floats(0, 1), st.floats(-5, 5)), min_size=1, max_size=6, unique_by=lambda p: p[0]
).map(lambda points: tuple(sorted(points)))


@given(points_strategy, st.floats(0, 1))
def test_linear_between_points_and_constant_outside(points: schedule.Points, fraction: float) -> None:
    xs, ys = zip(*points, strict=True)
    gaps = np.diff(xs)
    if len(gaps) and gaps.min() < 1e-9:
        return  # steeper than numpy's own arithmetic holds
    assert np.isclose(schedule.value_at(points, fraction), np.interp(fraction, xs, ys), atol=1e-6)


def test_two_points_at_one_fraction_are_a_jump() -> None:
    points = ((0.0, 1.0), (0.5, 1.0), (0.5, 3.0), (1.0, 3.0))
    assert schedule.value_at(points, 0.49) == 1.0
    assert schedule.value_at(points, 0.5) == 3.0


def test_the_anchors_linear_decay() -> None:
    assert schedule.over_steps(((0.0, 1.0), (1.0, 0.0)), 4) == [1.0, 0.75, 0.5, 0.25]


def test_what_ends_at_zero_early_is_trained_until_then() -> None:
    frozen_early = schedule.over_steps(((0.0, 1.0), (0.375, 0.0)), 200)
    assert schedule.trained_steps(frozen_early) == 75
    warm_up = schedule.over_steps(((0.0, 0.0), (0.5, 1.0), (1.0, 0.1)), 10)
    assert schedule.trained_steps(warm_up) == 10
    assert schedule.trained_steps([0.0, 0.0]) == 0


def test_bad_points_are_named() -> None:
    assert schedule.check(((0.0, 1.0), (1.0, 0.0))) is None
    assert "goes back" in (schedule.check(((0.5, 1.0), (0.2, 0.0))) or "")
    assert "outside" in (schedule.check(((0.0, 1.0), (1.5, 0.0))) or "")
    assert "at least one" in (schedule.check(()) or "")
