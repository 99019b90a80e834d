"""What the tests of all Triton operators ask of the outputs that are not computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

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
