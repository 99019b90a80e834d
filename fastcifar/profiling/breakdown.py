"""The work of recorded steps, added up by phase and by layer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import nn

from fastcifar.profiling.attribution import LOSS, Work
from fastcifar.training.annotations import PHASES, ROOT


@dataclass(frozen=True)
class Item:
    """A kernel's time in one phase and layer of a mean step; `phase` is None where it is not known whose work it is."""

    phase: str | None
    layer: str | None
    op: str
    kernel: str
    ms: float
    launches: float


@dataclass(frozen=True)
class Grouped:
    """All items of one kernel or operator: its time, its launches, and the layers it serves, largest first."""

    name: str
    ms: float
    kernels: float
    phases: list[str]
    layers: dict[str, float]


class Rows:
    """The rows of the table of layers: every module without children, and of the others what they do themselves."""

    def __init__(self, network: nn.Module) -> None:
        self.names: dict[str, str] = {LOSS: LOSS}  # module: row
        self.kinds: dict[str, str] = {}
        self.parameters: dict[str, int] = defaultdict(int)  # how many numbers, trained or not
        self.updated: dict[str, tuple[str, int]] = {}  # trained parameter: its row, how many numbers
        for name, module in network.named_modules():
            row = (name or ROOT) + (".self" if next(module.children(), None) is not None else "")
            self.names[name or ROOT] = row
            self.kinds[row] = type(module).__name__
        for name, parameter in network.named_parameters():
            row = self.names[name.rpartition(".")[0] or ROOT]
            self.parameters[row] += parameter.numel()
            if parameter.requires_grad:
                self.updated[name] = (row, parameter.numel())
        self.kinds[LOSS] = "loss"

    def shares(self, parameters: tuple[str, ...]) -> dict[str, float]:
        """How an update of these parameters (all, where none is named) is shared among the rows: by size."""
        sizes: dict[str, int] = defaultdict(int)
        for row, count in [self.updated[name] for name in parameters or self.updated if name in self.updated]:
            sizes[row] += count
        whole = sum(sizes.values())
        return {row: size / whole for row, size in sizes.items()} if whole else {}


@dataclass
class Breakdown:
    """The work of all recorded steps, by phase, row, operator and kernel."""

    rows: Rows
    works: list[list[Work]]
    items: list[Item] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)  # rows whose update shares a kernel with others

    def __post_init__(self) -> None:
        sums: dict[tuple[str | None, str | None, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.by_row: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(self.works))  # ms in each step
        for i, works in enumerate(self.works):
            for work in works:
                for phase_name, row, part in self.owners(work):
                    entry = sums[phase_name, row, work.context.op or work.kernel, work.kernel]
                    entry[0] += part * work.time / 1000 / len(self.works)
                    entry[1] += part * work.count / len(self.works)
                    if row is not None:
                        self.by_row[row][i] += part * work.time / 1000 if phase_name != "loss" else 0.0
        self.items = [Item(*key, ms=ms, launches=launches) for key, (ms, launches) in sums.items()]

    def owners(self, work: Work) -> list[tuple[str | None, str | None, float]]:
        """The phase, row and share of each owner of a piece of work; all None where nobody is known."""
        context = work.context
        if context.phase == "optimizer":
            shares = self.rows.shares(context.parameters)
            if len(shares) > 1:
                self.shared.update(shares)
            return [("optimizer", row, part) for row, part in shares.items()] or [("optimizer", None, 1.0)]
        row = self.rows.names.get(context.layer or "")
        if context.phase in ("forward", "backward") and row is None:
            return [(None, None, 1.0)]
        return [(context.phase, row, 1.0)]

    def names(self) -> list[str]:
        """The rows in the network's order; a container's own only where it works itself."""
        return [
            name
            for name in self.rows.kinds
            if not name.endswith(".self") or name in self.by_row or self.rows.parameters[name]
        ]

    def ms(self, name: str, phase_name: str) -> float:
        return sum(item.ms for item in self.items if item.layer == name and item.phase == phase_name)

    def launches(self, name: str) -> int:
        """Kernels of a row in forward and backward."""
        passes = [item for item in self.items if item.layer == name and item.phase in ("forward", "backward")]
        return round(sum(item.launches for item in passes))

    def totals(self, name: str) -> list[float]:
        """Milliseconds of a row in each recorded step."""
        return self.by_row.get(name, [0.0] * len(self.works))


def grouped(items: list[Item], by: str) -> list[Grouped]:
    """The items summed by `kernel` or `op`, largest first."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[getattr(item, by)].append(item)
    found = []
    for name, members in groups.items():
        layers: dict[str, float] = defaultdict(float)
        for item in members:
            layers[item.layer or item.phase or "unattributed"] += item.ms
        ordered = dict(sorted(layers.items(), key=lambda pair: -pair[1]))
        phases = [each for each in PHASES if any(item.phase == each for item in members)]
        found.append(Grouped(name, sum(i.ms for i in members), sum(i.launches for i in members), phases, ordered))
    return sorted(found, key=lambda group: -group.ms)
