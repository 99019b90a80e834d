"""Faults for steps over fake CUDA tensors, each of which the tests must find: a context in which steps have it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastcifar.model.network import GlobalMax
from fastcifar.training.optim import Optimizer
from fastcifar.training.step import TrainState

Plant = Callable[[TrainState], AbstractContextManager[Any]]
forward, update = TrainState.forward, Optimizer.update


def logits_then(change: Callable[[Tensor], Tensor]) -> Plant:
    """The logits of a step are changed."""
    return lambda state: mock.patch.object(TrainState, "forward", lambda self, images: change(forward(self, images)))


def read_on_the_host(logits: Tensor) -> Tensor:
    """Scaled by a number that the host reads."""
    return logits * logits.sum().item()


def with_a_mask(logits: Tensor) -> Tensor:
    """Those above zero, as many as they are."""
    return logits[logits > 0]


def written_with_a_mask(logits: Tensor) -> Tensor:
    """Those above zero set to zero, by their places."""
    logits = logits.clone()
    logits[logits > 0] = logits.new_zeros(())
    return logits


def half_dropped(logits: Tensor) -> Tensor:
    """With random numbers."""
    return logits * torch.rand(logits.shape, device=logits.device)


def from_the_host(logits: Tensor) -> Tensor:
    """With weights that are uploaded in each step."""
    return logits * torch.ones(len(logits), 1).to(logits.device)


def scaled_by_the_host(logits: Tensor) -> Tensor:
    """With a tensor of the host: a graph would keep its first value."""
    return logits * torch.tensor(0.5)


def leaking_float32(state: TrainState) -> AbstractContextManager[Any]:
    """The last maximum is taken in float32."""
    return mock.patch.object(GlobalMax, "forward", lambda self, x: x.float().amax(dim=(2, 3)).to(x.dtype))


def keeping_gradients(state: TrainState) -> AbstractContextManager[Any]:
    """Gradients are there after the update."""

    def kept(self: Optimizer, step: int) -> None:
        gradients = {p: p.grad for p in state.network.parameters()}
        update(self, step)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient

    return mock.patch.object(Optimizer, "update", kept)


def contiguous_filters(state: TrainState) -> AbstractContextManager[Any]:
    """The filters of one convolution lie channel by channel."""
    filters = state.network.get_parameter("group2.conv1.weight")
    filters.data = filters.data.contiguous()
    return nullcontext()


PLANTS: dict[str, Plant] = {
    "item": logits_then(read_on_the_host),
    "boolean index": logits_then(with_a_mask),
    "boolean index written": logits_then(written_with_a_mask),
    "random numbers": logits_then(half_dropped),
    "copy from the host": logits_then(from_the_host),
    "scalar of the host": logits_then(scaled_by_the_host),
    "float32": leaking_float32,
    "gradients kept": keeping_gradients,
    "contiguous filters": contiguous_filters,
}
