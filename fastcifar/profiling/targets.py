"""What is profiled: the trainer's step on a recipe, or a step of every kind that a run has."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.dataset import Dataset
from fastcifar.recipes.schema import Recipe
from fastcifar.training.engine import EAGER, Engine
from fastcifar.training.step import TrainState
from fastcifar.training.step import train_step as plain_step

WHITENING_IMAGES = 500  # no time depends on how well the filters whiten
CPU_BATCH = 128  # images a step on a CPU, where nothing else is asked: the parts keep their proportions


@dataclass
class Subject:
    """A step that can be run again and again, and the network in it."""

    name: str
    network: nn.Module
    run: Callable[[], None]
    batch: int
    device: torch.device
    dtype: torch.dtype
    engine: str = "eager"
    plain: Callable[[], None] | None = None  # the same step not captured, where `run` replays a graph


def with_batch(recipe: Recipe, batch: int | None, device: torch.device) -> Recipe:
    """The recipe with that many images a step, or with what suits the device."""
    default = recipe.training.batch_size if device.type == "cuda" else min(CPU_BATCH, recipe.training.batch_size)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, batch_size=batch or default))


def subject_of(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    weights: dict[str, Tensor] | None = None,
    engine: Engine = EAGER,
) -> Subject:
    """The trainer's step on a recipe, always the same kind: the second of the run, with all that is trained then."""
    training = training_of(recipe, dataset, device, weights)
    return subject_at(min(1, training.total_steps - 1), training, engine.prepare(training), engine)


def run_of(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    weights: dict[str, Tensor] | None = None,
    engine: Engine = EAGER,
) -> list[tuple[Subject, float]]:
    """A step of every kind that a run has, each with its share of the run's steps."""
    training = training_of(recipe, dataset, device, weights)
    kinds: dict[Any, list[int]] = defaultdict(list)
    for number in range(training.total_steps):
        kinds[training.graph_key(number)].append(number)
    step = engine.prepare(training)
    # Not the first step of an epoch, which draws the epoch's random numbers too.
    chosen = [min(found, key=lambda number: number % training.steps_per_epoch == 0) for found in kinds.values()]
    shares = [len(found) / training.total_steps for found in kinds.values()]
    return [(subject_at(at, training, step, engine), share) for at, share in zip(chosen, shares, strict=True)]


def training_of(
    recipe: Recipe, dataset: Dataset, device: torch.device, weights: dict[str, Tensor] | None
) -> TrainState:
    """A training to take steps of; its whitening is set from few images."""
    few = dataclasses.replace(recipe.network.whiten, images=WHITENING_IMAGES)
    recipe = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, whiten=few))
    training = TrainState(recipe, dataset, device, seed=0)
    if weights is None:
        training.whiten()
    else:
        training.network.load_state_dict(weights)
    training.network.train()
    return training


def subject_at(at: int, training: TrainState, step: Callable[[], None], engine: Engine) -> Subject:
    """Step `at` of a training, again and again."""

    def run() -> None:
        training.step = at
        step()

    def plain() -> None:
        training.step = at
        plain_step(training)

    name, size = training.recipe.name, training.batch_size
    known = plain if engine.name == "graph" else None
    return Subject(name, training.network, run, size, training.device, training.dtype, engine.name, known)
