"""How many operations a recipe asks for, counted and not measured: the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.evaluate import evaluations
from fastcifar.network import Network, trained_parameters
from fastcifar.optim import Optimizer
from fastcifar.recipe import Recipe
from fastcifar.step import loss_of, total_steps


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a whole run, as `torch.utils.flop_counter` counts (a multiply-add is two)."""

    training: int  # forward and backward
    evaluation: int  # at the end, with the recipe's test-time augmentation
    optimizer: int
    forward_per_image: int
    parameters: int  # trained ones, at the start

    @property
    def total(self) -> int:
        """What a recipe is compared by: training and evaluation, without the optimizer."""
        return self.training + self.evaluation


def count(recipe: Recipe, classes: int = 10, train_images: int = 50_000, test_images: int = 10_000) -> Operations:
    """Count on tensors without data, once for each stretch of steps in which the same parameters are trained."""
    batch, steps = min(recipe.training.batch_size, train_images), total_steps(recipe, train_images)
    network = Network(recipe.network, classes).to("meta").train()
    parameters = trained_parameters(network)
    optimizer = Optimizer(network, recipe.optimizer, steps)
    images, labels = torch.empty(batch, 3, 32, 32, device="meta"), torch.empty(batch, dtype=torch.long, device="meta")
    starts = sorted({0, *(group.trained_steps for group in optimizer.groups if group.trained_steps < steps)})
    training = updates = forward = 0
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        optimizer.freeze(start)
        with FlopCounterMode(display=False) as counter:
            logits = network(images)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            loss_of(logits, labels, recipe.training.label_smoothing).backward()  # type: ignore[no-untyped-call]
        training += (forward + counter.get_total_flops()) * (end - start)
        with FlopCounterMode(display=False) as counter:
            optimizer.update(start)
        updates += counter.get_total_flops() * (end - start)
    evaluation = forward // batch * evaluations(recipe.evaluation, test_images)
    return Operations(training, evaluation, updates, forward // batch, parameters)
