"""What a profile holds: figures a layer and a phase, and the comparison of two profiles."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from fastcifar import stats
from fastcifar.profiling.attribution import Event
from fastcifar.profiling.breakdown import Item, grouped
from fastcifar.profiling.roofline import Roofline


@dataclass(frozen=True)
class Layer:
    """What one layer costs in a step, on the average; a container's own work stands as `<name>.self`.

    Kernels, FLOPs and bytes are those of forward and backward; `share` is of the step, `roofline_share` of what the
    device can do.
    """

    name: str
    kind: str
    output: list[int] | None
    parameters: int
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    optimizer_shared: bool  # part of it is a share, by size, in kernels that update other layers too
    total_ms: float
    total_std_ms: float
    share: float
    kernels: int
    flops: int
    bytes: int
    tflops: float
    gb_per_s: float
    bound: str
    roofline_share: float


@dataclass(frozen=True)
class Profile:
    """One step taken apart; milliseconds. `phases` and `unattributed_ms` add up to `kernel_ms`, the layers' forward
    and backward to those phases."""

    recipe: str
    batch: int
    steps: int
    kinds: int  # of step, that this is the mean of, weighted by how often a run has them; 1: a step as it is
    engine: str
    step_ms: float
    step_std_ms: float
    kernel_ms: float
    idle_ms: float
    unattributed_ms: float
    recorded_step_ms: float  # with the profiler at work: the difference is its own
    roofline: Roofline
    phases: dict[str, float]
    layers: list[Layer]
    items: list[Item]
    events: list[Event]  # of the last recorded step, with phase and layer
    step_times_ms: list[float]
    layer_times_ms: dict[str, list[float]]  # the total of each layer in each recorded step

    def document(self) -> dict[str, Any]:
        """What `--json` holds, with the sums by kernel and by operator."""
        left_out = ("items", "events", "step_times_ms", "layer_times_ms")
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        return {
            **found,
            "roofline": dataclasses.asdict(self.roofline),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "kernels": [dataclasses.asdict(each) for each in grouped(self.items, "kernel")],
            "ops": [dataclasses.asdict(each) for each in grouped(self.items, "op")],
        }


@dataclass(frozen=True)
class Difference:
    """One layer in two profiles, in milliseconds a step; None where it is in one of them alone."""

    name: str
    a_ms: float | None
    b_ms: float | None
    difference_ms: float
    ci95: list[float] | None
    ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """Two profiles measured by turns: b over a for the whole step, b minus a for each layer."""

    step_ratio: float
    ci95: list[float] | None
    layers: list[Difference]


def spread(values: list[float]) -> float:
    """The standard deviation; zero for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def comparison(a: Profile, b: Profile) -> Comparison:
    """Two profiles of as many steps, measured by turns; step i of one belongs to step i of the other."""
    ratio = stats.time_ratio(a.step_times_ms, b.step_times_ms)
    names = [layer.name for layer in a.layers]
    names += [layer.name for layer in b.layers if layer.name not in names]
    return Comparison(ratio.effect, as_list(ratio.ci95), [difference(name, a, b) for name in names])


def difference(name: str, a: Profile, b: Profile) -> Difference:
    """One layer in both profiles; one that is missing takes no time."""
    times_a, times_b = a.layer_times_ms.get(name), b.layer_times_ms.get(name)
    nothing = [0.0] * a.steps
    found = stats.paired_difference(times_a or nothing, times_b or nothing)
    mean_a, mean_b = (statistics.fmean(times) if times else None for times in (times_a, times_b))
    ratio = mean_b / mean_a if mean_a and mean_b is not None else None
    return Difference(name, mean_a, mean_b, found.effect, as_list(found.ci95), ratio)


def as_list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
