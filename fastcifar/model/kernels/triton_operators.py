"""Our Triton kernels as PyTorch operators: one operator is one kernel launch.

An operator reads each of its inputs once and writes each of its outputs (and of the inputs it changes) once, unless it
says otherwise: `bytes_moved` is what counts of kernels and bytes are made from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPERATORS = torch.library.Library("fastcifar", "FRAGMENT")  # type: ignore[no-untyped-call]
# With TRITON_INTERPRET=1 (read by Triton when a kernel is defined) kernels run on the CPU, slowly, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What the kernels take: numbers of these types, and so many in a map, for they count in 32 bits.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_NUMBERS = 2**31 - 1
Count = Callable[[tuple[Any, ...], Any], int]
TRAFFIC: dict[str, Count] = {}  # of operators that do not move each tensor once
FLOPS: dict[str, Count] = {}  # of those that do what `torch.utils.flop_counter` counts


def define(
    schema: str,
    launch: Callable[..., Any],
    shapes: Callable[..., Any],
    traffic: Count | None = None,
    flops: Count | None = None,
) -> Callable[..., Any]:
    """Register the operator `fastcifar::<name>` of a schema, whose name begins with `triton_`, and return it.

    `launch` makes the outputs and launches the kernel; `shapes` makes outputs of the same shapes, types and memory
    formats without computing them (for fake tensors); `traffic` gives the bytes moved, `flops` the
    floating-point operations of convolutions and matrix products, from arguments and outputs.
    """
    name = schema.split("(")[0]
    OPERATORS.define(schema)  # type: ignore[no-untyped-call]
    for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        OPERATORS.impl(name, launch, key)  # type: ignore[no-untyped-call]
    OPERATORS.impl(name, shapes, "Meta")  # type: ignore[no-untyped-call]
    if traffic is not None:
        TRAFFIC[name] = traffic
    if flops is not None:
        FLOPS[name] = flops
    operator: Callable[..., Any] = getattr(torch.ops.fastcifar, name)
    return operator


def sums_traffic(arguments: tuple[Any, ...], out: Tensor) -> int:
    """The traffic of an operator that reads its first argument alone: of the others it takes shapes and types."""
    return int(arguments[0].nbytes) + out.nbytes


def runs_on(device: torch.device) -> bool:
    """Whether the kernels can run there: on CUDA, or on the CPU where kernels are interpreted."""
    return device.type == "cuda" or (INTERPRETED and device.type == "cpu")


def supported(*tensors: Tensor) -> bool:
    """Whether the kernels can run on all these tensors."""
    return all(runs_on(tensor.device) for tensor in tensors)
