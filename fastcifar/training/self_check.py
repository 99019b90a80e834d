"""Whether an engine takes the steps of eager PyTorch: one step of each kind of a recipe, from the same weights.

Engines round differently, and maxima and Muon's iteration in 16 bits magnify that, by how much depends on recipe and
device. So the yardstick is measured: what changes of the eager step when its batch, which should not matter, comes in
another order and its pixels are off by as little as a kernel's results may be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fastcifar.data.dataset import Dataset
from fastcifar.model.augment import AugmentPlan
from fastcifar.recipes.schema import Recipe
from fastcifar.training.engine import EAGER, Engine
from fastcifar.training.step import TrainState, forward_backward_update, train_step

REPETITIONS = 3  # of each step: a graph runs it as it is, captures it, replays it; as many orders of the images
KERNEL_ERROR = 1e-5  # relative, of our own convolutions (see there), or a rounding where that is more
TOLERANCE = 2e-3  # beside the yardstick: gradients of filters by those kernels are off by 5e-5, which Muon magnifies


@dataclass(frozen=True)
class SelfCheck:
    """How far an engine's steps are from the eager engine's; differences relative to what the step changes."""

    difference: float  # the largest over all weights and kinds of steps
    yardstick: float  # the same of the eager step to itself, with the images in another order, slightly off
    agrees: bool


class Perturbed(Engine):
    """The eager engine with the images of each batch slightly off, in another order within their ghost batches."""

    def prepare(self, state: TrainState) -> Callable[[], None]:
        """See `Engine.prepare`."""
        ghost = state.recipe.network.norm.ghost or state.batch_size
        rows = torch.arange(state.batch_size).view(ghost, -1)  # a column is a ghost batch
        generator = torch.Generator().manual_seed(0)
        state.std = state.std * (1 + kernel_error(state))

        def run(state: TrainState, plan: AugmentPlan) -> None:
            order = rows[torch.randperm(ghost, generator=generator)].flatten().to(state.device)
            parts = {item.name: getattr(plan, item.name) for item in fields(plan)}
            reordered = {name: part[order] for name, part in parts.items() if part is not None}
            forward_backward_update(state, replace(plan, **reordered))

        return lambda: train_step(state, run)


def kernel_error(state: TrainState) -> float:
    """The relative error that a kernel's results may have in the precision of a training."""
    return max(KERNEL_ERROR, torch.finfo(state.dtype).eps)


def check_engine(recipe: Recipe, dataset: Dataset, device: torch.device, engine: Engine) -> SelfCheck:
    """Compare an engine with the eager one on a step of each kind of the recipe.

    Raises what a training would: MachineError where kernels do not compile, out of memory.
    """
    eager, tested, perturbed = (changes(recipe, dataset, device, each) for each in (EAGER, engine, Perturbed()))
    difference, yardstick = largest_difference(tested, eager), largest_difference(perturbed, eager)
    return SelfCheck(difference, yardstick, difference <= 2 * yardstick + TOLERANCE)


def changes(recipe: Recipe, dataset: Dataset, device: torch.device, engine: Engine) -> list[Tensor]:
    """What each repetition of a step of each kind changes of each parameter, from the weights at the start of a run."""
    state = TrainState(recipe, dataset, device, seed=0)
    state.whiten()
    start = copy.deepcopy(state.state())
    before = [parameter.detach().clone() for parameter in state.network.parameters()]
    make_step = engine.prepare(state)
    found = []
    for step in kinds_of_steps(state):
        for _ in range(REPETITIONS):
            state.restore({**start, "step": step})
            state.plan = None  # drawn anew, by the generator as it was
            make_step()
            parameters = zip(state.network.parameters(), before, strict=True)
            found += [after.detach().float() - old.float() for after, old in parameters]
    return found


def kinds_of_steps(state: TrainState) -> list[int]:
    """One step of each kind: the middle one, since learning rates may begin and end at zero."""
    kinds: dict[object, list[int]] = {}
    for step in range(state.total_steps):
        kinds.setdefault(state.graph_key(step), []).append(step)
    return [steps[len(steps) // 2] for steps in kinds.values()]


def largest_difference(changes: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference relative to the reference: infinite where that does not change, NaN where one is NaN."""
    distances = torch.stack([(a - b).norm() for a, b in zip(changes, reference, strict=True)])
    sizes = torch.stack([b.norm() for b in reference])
    return float(torch.where(distances == 0, distances, distances / sizes).max())
