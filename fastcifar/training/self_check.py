"""Whether an engine's steps are right on this machine: compared with the eager engine's on the same state.

Two engines differ by rounding, which maxima and Muon magnify, by how much depends on recipe and device. So it is
measured: by how far the eager step moves when all weights are off by as little as one rounding. An engine is right
while it lies within five times that of the eager step: what is wrong shows in tensors that rounding hardly moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcifar.data.dataset import Dataset, holdout_split, subset
from fastcifar.data.store import load_dataset
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.training.engine import EAGER, Engine
from fastcifar.training.launch import Steps
from fastcifar.training.step import TrainState

FACTOR = 5.0  # times the eager step's own difference; right kernels on an H100 differed by more than 3 times in `hlb`
TOLERANCE = 0.01  # of a step's change of a tensor, which may differ in any case
KERNEL_ERROR = 1e-5  # relative, of our own convolutions in float32 (`model.kernels.convolution`)


@dataclass(frozen=True)
class SelfCheck:
    """The tensor with the largest share of what it may differ by: of all weights, averages and metrics that a step of
    any kind changes, and of the logits of the evaluation."""

    where: str  # the tensor and the step
    difference: float  # to the eager engine, relative to the size of the eager step's change
    allowed: float

    @property
    def share(self) -> float:
        """The difference over what is allowed; infinite where the difference is no number."""
        return math.inf if math.isnan(self.difference) else self.difference / self.allowed

    @property
    def agrees(self) -> bool:
        """Whether the engine may be trusted."""
        return self.share <= 1

    def complaint(self) -> str:
        """What differs and by how much, for a sentence."""
        return f"{self.where} differs by {self.difference:.1%}, and {self.allowed:.1%} is rounding"


def check_engine(recipe: Recipe, dataset: Dataset, device: torch.device, engine: Engine) -> SelfCheck:
    """Prepare a training with the engine, and check its steps. Raises MachineError where the engine cannot run."""
    return check_steps(engine.prepare(TrainState(recipe, dataset, device, seed=0)))


def check_device(device: torch.device) -> SelfCheck:
    """Whether PyTorch's own operators train on this device as they do on the CPU, tried with `tiny` (seconds)."""
    few = holdout_split(subset(load_dataset("shapes"), torch.arange(1000)), 200)
    return check_engine(load_recipe("tiny"), few, device, EAGER)


def check_steps(steps: Steps) -> SelfCheck:
    """Compare one step of every kind and the evaluation with the eager engine's, on an Apple GPU with that on the CPU;
    the state is as before afterwards."""
    state = steps.state
    eager, perturbed = reference(state), reference(state)
    checks = []
    with state.preserved():
        state.whiten()
        for numbers in state.kinds().values():
            number = numbers[len(numbers) // 2]  # rates may begin and end at zero
            copy_state(state, eager.state, perturbed.state)
            results = [one_step(each, number, state) for each in (steps, eager, perturbed)]
            checks.append(compare(f"step {number}", *results))
        copy_state(state, eager.state, perturbed.state)
        logits = [{"logits": each.evaluate().averaged.float().cpu()} for each in (steps, eager, perturbed)]
        checks.append(compare("evaluation", *logits))
    return max(checks, key=lambda check: check.share)


def reference(state: TrainState) -> Steps:
    """Steps of plain operators for the same run."""
    if state.device.type == "mps":
        return Steps(TrainState(state.recipe, state.dataset, torch.device("cpu"), 0, state.weights))
    return Steps(TrainState(state.recipe, state.dataset, state.device, 0, state.weights, state.data))


@torch.no_grad()
def copy_state(source: TrainState, eager: TrainState, perturbed: TrainState) -> None:
    """Bring two states to where another is, one of them with all weights slightly off."""
    for state in (eager, perturbed):
        state.restore_tensors(source.state())
    generator = torch.Generator().manual_seed(0)
    error = max(KERNEL_ERROR, torch.finfo(source.dtype).eps)
    for parameter in perturbed.network.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        parameter.copy_(parameter.float() * (1 + error * noise))


def one_step(steps: Steps, number: int, planned: TrainState) -> dict[str, Tensor]:
    """Make the step of that number with the random numbers of `planned`; by what it changed each tensor of the state,
    float32 on the CPU."""
    state = steps.state
    state.network.train()
    state.clear_metrics()
    state.step = number
    if state is not planned and planned.plan is not None:
        epoch, plan = planned.plan
        state.plan = epoch, plan.changed(lambda part: part.to(state.device))
    before = tensors(state)
    steps.step()
    return {name: after - before[name] for name, after in tensors(state).items()}


def tensors(state: TrainState) -> dict[str, Tensor]:
    """Copies of all that a step changes, float32 on the CPU."""
    found = {name: tensor for name, tensor in state.network.state_dict().items() if tensor.is_floating_point()}
    found |= {f"average {number}": tensor for number, tensor in enumerate(state.ema.averages)}
    found["metrics"] = state.metrics
    return {name: tensor.to("cpu", torch.float32, copy=True) for name, tensor in found.items()}


def compare(when: str, tested: dict[str, Tensor], eager: dict[str, Tensor], perturbed: dict[str, Tensor]) -> SelfCheck:
    """What differs most, of what may differ, between the results of an engine and the eager one."""
    checks = []
    for name, expected in eager.items():
        size = float(expected.norm())
        difference, rounding = (distance(each[name], expected, size) for each in (tested, perturbed))
        checks.append(SelfCheck(f"{name}, {when}", difference, max(TOLERANCE, FACTOR * rounding)))
    return max(checks, key=lambda check: check.share)


def distance(a: Tensor, b: Tensor, size: float) -> float:
    """The norm of a difference over a size; infinite where something changed that should not."""
    difference = float((a - b).norm())
    return difference / size if size else float("inf") if difference else 0.0
