"""Operator costs of one step, by phase and layer: floating-point operations and bytes that must move.

Counted, not measured: a step runs once under a mode that sees every operator PyTorch dispatches, and the ranges around
them. FLOPs are those of `torch.utils.flop_counter`, whose formulas are used. Bytes are what must pass through memory if
a layer's operators were one kernel: what it reads that something else wrote, once, and what it writes that something
else reads, once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastcifar.model.kernels.convolution import backward_flops as convolution_backward_flops
from fastcifar.model.kernels.convolution import flops as convolution_flops
from fastcifar.model.kernels.triton_operators import FLOPS
from fastcifar.profiling.attribution import LOSS
from fastcifar.training.annotations import LAYER, PHASE

OpScope = tuple[str | None, str | None]  # phase and layer
OVERWRITING = (
    "copy_",
    "fill_",
    "zero_",
    "_foreach_copy_",
    "_foreach_zero_",
)  # in place, but the old content is not read
FORMULAS = {
    **flop_registry,
    torch.ops.fastcifar.convolve: convolution_flops,
    torch.ops.fastcifar.convolve_pool: convolution_flops,
    torch.ops.fastcifar.convolve_backward: convolution_backward_flops,
}


@dataclass
class OpCost:
    """The cost of one layer in one phase; a kernel here is an operator that reads or writes memory."""

    kernels: int = 0
    flops: int = 0
    bytes: int = 0


@dataclass
class Content:
    """What a piece of memory holds since it was last written."""

    writer: OpScope | None  # None: it was there before the step
    readers: set[OpScope] = field(default_factory=set)


class OpCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside its `with` block; `costs` holds the sums by phase and layer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.costs: dict[OpScope, OpCost] = defaultdict(OpCost)
        self.ranges: list[str] = []
        self.node_layers: dict[int, str | None] = {}  # sequence number of an autograd node: the layer that made it
        self.node_layer: str | None = None
        self.memory: dict[int, Content] = {}  # by the address of a storage

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the compiler is not imported, which would take seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            self.note_node(self.layer())  # of the latest node, which may contain the range
            if "enter" in func.name():
                self.ranges.append(args[0])
            else:
                self.ranges.pop()
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        scope = self.scope()
        if (formula := FORMULAS.get(func._overloadpacket)) is not None:
            self.costs[scope].flops += formula(*args, **kwargs, out_val=out)
        elif (own := FLOPS.get(func.__name__.split(".")[0])) is not None:
            self.costs[scope].flops += own(args, out)
        self.count_bytes(func, tree_leaves((args, kwargs)), tree_leaves(out), scope)
        return out

    def scope(self) -> OpScope:
        """The phase and layer of the operator being dispatched."""
        phase = next((r.removeprefix(PHASE) for r in reversed(self.ranges) if r.startswith(PHASE)), None)
        layer = self.layer()
        if phase in ("loss", "backward"):
            layer = layer or LOSS
        node = torch._C._current_autograd_node()
        if node is not None and phase == "backward" and layer == LOSS:
            if not node.name().endswith("AccumulateGrad"):  # which follows the node whose gradient it takes
                self.node_layer = self.node_layers.get(node._sequence_nr())
            layer = self.node_layer
        self.note_node(layer)
        return phase, layer

    def layer(self) -> str | None:
        """The innermost open layer."""
        return next((r.removeprefix(LAYER) for r in reversed(self.ranges) if r.startswith(LAYER)), None)

    def note_node(self, layer: str | None) -> None:
        """Note the layer of the latest autograd node: an operator's own exists by now, and the first to see its number
        made it. A layer that is recomputed in the backward pass makes nodes there."""
        self.node_layers.setdefault(torch._C._autograd._get_sequence_nr() - 1, layer)

    def count_bytes(self, func: Any, inputs: list[Any], outputs: list[Any], scope: OpScope) -> None:
        """Count what an operator reads and writes; views and bare allocations do neither."""
        inputs = [each for each in inputs if isinstance(each, Tensor)]
        known = {address(each) for each in inputs}
        fresh = [each for each in outputs if isinstance(each, Tensor) and address(each) not in known]
        in_place = func._schema.is_mutable
        if not fresh and not in_place:
            return
        if func.name().split("::")[1].split(".")[0] not in OVERWRITING:
            for each in inputs:
                self.read(each, scope)
        if in_place:
            arguments = func._schema.arguments
            fresh += [
                each for each, a in zip(inputs, arguments, strict=False) if a.alias_info and a.alias_info.is_write
            ]
        self.costs[scope].kernels += 1
        for each in fresh:
            self.memory[address(each)] = Content(scope)

    def read(self, tensor: Tensor, scope: OpScope) -> None:
        """Count a tensor once for each reader that is not its writer, and once for its writer when it has a reader."""
        content = self.memory.setdefault(address(tensor), Content(None))
        if scope == content.writer or scope in content.readers:
            return
        size = min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        self.costs[scope].bytes += size
        if content.writer is not None and not content.readers:
            self.costs[content.writer].bytes += size
        content.readers.add(scope)


def address(tensor: Tensor) -> int:
    """A number that identifies a tensor's storage as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
