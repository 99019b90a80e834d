"""Named ranges around the parts of a step, which whoever records a step can see: phases, layers, updates.

The step and the optimizer name what they do; without a recording a range costs a few microseconds. Ranges around
layers are put on from outside, for recorded steps alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.profiler import record_function

PHASE, LAYER, UPDATE = "phase: ", "layer: ", "update: "
PHASES = ("data", "forward", "loss", "backward", "optimizer")
ROOT = "network"  # the name of the outermost module


def phase(name: str) -> record_function:
    """One phase of the step; one of `PHASES`."""
    return record_function(PHASE + name)


def update(parameters: Iterable[str]) -> record_function:
    """The update of the parameters of these names, inside the optimizer's phase."""
    return record_function(UPDATE + " ".join(parameters))


@contextmanager
def layers(network: nn.Module) -> Iterator[None]:
    """While inside, every call of a module of the network is a range with the module's name."""
    open_ranges: list[record_function] = []

    def before(name: str) -> Any:
        def enter(module: nn.Module, inputs: Any) -> None:
            open_ranges.append(record_function(LAYER + name))
            open_ranges[-1].__enter__()  # type: ignore[no-untyped-call]

        return enter

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(before(name or ROOT), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
