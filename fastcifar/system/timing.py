"""Time on the device: marks in its stream of work, and the seconds between two of them.

On CUDA a mark is an event, which nobody waits for; elsewhere work is done when the call returns, and a mark is the
wall clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch


class Timestamp:
    """A point in the work of a device, made where the host stands now."""

    def __init__(self, device: torch.device) -> None:
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(device))
        elif device.type == "mps":
            torch.mps.synchronize()
        self.wall = time.perf_counter()

    def reached(self) -> bool:
        """Whether the device has come this far; never waits."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait until the device has come this far."""
        if self.event is not None:
            self.event.synchronize()

    def seconds_since(self, earlier: Timestamp) -> float:
        """Device seconds from `earlier` to this mark, idle gaps included; both must have been reached."""
        if self.event is None or earlier.event is None:
            return self.wall - earlier.wall
        return float(earlier.event.elapsed_time(self.event)) / 1000


def time_call(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that work takes on the device, waited for."""
    before = Timestamp(device)
    work()
    after = Timestamp(device)
    after.wait()
    return after.seconds_since(before)


def process_age() -> float:
    """Seconds since this process was started, imports included (since `fastcifar` was imported, where the system
    does not tell)."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            started = int(stat.read().rsplit(b")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError):
        return time.perf_counter() - IMPORTED


IMPORTED = time.perf_counter()
