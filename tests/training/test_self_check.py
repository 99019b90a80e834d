"""The check of an engine against eager steps: right engines agree, and wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import few_shapes

from fastcifar.data.dataset import Dataset
from fastcifar.model.augment import augment
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import EAGER, Engine, choose_engine
from fastcifar.training.launch import Steps
from fastcifar.training.self_check import check_engine, distance
from fastcifar.training.step import TrainState, train_step

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 16, 24]", "training.epochs=2", "training.batch_size=32", "network.whiten.images=100"]
RESIDUAL = ["network.residual=true", "network.bottlenecks=[8, 8, 16]"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return few_shapes(200, 20)


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("tiny", []),
        ("tiny", ["network.norm.ghost=16"]),
        ("tiny", ["network.kernels=[[3, 1], [1, 3], [2, 3]]", "network.pool=max_mean"]),
        ("quick100", ["network.convs=[3, 3, 3]", "network.kernels=[[3, 1, 1], [3, 3, 1], [2, 3, 3]]", *RESIDUAL]),
        ("hive94", ["data.resolution=[[0, 24], [0.5, 24], [0.5, 32]]"]),
        ("hlb", ["network.project=8", "ema.every=2"]),
        ("tiny", ["optimizer.freeze=[0.4, 0.7, 1]", "optimizer.whiten_bias.schedule=[[0, 1], [0.3, 0]]"]),
    ],
)
def test_our_kernels_agree(name: str, further: list[str], dataset: Dataset) -> None:
    found = check_engine(load_recipe(name, *SMALL, *further), dataset, CPU, choose_engine("compiled", CPU))
    assert found.agrees, found
    assert 0 < found.difference < 0.1  # two engines, not one twice


def test_eager_steps_repeat(dataset: Dataset) -> None:
    assert check_engine(load_recipe("tiny", *SMALL), dataset, CPU, EAGER).difference == 0


Fault = Callable[[TrainState], None]  # makes a step, wrongly


@dataclass(frozen=True)
class Faulty(Engine):
    """The eager engine with a fault in each step."""

    fault: Fault = train_step

    def steps(self, state: TrainState) -> Steps:
        fault = self.fault

        class FaultySteps(Steps):
            def step(self) -> None:
                fault(self.state)

        return FaultySteps(state)


def mirrored(state: TrainState) -> None:
    state.augment_images = lambda images, plan, *rest: augment(images.flip(3), plan, *rest)
    train_step(state)


def slower(state: TrainState) -> None:
    state.optimizer.rates[:, 0].mul_(0.9)
    train_step(state)
    state.optimizer.rates[:, 0].div_(0.9)


def nothing(state: TrainState) -> None:
    state.step += 1


def stale(state: TrainState) -> None:
    """The batch of another step, as of a graph whose inputs were not replaced."""
    state.generator.manual_seed(1)
    state.plan = None
    train_step(state)
    state.generator.manual_seed(0)
    state.plan = None
    state.batch_plan()


def not_a_number(state: TrainState) -> None:
    train_step(state)
    next(state.network.head.parameters()).data[0, 0] = torch.nan


def thawed(state: TrainState) -> None:
    """What the schedule has frozen moves."""
    train_step(state)
    state.network.whiten.bias.data += 1e-3


def one_filter_larger(state: TrainState) -> None:
    train_step(state)
    state.network.get_parameter("group2.conv1.weight").data[3] *= 1.2


def statistics_lost(state: TrainState) -> None:
    train_step(state)
    state.network.get_buffer("group3.norm2.running_var").fill_(1.0)


def miscounted(state: TrainState) -> None:
    train_step(state)
    state.metrics[1] += 10


FAULTS = {
    mirrored: "",
    slower: "",
    nothing: "",
    stale: "",
    not_a_number: "head.weight",
    thawed: "whiten.bias",
    one_filter_larger: "group2.conv1.weight",
    statistics_lost: "group3.norm2.running_var",
    miscounted: "metrics",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_engine_does_not(fault: Fault, dataset: Dataset) -> None:
    found = check_engine(load_recipe("tiny", *SMALL), dataset, CPU, Faulty(fault=fault))
    assert not found.agrees
    assert found.where.startswith(FAULTS[fault])


def test_an_evaluation_that_is_wrong_is_found(dataset: Dataset) -> None:
    class Engineless(Engine):
        def steps(self, state: TrainState) -> Steps:
            class Unaveraged(Steps):
                def evaluate(self):  # type: ignore[no-untyped-def]
                    logits = super().evaluate()
                    return type(logits)(logits.plain, logits.plain)

            return Unaveraged(state)

    found = check_engine(load_recipe("tiny", *SMALL), dataset, CPU, Engineless())
    assert not found.agrees and found.where == "logits, evaluation"


def test_differences_are_relative_to_the_change() -> None:
    small, large, still = torch.full((4,), 1e-3), torch.full((4,), 10.0), torch.zeros(4)
    assert distance(small * 1.1, small, float(small.norm())) == pytest.approx(0.1, rel=1e-4)
    assert distance(still, still, 0.0) == 0
    assert distance(large, still, 0.0) == float("inf")
