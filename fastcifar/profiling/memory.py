"""The memory of one step: what the layers keep for the backward pass, and the peak.

Counted in one step of its own: hooks see every tensor that autograd saves; the peak is what PyTorch's allocator held.
Memory inside kernels that comes from elsewhere (the scratch space of oneDNN, say) is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from fastcifar.profiling.attribution import LOSS, Event
from fastcifar.profiling.modules import annotate_layers
from fastcifar.profiling.op_counter import address
from fastcifar.profiling.targets import ProfileTarget
from fastcifar.profiling.trace import record_events
from fastcifar.system.device import peak_memory, reset_peak_memory

ALLOCATION = "[memory]"  # the profiler's name for an allocation or, with negative bytes, a release


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one step."""

    activations: dict[str, int]  # by module: kept for the backward pass
    held: int  # between steps: the network, the optimizer's state, the images
    step: int | None  # the most that the step held at one time on top of that; None: unknown on this device

    @property
    def peak(self) -> int | None:
        """The most that was held at one time."""
        return None if self.step is None else self.held + self.step


def measure_memory(target: ProfileTarget) -> MemoryUse:
    """Run one step and count its memory. Gradients are the step's own: what was left of them is dropped before it."""
    for parameter in target.network.parameters():
        parameter.grad = None
    run = target.run_uncaptured or target.run
    network = [*target.network.parameters(), *target.network.buffers()]
    held = storages([*network, *tree_leaves(target.state())], target.device)
    with annotate_layers(target.network) as open_layers:
        saved = SavedTensors(storages(network, target.device), held, open_layers)
        with saved_tensors_hooks(saved.pack, saved.unpack):
            step = measure_peak(target.device, run)
    return MemoryUse(saved.bytes_by_layer(), sum(held.values()), step)


def measure_peak(device: torch.device, run: Any) -> int | None:
    """Run a step: the most bytes that it held at one time on top of those held before; None where nobody counts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        reset_peak_memory(device)
        run()
        torch.cuda.synchronize(device)
        return peak_memory(device) - before
    if device.type == "cpu":
        return peak_of(record_events(run, device, memory=True)[1])
    run()
    return None


def peak_of(events: Sequence[Event]) -> int:
    """The most bytes that were allocated at one time on the CPU, from the profiler's events."""
    changes = [e for e in events if e["name"] == ALLOCATION and e["args"]["Device Type"] == 0]
    now = peak = 0
    for event in sorted(changes, key=lambda e: (e["ts"], e["args"].get("Ev Idx", 0))):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def storages(tensors: Iterable[Any], device: torch.device) -> dict[int, int]:
    """The bytes of each storage that the tensors on a device have, by its address; other objects are passed over."""
    there = [each for each in tensors if isinstance(each, Tensor) and each.device == device]
    return {address(each): each.untyped_storage().nbytes() for each in there}


class Saved:
    """A tensor that autograd keeps; dropped with the node that needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedStorage(NamedTuple):
    """The memory of one saved tensor."""

    owner: weakref.ref[Saved]
    layer: str
    address: int
    bytes: int


class SavedTensors:
    """Hooks that note what autograd saves, for the layer whose call is open.

    A storage counts once, for the layer that saved it first. The network's own parameters and buffers do not count, and
    of what else was there before the step only the part that is saved (a batch may be a view of a dataset).
    """

    def __init__(self, network: dict[int, int], held: dict[int, int], open_layers: list[str]) -> None:
        self.network, self.held, self.open_layers = network, held, open_layers
        self.saved: list[SavedStorage] = []
        self.forward_over = False

    def pack(self, tensor: Tensor) -> Saved:
        """Called for what is saved. What is saved inside a backward pass, such as a recomputed layer's, is not kept."""
        saved = Saved(tensor.detach())  # else an operator that saves its output would keep itself alive
        key = address(tensor)
        if torch._C._current_autograd_node() is None and key not in self.network:
            layer = self.open_layers[-1] if self.open_layers else LOSS
            size = tensor.nbytes if key in self.held else tensor.untyped_storage().nbytes()
            self.saved.append(SavedStorage(weakref.ref(saved), layer, key, size))
        return saved

    def unpack(self, saved: Saved) -> Tensor:
        """Called where it is needed: first as the backward pass begins, when what was dropped is no longer kept."""
        if not self.forward_over:
            self.forward_over = True
            self.saved = [each for each in self.saved if each.owner() is not None]
        return saved.tensor

    def bytes_by_layer(self) -> dict[str, int]:
        """The bytes that each layer keeps."""
        sums: dict[str, int] = {}
        counted: set[int] = set()
        for each in self.saved:
            if each.address not in counted:
                counted.add(each.address)
                sums[each.layer] = sums.get(each.layer, 0) + each.bytes
        return sums
