"""Schedules: points `[fraction of the run, value]`, linear in between, constant before the first and after the last.

Two points at the same fraction are a jump; the second holds from there on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

Points = tuple[tuple[float, float], ...]


def value_at(points: Points, fraction: float) -> float:
    """The value of the schedule at `fraction` of the run (0: start of the first step, 1: end of the last)."""
    after = bisect_right(points, fraction, key=lambda point: point[0])
    if after == 0:
        return points[0][1]
    if after == len(points):
        return points[-1][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * (fraction - left) / (right - left)


def over_steps(points: Points, steps: int) -> list[float]:
    """The value at the start of each of `steps` steps."""
    return [value_at(points, step / steps) for step in range(steps)]


def shortened(points: Points, share: float) -> Points:
    """The schedule run through in a share of the run, and zero from there on."""
    if share == 1:
        return points
    return (*((share * fraction, value) for fraction, value in points), (share, 0.0))


def trained_steps(values: Sequence[float]) -> int:
    """The number of steps after which the learning rate stays zero, given the learning rate of each step."""
    steps = len(values)
    while steps and values[steps - 1] == 0:
        steps -= 1
    return steps


def check(points: Points) -> str | None:
    """What is wrong with the points, or None: fractions must lie in 0..1 and must not decrease."""
    if not points:
        return "needs at least one point [fraction, value]"
    fractions = [fraction for fraction, _ in points]
    if any(not 0 <= fraction <= 1 for fraction in fractions):
        return "has a fraction of the run outside 0..1"
    if fractions != sorted(fractions):
        return "goes back: its fractions must not decrease"
    return None
