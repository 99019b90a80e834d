"""What the tests of all Triton operators ask: outputs that are not computed, and operators in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Case = tuple[Callable[..., Any], tuple[Any, ...]]


def assert_shapes_are_known(cases: Iterable[Case], *modules: ModuleType) -> None:
    """Each operator, called as in its case, says its output's shape, type and strides without computing it; the cases
    are of all operators that the modules define."""
    operators = set()
    for operator, arguments in cases:
        operators.add(operator)
        real = operator(*arguments)
        faked = operator(*(each.to("meta") if isinstance(each, Tensor) else each for each in arguments))
        assert faked.is_meta and not real.is_meta
        assert (faked.shape, faked.dtype, faked.stride()) == (real.shape, real.dtype, real.stride()), operator
    defined = {each for module in modules for each in vars(module).values() if isinstance(each, type(operator))}
    assert operators == defined


def assert_a_graph_repeats(operator: Callable[..., Any], arguments: tuple[Any, ...], expected: Tensor) -> None:
    """The operator, captured in a CUDA graph and replayed into memory that was cleared, gives the expected bits."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator(*arguments)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected), operator
