"""FLOPs of a recipe's run, counted and not measured: the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcifar.model.network import create_network, network_code, trained_parameters
from fastcifar.model.predict import images_evaluated
from fastcifar.recipes.schema import SIDE, Recipe
from fastcifar.training.optim import ExternalOptimizer, Optimizer, make_optimizer
from fastcifar.training.step import resolutions, total_steps


@dataclass(frozen=True)
class RunFlops:
    """Floating-point operations of a whole run, as `torch.utils.flop_counter` counts (a multiply-add is two)."""

    training: int  # forward and backward
    evaluation: int  # at the end, with the recipe's test-time augmentation
    parameters: int  # trained ones, at the start

    @property
    def total(self) -> int:
        """What recipes are compared by: training and evaluation, without the optimizer."""
        return self.training + self.evaluation


def count_flops(recipe: Recipe, classes: int = 10, train_images: int = 50_000, test_images: int = 10_000) -> RunFlops:
    """The FLOPs of a run on a dataset of this size, of whose training images the recipe may hold some out.

    Counted once for each span of steps in which the same parameters are trained, on images of the same size.
    """
    train_images, test_images = split_sizes(recipe, train_images, test_images)
    batch, steps = min(recipe.training.batch_size, train_images), total_steps(recipe, train_images)
    network, optimizer = sample_network(recipe, classes, steps)
    parameters = trained_parameters(network)
    training = forward = 0
    side = resolutions(recipe, steps)
    for start, end in constant_spans(optimizer, side):
        optimizer.begin(start)
        with network_code(recipe.network):
            training += sum(image_flops(network, side[start])) * batch * (end - start)
    with network_code(recipe.network):
        forward, _ = image_flops(network, SIDE)
    return RunFlops(training, forward * images_evaluated(recipe.evaluation, test_images), parameters)


def split_sizes(recipe: Recipe, train_images: int, test_images: int) -> tuple[int, int]:
    """How many images a run trains on and is evaluated on, with `data.holdout` taken into account."""
    holdout = recipe.data.holdout
    return (train_images - holdout, holdout) if holdout else (train_images, test_images)


def image_flops(network: nn.Module, side: int) -> tuple[int, int]:
    """Forward and backward FLOPs for one image of `side` x `side` pixels, in convolutions and linear layers.

    The same numbers as the flop counter's (a test holds them together), which takes seconds to import: a layer's
    backward repeats its forward once for its weights and once for its input, each where a gradient is wanted.
    """
    forward = backward = 0

    def add(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        nonlocal forward, backward
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        images = (*args, *kwargs.values())[0]
        operations = 2 * output.numel() * layer.weight[0].numel()
        forward += operations
        backward += operations * (layer.weight.requires_grad + images.requires_grad)

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add, with_kwargs=True) for layer in layers]
    network(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return forward, backward


def optimizer_flops(recipe: Recipe, classes: int = 10, train_images: int = 50_000) -> int:
    """The FLOPs of all optimizer updates of a run, which are given apart."""
    from torch.utils.flop_counter import FlopCounterMode

    train_images, _ = split_sizes(recipe, train_images, 0)
    steps, total = total_steps(recipe, train_images), 0
    _, optimizer = sample_network(recipe, classes, steps)
    for start, end in constant_spans(optimizer, resolutions(recipe, steps)):
        optimizer.begin(start)
        with FlopCounterMode(display=False) as counter:
            optimizer.update(start)
        total += counter.get_total_flops() * (end - start)
    return total


def sample_network(recipe: Recipe, classes: int, steps: int) -> tuple[nn.Module, Optimizer | ExternalOptimizer]:
    """A network in float32 on the CPU, in evaluation mode: no batch statistics are needed to count."""
    network = create_network(recipe.network, classes).eval()
    return network, make_optimizer(network, recipe.optimizer, steps)


def constant_spans(optimizer: Optimizer | ExternalOptimizer, sides: list[int]) -> list[tuple[int, int]]:
    """The spans of steps in which the same parameters are trained on images of the same side, as first step and end."""
    steps = len(sides)
    ends = {group.trained_steps for group in optimizer.groups}
    resized = {step for step in range(1, steps) if sides[step] != sides[step - 1]}
    starts = sorted({0, *resized, *(end for end in ends if end < steps)})
    return list(zip(starts, [*starts[1:], steps], strict=True))
