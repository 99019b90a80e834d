"""The ceilings, with a clock whose times are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from profiling_helpers import CPU

from fastcifar.profiling import roofline
from fastcifar.profiling.roofline import REPETITIONS, TINY_KERNELS, Roofline, measure_roofline


def test_the_ceiling_that_takes_the_most_time_bounds() -> None:
    ceilings = Roofline(tflops=1.0, gb_per_s=100.0, launch_ms=0.01)
    assert ceilings.times(2e9, 1e6, 1) == pytest.approx({"arithmetic": 2.0, "memory": 0.01, "launches": 0.01})
    assert ceilings.bound(2e9, 1e6, 1) == "arithmetic"
    assert ceilings.bound(2e6, 1e8, 1) == "memory"
    assert ceilings.bound(2e6, 1e3, 5) == "launches"
    assert ceilings.share(2e9, 1e6, 4.0) == pytest.approx(0.5)
    assert ceilings.share(2e9, 1e6, 0.0) == 0.0


def test_the_ceilings_are_those_of_the_fastest_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that takes 2 s, then 1 s, then 3 s ...: a 1024² product, a copy of 64 MiB, 200 tiny kernels, in 1 s."""
    calls = 0

    def fake_time(work: Callable[[], object], device: torch.device) -> float:
        nonlocal calls
        work()
        calls += 1
        return (2.0, 1.0, 3.0, 4.0, 5.0)[calls % 5]

    monkeypatch.setattr(roofline, "time_call", fake_time)
    ceilings = measure_roofline(CPU, torch.float32)
    assert calls == 3 * REPETITIONS
    assert ceilings.tflops == pytest.approx(2 * 1024**3 / 1e12)
    assert ceilings.gb_per_s == pytest.approx(2 * 2**26 / 1e9)  # read and written
    assert ceilings.launch_ms == pytest.approx(1000 / TINY_KERNELS)
