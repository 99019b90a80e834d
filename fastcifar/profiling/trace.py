"""PyTorch's profiler: the events of what it records."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastcifar.profiling.attribution import Event
from fastcifar.system.timing import time_call

QUIET_KINETO = "99"  # a log level above all messages of PyTorch's recorder


def record_events(run: Callable[[], None], device: torch.device, memory: bool = False) -> tuple[float, list[Event]]:
    """Call `run` with the profiler: its seconds, and its events, with `memory` those of the allocator too."""
    os.environ.setdefault("KINETO_LOG_LEVEL", QUIET_KINETO)
    use_device = device.type if device.type == "cuda" else None
    # Not torch.profiler.profile, which imports the compiler (seconds) to do the same.
    with torch.autograd.profiler.profile(use_device=use_device, use_kineto=True, profile_memory=memory) as profiler:
        seconds = time_call(run, device)
    return seconds, events_of(profiler)


def events_of(profiler: Any) -> list[Event]:
    """The events that PyTorch's profiler recorded, which it hands out as a file only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return events
