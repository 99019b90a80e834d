"""Named ranges around the parts of a step, which whoever records a step can see: phases, layers, updates.

The step and the optimizer name what they do; without a recording a range costs a few microseconds. Ranges around
layers are put on from outside, for recorded steps alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.profiler import record_function

PHASE, LAYER, UPDATE = "phase: ", "layer: ", "update: "
PHASES = ("data", "forward", "loss", "backward", "optimizer")
ROOT = "network"  # the name of the outermost module


def phase(name: str) -> record_function:
    """One phase of the step; one of `PHASES`."""
    return record_function(PHASE + name)


def update_of(parameters: Iterable[str]) -> record_function:
    """The update of the parameters of these names, inside the optimizer's phase."""
    return record_function(UPDATE + " ".join(parameters))
