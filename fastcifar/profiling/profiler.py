"""Profile a training step: a recipe's, or that of any network with a loss and an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.profiling.modules import original
from fastcifar.profiling.recording import record
from fastcifar.profiling.result import Profile, summarize
from fastcifar.profiling.targets import ProfileTarget
from fastcifar.training.annotations import phase


def profile(target: ProfileTarget, steps: int | None = None) -> Profile:
    """The profile of a target over so many recorded steps (by default 10 on CUDA, 5 elsewhere)."""
    return summarize(record([target], steps)[0])


def profile_module(
    network: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor | tuple[Tensor, ...],
    targets: Any,
    steps: int | None = None,
) -> Profile:
    """Profile training steps of any network on one batch; the steps do train it, so pass a copy where that matters.

    `loss(network(*inputs), targets)` must give a scalar; `inputs` is a tensor whose first dimension is the batch, or a
    tuple of such. What `torch.compile` compiled counts as one layer. Public as `fastcifar.profile`.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    first = next(iter(network.parameters()), arguments[0])

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with phase("forward"):
            outputs = network(*arguments)
        with phase("loss"):
            value = loss(outputs, targets)
        with phase("backward"):
            value.backward()  # type: ignore[no-untyped-call]
        with phase("optimizer"):
            optimizer.step()

    def tensors() -> Any:
        return list(optimizer.state.values()), arguments, targets

    name, batch = type(original(network)).__name__, len(arguments[0])
    return profile(ProfileTarget(name, network, run, batch, first.device, first.dtype, state=tensors), steps)
