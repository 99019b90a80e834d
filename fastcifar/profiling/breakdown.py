"""The kernels of recorded steps, summed by phase, layer, operator and kernel."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fastcifar.profiling.attribution import LOSS, KernelTime
from fastcifar.profiling.modules import is_compiled, original, walk_modules
from fastcifar.training.annotations import PHASES, ROOT

ItemKey = tuple[str | None, str | None, str, str]  # phase, layer, operator, kernel


@dataclass(frozen=True)
class Item:
    """One kernel in one phase, layer and operator: the mean time of a step, milliseconds, its standard deviation over
    the recorded steps, and how often it runs in a step. `phase` is None where it is unattributed."""

    phase: str | None
    layer: str | None
    kernel: str
    op: str
    ms: float
    std: float
    count: float


@dataclass(frozen=True)
class GroupTime:
    """All items of one kernel or operator: milliseconds and executions a step, and the layers it serves, largest
    first."""

    name: str
    ms: float
    kernels: float
    phases: list[str]
    layers: dict[str, float]


@dataclass(frozen=True)
class LayerIndex:
    """The layers of a network as the tables list them, in its order: every module without children, and of a
    container what it does itself, as `<name>.self`."""

    names: dict[str, str]  # of a module, or the loss: the layer's name
    kinds: dict[str, str]  # of a layer: the name of its class
    parameters: dict[str, int]  # of a layer: how many numbers, trained or not
    trained: dict[str, tuple[str, int]]  # of a trained parameter: its layer, how many numbers

    def owner(self, parameter: str) -> str:
        """The layer of the parameter of that name: its module, or the compiled one around that."""
        module = parameter.rpartition(".")[0]
        while module and module not in self.names:
            module = module.rpartition(".")[0]
        return self.names[module or ROOT]

    def update_shares(self, parameters: tuple[str, ...]) -> dict[str, float]:
        """How an update of these parameters (empty: of all) is shared among the layers: by size."""
        sizes: dict[str, int] = defaultdict(int)
        for name in parameters or self.trained:
            if name in self.trained:
                layer, count = self.trained[name]
                sizes[layer] += count
        whole = sum(sizes.values())
        return {layer: size / whole for layer, size in sizes.items()} if whole else {}

    def shares(self, kernel: KernelTime) -> list[tuple[str | None, str | None, float]]:
        """The phases and layers that a kernel serves, each with its share; phase None where it is unattributed."""
        phase, layer = kernel.scope.phase, self.names.get(kernel.scope.layer or "")
        if phase == "optimizer":
            updates = self.update_shares(kernel.scope.parameters)
            return [(phase, name, share) for name, share in updates.items()] or [(phase, None, 1.0)]
        if phase in ("forward", "backward") and layer is None:
            return [(None, None, 1.0)]
        return [(phase, layer, 1.0)]


@dataclass(frozen=True)
class Breakdown:
    """The mean of all recorded steps by item, and the time of every layer in each of them, in milliseconds.

    `layer_times_ms` holds forward, backward and update of every layer of the network, and the loss.
    """

    items: list[Item]
    layer_times_ms: dict[str, list[float]]
    shared_updates: set[str]  # layers whose update is a share in kernels that update others too

    def ms(self, layer: str, phase: str) -> float:
        """Milliseconds of a layer in one phase."""
        return sum(item.ms for item in self.items if item.layer == layer and item.phase == phase)

    def kernels(self, layer: str) -> int:
        """Kernels of a layer in forward and backward."""
        return round(sum(i.count for i in self.items if i.layer == layer and i.phase in ("forward", "backward")))


def index_layers(network: nn.Module) -> LayerIndex:
    """The layers of a network, and the loss."""
    index = LayerIndex({}, {}, defaultdict(int), {})
    for name, module in walk_modules(network):
        compiled = is_compiled(module)
        has_parts = not compiled and next(module.children(), None) is not None
        layer = name + (".self" if has_parts else "")
        index.names[name] = layer
        index.kinds[layer] = type(original(module)).__name__ + (" (compiled)" if compiled else "")
    for name, parameter in network.named_parameters():
        layer = index.owner(name)
        index.parameters[layer] += parameter.numel()
        if parameter.requires_grad:
            index.trained[name] = (layer, parameter.numel())
    index.names[LOSS] = LOSS
    index.kinds[LOSS] = "loss"
    return index


def break_down(
    index: LayerIndex, steps: Sequence[Sequence[KernelTime]], activations: Mapping[str, int] | None = None
) -> Breakdown:
    """The sums over the kernels of each recorded step; `activations` are the bytes that modules keep."""
    times: dict[ItemKey, list[float]] = defaultdict(lambda: [0.0] * len(steps))  # ms in each step
    counts: dict[ItemKey, float] = defaultdict(float)  # in all steps
    layer_times: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(steps))
    shared: set[str] = set()
    for i, kernels in enumerate(steps):
        for kernel in kernels:
            shares = index.shares(kernel)
            for phase, layer, share in shares:
                key = (phase, layer, kernel.kernel, kernel.scope.op or kernel.kernel)
                ms = share * kernel.time / 1000
                times[key][i] += ms
                counts[key] += share * kernel.count
                if layer is not None and phase != "loss":
                    layer_times[layer][i] += ms
            if len(shares) > 1:
                shared.update(layer for _, layer, _ in shares if layer is not None)
    items = [
        Item(*key, ms=statistics.fmean(each), std=std(each), count=counts[key] / len(steps))
        for key, each in times.items()
    ]
    at_work = {item.layer for item in items} | {index.names[module] for module in activations or ()}
    return Breakdown(items, {name: layer_times[name] for name in shown_layers(index, at_work)}, shared)


def shown_layers(index: LayerIndex, at_work: Collection[str | None]) -> Iterator[str]:
    """The layers in the network's order; a container itself only where it takes time or keeps memory, or has
    parameters."""
    for name in index.kinds:
        if not name.endswith(".self") or name in at_work or index.parameters.get(name):
            yield name


def group_times(items: Sequence[Item], by: str) -> list[GroupTime]:
    """The items summed by `kernel` or `op`, largest first."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[getattr(item, by)].append(item)
    return sorted((group_time(name, members) for name, members in groups.items()), key=lambda group: -group.ms)


def group_time(name: str, members: Sequence[Item]) -> GroupTime:
    """The sums over the items of one kernel or operator."""
    layers: dict[str, float] = defaultdict(float)
    for item in members:
        layers[item.layer or item.phase or "unattributed"] += item.ms
    ordered = dict(sorted(layers.items(), key=lambda pair: -pair[1]))
    phases = [phase for phase in PHASES if any(item.phase == phase for item in members)]
    return GroupTime(name, sum(i.ms for i in members), sum(i.count for i in members), phases, ordered)


def std(values: Sequence[float]) -> float:
    """The standard deviation of a sample; zero for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
