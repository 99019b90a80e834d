"""What bounds a piece of work: the ceilings of a device, measured on the spot, and how near to them it comes.

After Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastcifar.system.timing import time_call

REPETITIONS = 5  # the best counts: a ceiling is what the device can do, not what it does beside other work
TINY_KERNELS = 200
MATRIX = {"cuda": 8192}  # rows and columns; elsewhere 1024
COPY = {"cuda": 2**30}  # bytes; elsewhere 64 MiB, far more than a cache


@dataclass(frozen=True)
class Roofline:
    """The ceilings: a matrix product in the training precision, a copy on the device, the time of a kernel that does
    nothing."""

    tflops: float
    gb_per_s: float
    launch_ms: float

    def times(self, flops: float, size: float, kernels: float) -> dict[str, float]:
        """Milliseconds that so many operations, bytes and kernels take at the least."""
        return {
            "arithmetic": flops / self.tflops / 1e9,
            "memory": size / self.gb_per_s / 1e6,
            "launches": kernels * self.launch_ms,
        }

    def bound(self, flops: float, size: float, kernels: float) -> str:
        """What takes the most time at the least: arithmetic, memory or launches."""
        times = self.times(flops, size, kernels)
        return max(times, key=lambda name: times[name])

    def share(self, flops: float, size: float, ms: float) -> float:
        """The time needed at the ceilings over the time taken; 1 is as fast as the device can."""
        times = self.times(flops, size, 0)
        return max(times.values()) / ms if ms > 0 else 0.0


def measure(device: torch.device, dtype: torch.dtype) -> Roofline:
    """The ceilings of the device, in under a second or two."""
    side = MATRIX.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(COPY.get(device.type, 2**26), dtype=torch.uint8, device=device)
    target, tiny = torch.empty_like(source), torch.zeros(1, device=device)

    def many_tiny() -> None:
        for _ in range(TINY_KERNELS):
            tiny.add_(1)

    product = best(lambda: torch.mm(a, b), device)
    copy = best(lambda: target.copy_(source), device)
    launch = best(many_tiny, device) / TINY_KERNELS
    return Roofline(2 * side**3 / product / 1e12, 2 * source.numel() / copy / 1e9, 1000 * launch)


def best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of some repetitions."""
    work()
    return min(time_call(work, device) for _ in range(REPETITIONS))
