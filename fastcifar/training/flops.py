"""How many operations a recipe asks for, counted and not measured: the same on every machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcifar.data.dataset import Dataset
from fastcifar.model.network import create_network, trained_parameters
from fastcifar.model.predict import images_evaluated, infer
from fastcifar.recipes.schema import SIDE, Recipe
from fastcifar.system.timing import time_call
from fastcifar.training.engine import start_engine
from fastcifar.training.optim import ExternalOptimizer, Optimizer, make_optimizer
from fastcifar.training.step import TrainState, resolutions, total_steps


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
    """Count once for each stretch of steps in which the same parameters are trained, on images of the same size."""
    batch, steps = min(recipe.training.batch_size, train_images), total_steps(recipe, train_images)
    network, optimizer = sample_network(recipe, classes, steps)
    parameters = trained_parameters(network)
    training = forward = 0
    side = resolutions(recipe, steps)
    for start, end in constant_spans(optimizer, side):
        optimizer.begin(start)
        training += sum(image_flops(network, side[start])) * batch * (end - start)
    forward, _ = image_flops(network, SIDE)
    return RunFlops(training, forward * images_evaluated(recipe.evaluation, test_images), parameters)


def image_flops(network: nn.Module, side: int) -> tuple[int, int]:
    """Forward and backward operations for one image of `side` x `side` pixels, in convolutions and linear layers.

    The same numbers as the flop counter's (a test holds them together), which takes seconds to import: a layer's
    backward repeats its forward once for its weights and once for its input, each where a gradient is wanted.
    """
    forward = backward = 0

    def add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal forward, backward
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        operations = 2 * output.numel() * layer.weight[0].numel()
        forward += operations
        backward += operations * (layer.weight.requires_grad + inputs[0].requires_grad)

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    network(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return forward, backward


def optimizer_flops(recipe: Recipe, classes: int = 10, train_images: int = 50_000) -> int:
    """The operations of all updates, which are given apart."""
    from torch.utils.flop_counter import FlopCounterMode

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
    """The runs of steps in which the same parameters are trained on images of the same side, as first step and end."""
    steps = len(sides)
    ends = {group.trained_steps for group in optimizer.groups}
    resized = {step for step in range(1, steps) if sides[step] != sides[step - 1]}
    starts = sorted({0, *resized, *(end for end in ends if end < steps)})
    return list(zip(starts, [*starts[1:], steps], strict=True))


REHEARSALS = (8, 40)  # batch sizes, on a CPU: enough to tell minutes from hours


def rehearse(recipe: Recipe, dataset: Dataset, device: torch.device, engine: str = "eager") -> float:
    """Seconds that a run is going to take, judged by a few steps on a scratch copy; also wakes the device up.

    On CUDA two steps and an evaluation prepare kernels and memory, and a third step is timed. Elsewhere two small
    batches are: what an image costs, and what a step costs whatever its images.
    """
    images, batch = len(dataset.train.images), min(recipe.training.batch_size, len(dataset.train.images))
    if device.type == "cuda":
        scratch = TrainState(recipe, dataset, device, seed=0)
        scratch.whiten()
        step = start_engine(engine, scratch)
        step()
        test = dataset.test.images.to(device)
        infer(scratch.network, test, scratch.mean, scratch.std, recipe.evaluation)
        scratch.network.train()
        step()
        a_step = time_call(step, device)
        an_image = a_step / batch
    else:
        few, more = (time_call(small_step(recipe, dataset, device, engine, count), device) for count in REHEARSALS)
        an_image = max(0.0, more - few) / (REHEARSALS[1] - REHEARSALS[0])
        a_step = few + an_image * (batch - REHEARSALS[0])
    # A forward pass is about a third of a step; the time of an image goes with its pixels.
    views = images_evaluated(recipe.evaluation, len(dataset.test.images))
    side = resolutions(recipe, total_steps(recipe, images))
    areas = [(each / side[0]) ** 2 for each in (*side, SIDE)]
    return a_step * sum(areas[:-1]) + an_image * areas[-1] * views / 3


def small_step(
    recipe: Recipe, dataset: Dataset, device: torch.device, engine: str, batch_size: int
) -> Callable[[], None]:
    """A step of a scratch training with small batches, done once."""
    norm = dataclasses.replace(recipe.network.norm, ghost=0)
    small = dataclasses.replace(
        recipe,
        training=dataclasses.replace(recipe.training, batch_size=batch_size),
        network=dataclasses.replace(recipe.network, norm=norm),
    )
    step = start_engine(engine, TrainState(small, dataset, device, seed=0))
    step()
    return step
