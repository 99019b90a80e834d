"""Roofline: the ceilings of a device, measured on the spot, and which of them bounds a layer.

After Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastcifar.system.timing import time_call

REPETITIONS = 5  # the fastest counts: a ceiling is what the device can do, not what it does beside other work
TINY_KERNELS = 200
MATRIX_SIDE = {"cuda": 8192}  # rows and columns; elsewhere 1024
COPY_BYTES = {"cuda": 2**30}  # elsewhere 64 MiB, far more than a cache


@dataclass(frozen=True)
class Roofline:
    """The ceilings of a device."""

    tflops: float  # of a matrix product in the training precision, TFLOP/s
    gb_per_s: float  # of a copy on the device, read and written
    launch_ms: float  # of a kernel on one number

    def times(self, flops: float, size: float, kernels: float) -> dict[str, float]:
        """The least milliseconds that so many FLOPs, bytes and kernels take, by ceiling."""
        return {
            "arithmetic": flops / self.tflops / 1e9,
            "memory": size / self.gb_per_s / 1e6,
            "launches": kernels * self.launch_ms,
        }

    def bound(self, flops: float, size: float, kernels: float) -> str:
        """The ceiling that takes the most time: arithmetic, memory or launches."""
        times = self.times(flops, size, kernels)
        return max(times, key=lambda name: times[name])

    def share(self, flops: float, size: float, ms: float) -> float:
        """The time needed at the ceilings of arithmetic and memory over the time taken; 1: as fast as can be."""
        times = self.times(flops, size, 0)
        return max(times.values()) / ms if ms > 0 else 0.0


def measure_roofline(device: torch.device, dtype: torch.dtype) -> Roofline:
    """The ceilings of the device, in under a second or two."""
    side = MATRIX_SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(COPY_BYTES.get(device.type, 2**26), dtype=torch.uint8, device=device)
    target, tiny = torch.empty_like(source), torch.zeros(1, device=device)

    def many_tiny() -> None:
        for _ in range(TINY_KERNELS):
            tiny.add_(1)

    product = best_of(lambda: torch.mm(a, b), device)
    copy = best_of(lambda: target.copy_(source), device)
    launch = best_of(many_tiny, device) / TINY_KERNELS
    return Roofline(2 * side**3 / product / 1e12, 2 * source.numel() / copy / 1e9, 1000 * launch)


def best_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some repetitions, after one to warm up."""
    work()
    return min(time_call(work, device) for _ in range(REPETITIONS))
