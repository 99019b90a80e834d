"""The optimizer's update by our Triton kernels; imported only where Triton is there."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.model.kernels import triton_update as kernels
from fastcifar.model.kernels.triton_operators import supported
from fastcifar.recipes import schema
from fastcifar.training.annotations import update_of
from fastcifar.training.optim import Optimizer, ParameterGroup
from fastcifar.training.orthogonal import MOST_MATRICES, SMALLEST_NORM, batches, in_gram_space


def install(optimizer: Optimizer) -> bool:
    """Have the optimizer's updates made by the kernels; False, and nothing is changed, where they cannot."""
    parameters = [parameter for group in optimizer.groups for parameter in group.parameters]
    possible = supported(*parameters) and all(map(outermost_first, parameters))
    if possible:
        optimizer.move = fused_update
    return possible


def outermost_first(parameter: Tensor) -> bool:
    """Whether a parameter is dense, with its first dimension outermost: then it lies in memory as a matrix."""
    channels_last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return channels_last or parameter.is_contiguous()


def fused_update(groups: list[ParameterGroup], now: Tensor, renormalize: bool) -> None:
    """A `Move` by the kernels: Muon in fifteen launches a batch of filters (three polynomials), SGD in one."""
    for group in groups:
        if settings := group.muon:
            muon(group, settings, now[group.column], renormalize)
    sgd([group for group in groups if not group.muon], now)


def muon(group: ParameterGroup, settings: schema.Filters, rate: Tensor, renormalize: bool) -> None:
    """`optim.muon` in float16 and in Gram space, rounded once at the end."""
    gradients = aligned_gradients(group)
    for batch in batches([(len(each), each[0].numel()) for each in group.parameters]):
        members = batch.members
        grads, momenta, parameters = (
            [tensors[i] for i in members] for tensors in (gradients, group.momenta, group.parameters)
        )
        with update_of([group.names[i] for i in members]):
            sums = kernels.muon_momentum(grads, momenta, parameters if renormalize else [], settings.momentum)
            packed = kernels.muon_pack(
                grads, momenta, sums, settings.momentum, SMALLEST_NORM, batch.rows, batch.columns
            )
            packed = in_gram_space(packed, settings.newton_schulz, kernels.gram_polynomial)
            kernels.muon_update(parameters, packed, sums, rate, settings.weight_decay, renormalize)


def sgd(groups: list[ParameterGroup], now: Tensor) -> None:
    """`optim.sgd` of all parameters of several groups, rounded once."""
    rows = [
        (name, gradient, momentum, parameter, group)
        for group in groups
        for name, gradient, momentum, parameter in zip(
            group.names, aligned_gradients(group), group.momenta, group.parameters, strict=True
        )
    ]
    for first in range(0, len(rows), MOST_MATRICES):
        names, gradients, momenta, parameters, of_group = map(
            list, zip(*rows[first : first + MOST_MATRICES], strict=True)
        )
        with update_of(names):
            kernels.sgd_update(
                gradients,
                momenta,
                parameters,
                now,
                [group.column for group in of_group],
                [group.settings.momentum for group in of_group],
                [group.settings.weight_decay for group in of_group],
            )


def aligned_gradients(group: ParameterGroup) -> list[Tensor]:
    """The gradients of a group, with the strides of its parameters, as autograd gives them nearly always."""
    return [
        gradient if same_strides(gradient, parameter) else torch.empty_like(parameter).copy_(gradient)
        for gradient, parameter in zip(group.gradients(), group.parameters, strict=True)
    ]


def same_strides(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same shape have their numbers in the same order of memory."""
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size == 1 or a == b for size, a, b in strides)
