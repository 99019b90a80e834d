"""The state of a training and one step of it: batch, forward, loss, backward, update.

The trainer loops over `train_step`, an engine wraps it, the profiler takes it apart by its phases.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcifar.data.dataset import Dataset, holdout_split
from fastcifar.errors import UsageError
from fastcifar.model.augment import AugmentPlan, AugmentSampler, augment
from fastcifar.model.network import Network, build_network, check_logits, network_code, precision
from fastcifar.model.predict import Logits, infer
from fastcifar.recipes.schedule import over_steps
from fastcifar.recipes.schema import Evaluation, Recipe
from fastcifar.training.annotations import phase
from fastcifar.training.optim import Ema, Optimizer, make_optimizer

WHITENING_CHUNK = 1000  # images augmented at once, to bound memory


def steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Full batches in one pass over the (training) images; at least one."""
    return max(1, images // recipe.training.batch_size)


def total_steps(recipe: Recipe, images: int) -> int:
    """Steps of the whole run; a fraction of an epoch is rounded up to a step."""
    return math.ceil(recipe.training.epochs * steps_per_epoch(recipe, images) - 1e-9)


def resolutions(recipe: Recipe, steps: int) -> list[int]:
    """The side of the training images at each step, pixels: small images first cost little and teach much (Tan and
    Le, "EfficientNetV2", 2021)."""
    return [round(side) for side in over_steps(recipe.data.resolution, steps)]


class DeviceData:
    """A dataset on the device, with `holdout` of its training images in place of the test images (0: as it is)."""

    def __init__(self, dataset: Dataset, holdout: int, device: torch.device) -> None:
        self.dataset = dataset = holdout_split(dataset, holdout)
        self.images = dataset.train.images.to(device)
        self.labels = dataset.train.labels.to(device)
        self.test_images = dataset.test.images.to(device)
        self.mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(dataset.std, dtype=torch.float32, device=device)


class TrainState:
    """Everything a run changes, and the dataset it reads: the whole state between two steps.

    `dataset` is the one given, with `data.holdout` of its training images in place of the test images where the recipe
    holds some out; `data` is the same on the device, where several states share it. `metrics`, float32 (3,) on the
    device, holds the sum of losses, the correct predictions and the images since `clear_metrics`.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: torch.device,
        seed: int,
        weights: Tensor | None = None,
        data: DeviceData | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.data = data = data or DeviceData(dataset, recipe.data.holdout, device)
        self.dataset = dataset = data.dataset
        self.images, self.labels, self.mean, self.std = data.images, data.labels, data.mean, data.std
        self.dtype = precision(recipe, device)
        self.batch_size = min(recipe.training.batch_size, len(self.images))
        self.steps_per_epoch = steps_per_epoch(recipe, len(self.images))
        self.total_steps = total_steps(recipe, len(self.images))
        ghost = recipe.network.norm.ghost
        if ghost and self.batch_size % ghost:
            raise UsageError(
                f"{self.batch_size} images are no whole ghost batches of {ghost}: set network.norm.ghost=0."
            )
        self.resolutions = resolutions(recipe, self.total_steps)
        pixels = recipe.network.last_side(min(self.resolutions)) ** 2
        if (ghost or self.batch_size) * pixels == 1 and not recipe.network.factory:
            raise UsageError(
                "Batch normalisation needs more than one value a channel, and the last group has one pixel of one "
                "image: train on two images a step or more (training.batch_size, network.norm.ghost)."
            )
        # An engine may put faster ones here.
        self.augment_images, self.loss_and_metrics = augment, loss_and_metrics

        if weights is not None and weights.shape != self.labels.shape:
            raise UsageError(f"There are {len(weights)} weights for {len(self.labels)} training images.")
        self.weights = None if weights is None else weights.to(device, torch.float32)  # of the images' losses

        if recipe.network.factory:
            torch.manual_seed(seed)  # user-supplied code draws from PyTorch's global generator
        self.network = build_network(recipe, len(dataset.classes), device)
        self.network_code = network_code(recipe.network)  # around calls of the network
        self.initialize(seed)  # an optimizer of one's own may look at the weights
        self.optimizer = make_optimizer(self.network, recipe.optimizer, self.total_steps)
        self.ema = Ema(self.network, recipe.ema, self.total_steps)
        self.generator = torch.Generator(device)
        self.metrics = torch.zeros(3, dtype=torch.float32, device=device)
        self.begin(seed)

    @property
    def resettable(self) -> bool:
        """Whether `reset` makes a state like a fresh one: what the user's own code built can only be built anew."""
        return isinstance(self.network, Network) and isinstance(self.optimizer, Optimizer)

    def reset(self, seed: int) -> None:
        """Begin a run from a seed: all as in a fresh state, and every tensor of the state where it was, so that CUDA
        graphs captured with them stay valid."""
        self.initialize(seed)
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.reset()
        self.clear_metrics()
        self.begin(seed)

    def initialize(self, seed: int) -> None:
        """The weights of a fresh network; a user's comes with its own."""
        if isinstance(self.network, Network):
            self.network.initialize(torch.Generator().manual_seed(seed))

    def begin(self, seed: int) -> None:
        """The first step, and the random numbers of a run."""
        self.step = 0
        self.plan: tuple[int, AugmentPlan] | None = None  # an epoch and its plan
        self.generator.manual_seed(seed)
        self.sampler = AugmentSampler(self.recipe.data, len(self.images), self.generator)

    def augment(self, plan: AugmentPlan) -> Tensor:
        """The planned training images, (B, 3, side, side), as large as they are at this step."""
        data, side = self.recipe.data, self.resolutions[self.step]
        return self.augment_images(
            self.images, plan, self.mean, self.std, self.dtype, data.cutout, side, data.antialias
        )

    def whiten(self) -> None:
        """Set the whitening from a random sample of training images, as they are; other networks have none."""
        if not isinstance(self.network, Network):
            return
        count = min(self.recipe.network.whiten.images, len(self.images))
        sample = torch.randperm(len(self.images), generator=self.generator, device=self.device)[:count]
        parts = torch.split(sample, WHITENING_CHUNK)
        self.network.set_whitening(
            augment(self.images, AugmentPlan(part), self.mean, self.std, torch.float32) for part in parts
        )

    def batch_plan(self) -> AugmentPlan:
        """The plan of the current step; the first step made in an epoch draws the epoch's."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self.plan is None or self.plan[0] != epoch:
            self.plan = epoch, self.sampler.sample(epoch)
        return self.plan[1].batch(position * self.batch_size, self.batch_size)

    def graph_key(self, step: int) -> Any:
        """Equal for steps that launch the same kernels: resolution, trained groups, weight normalisation, averaging."""
        return self.resolutions[step], self.optimizer.graph_key(step), self.ema.graph_key(step)

    def kinds(self) -> dict[Any, list[int]]:
        """The steps of the run by their `graph_key`, in the order in which the kinds first come."""
        kinds: dict[Any, list[int]] = defaultdict(list)
        for step in range(self.total_steps):
            kinds[self.graph_key(step)].append(step)
        return kinds

    def batch(self, plan: AugmentPlan) -> tuple[Tensor, Tensor, Tensor | None]:
        """The images, labels and weights of a step's plan."""
        weights = None if self.weights is None else self.weights[plan.index]
        return self.augment(plan), self.labels[plan.index], weights

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, classes) of a batch of images; raises UsageError where a user's network gives others."""
        with self.network_code:
            logits: Tensor = self.network(images)
        if self.recipe.network.factory:
            check_logits(logits, self.network_code, len(images), len(self.dataset.classes))
            if not logits.requires_grad and any(each.requires_grad for each in self.network.parameters()):
                raise self.network_code.fault("gives outputs that do not depend on what is trained")
        return logits

    def evaluate(self, recipe: Evaluation) -> Logits:
        """The logits of the test images, with the weights as they are; the network is in evaluation mode afterwards."""
        with self.network_code:
            return infer(self.network, self.data.test_images, self.mean, self.std, recipe, self.augment_images)

    def clear_metrics(self) -> None:
        """Set the metrics to zero."""
        self.metrics.zero_()

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, at the end of an epoch, as a tree of tensors and numbers."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "momenta": self.optimizer.state(),
            "averages": self.ema.averages,
            "generator": self.generator.get_state(),
            "mirrored": self.sampler.mirrored,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` gave."""
        self.restore_tensors(state)
        self.generator.set_state(state["generator"].cpu())
        if self.sampler.mirrored is not None:
            self.sampler.mirrored.copy_(state["mirrored"])

    def restore_tensors(self, state: dict[str, Any]) -> None:
        """The same without the random numbers, which another kind of device draws otherwise."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.optimizer.restore(state["momenta"])
        for average, saved in zip(self.ema.averages, state["averages"], strict=True):
            average.copy_(saved)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Put everything back afterwards that steps within change, in place; for preparations before a run begins."""
        saved, training = copy.deepcopy(self.state()), self.network.training
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            yield
        self.restore(saved)
        self.plan = None
        self.clear_metrics()
        self.network.train(training)
        for parameter in self.network.parameters():
            parameter.grad = None


def train_step(state: TrainState, run: Callable[[TrainState, AugmentPlan], None] | None = None) -> None:
    """One update of the weights: rates and the batch's plan first, then `run` (`forward_backward_update`, or what an
    engine puts in its place)."""
    with phase("optimizer"):
        state.optimizer.begin(state.step)
    with phase("data"):
        plan = state.batch_plan()
    (run or forward_backward_update)(state, plan)
    state.step += 1


def forward_backward_update(state: TrainState, plan: AugmentPlan) -> None:
    """The device's part of a step, for the batch of `plan`: an engine may capture and replay it."""
    with phase("data"):
        images, labels, weights = state.batch(plan)
    with phase("forward"):
        logits = state.forward(images)
    with phase("loss"):
        loss = state.loss_and_metrics(logits, labels, state.recipe.training.label_smoothing, weights, state.metrics)
    with phase("backward"), state.network_code:
        if loss.requires_grad:  # else the schedules freeze everything
            loss.backward()  # type: ignore[no-untyped-call]
    with phase("optimizer"):
        state.optimizer.update(state.step)
        state.ema.update(state.step)


def loss_and_metrics(
    logits: Tensor, labels: Tensor, label_smoothing: float, weights: Tensor | None, metrics: Tensor
) -> Tensor:
    """The `summed_loss` of a batch, which is added to the metrics (3,), float32, together with the correct predictions
    and the images."""
    loss = summed_loss(logits, labels, label_smoothing, weights)
    with torch.no_grad():
        correct = (logits.argmax(1) == labels).sum()
        metrics += torch.stack([loss.detach(), correct.float(), torch.full_like(loss, len(labels))])
    return loss


def summed_loss(logits: Tensor, labels: Tensor, label_smoothing: float, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits (B, classes) with smoothed labels (B,), summed over the batch in float32; each image's
    times its weight (B,), where there are any."""
    if weights is None:
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")
    losses = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="none")
    return (losses * weights).sum()
