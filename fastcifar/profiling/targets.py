"""What is profiled: one training step of a recipe, or a step of every kind that a run has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.dataset import Dataset
from fastcifar.recipes.schema import Recipe
from fastcifar.training.engine import EAGER, Engine
from fastcifar.training.launch import Steps
from fastcifar.training.step import TrainState, train_step

WHITENING_IMAGES = 500  # no time depends on how well the filters whiten
CPU_BATCH = 128  # images a step on a CPU by default: the layers keep their proportions


@dataclass(frozen=True)
class ProfileTarget:
    """A training step that can be run again and again, and the network in it."""

    name: str
    network: nn.Module
    run: Callable[[], None]
    batch: int  # images a step
    device: torch.device
    dtype: torch.dtype  # of the arithmetic
    engine: str = "eager"
    state: Callable[[], Any] = tuple  # a tree of all tensors that live between steps, besides the network's
    run_uncaptured: Callable[[], None] | None = None  # the same step not captured, where `run` replays a CUDA graph


def with_batch(recipe: Recipe, batch: int | None, device: torch.device) -> Recipe:
    """The recipe with that many images a step; None: the recipe's own, on a CPU at most 128."""
    default = recipe.training.batch_size if device.type == "cuda" else min(CPU_BATCH, recipe.training.batch_size)
    return replace(recipe, training=replace(recipe.training, batch_size=batch or default))


def recipe_target(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    engine: Engine = EAGER,
    network_state: dict[str, Tensor] | None = None,
) -> ProfileTarget:
    """The step of a recipe's training, always the second of the run, in which all is trained that ever is.

    `network_state` is a checkpoint's state dict; None: the network as it is initialized.
    """
    state = new_state(recipe, dataset, device, network_state)
    return step_target(engine.prepare(state), min(1, state.total_steps - 1), engine)


def run_targets(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    engine: Engine = EAGER,
    network_state: dict[str, Tensor] | None = None,
) -> list[tuple[ProfileTarget, float]]:
    """One step of every kind that a run has, each with its share of the run's steps."""
    state = new_state(recipe, dataset, device, network_state)
    prepared, kinds = engine.prepare(state), state.kinds()
    # Not the first step of an epoch, which draws the epoch's random numbers too.
    chosen = [min(steps, key=lambda step: step % state.steps_per_epoch == 0) for steps in kinds.values()]
    shares = [len(steps) / state.total_steps for steps in kinds.values()]
    return [(step_target(prepared, step, engine), share) for step, share in zip(chosen, shares, strict=True)]


def new_state(
    recipe: Recipe, dataset: Dataset, device: torch.device, network_state: dict[str, Tensor] | None
) -> TrainState:
    """A training state to take steps of; its whitening is computed from few images."""
    whiten = replace(recipe.network.whiten, images=WHITENING_IMAGES)
    recipe = replace(recipe, network=replace(recipe.network, whiten=whiten))
    state = TrainState(recipe, dataset, device, seed=0)
    if network_state is None:
        state.whiten()
    else:
        state.network.load_state_dict(network_state)
    state.network.train()
    return state


def step_target(prepared: Steps, step: int, engine: Engine) -> ProfileTarget:
    """The step of that number of a training, again and again; the network goes on learning."""
    state = prepared.state

    def run() -> None:
        state.step = step
        prepared.step()

    def run_uncaptured() -> None:
        state.step = step
        train_step(state)

    def tensors() -> Any:
        return state.optimizer.state(), state.ema.averages, state.images, state.labels

    return ProfileTarget(
        name=state.recipe.name,
        network=state.network,
        run=run,
        batch=state.batch_size,
        device=state.device,
        dtype=state.dtype,
        engine=engine.name,
        state=tensors,
        run_uncaptured=run_uncaptured if engine.name == "graph" else None,
    )
