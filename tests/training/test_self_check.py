"""The check of an engine against eager steps: right engines agree, and wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import few_shapes

from fastcifar.data.dataset import Dataset
from fastcifar.model.augment import augment
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import EAGER, CpuKernels, Engine
from fastcifar.training.self_check import TOLERANCE, check_engine, kinds_of_steps, largest_difference
from fastcifar.training.step import TrainState, train_step

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 16, 24]", "training.epochs=2", "training.batch_size=32", "network.whiten.images=100"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return few_shapes(200, 10)


@pytest.mark.parametrize("further", [[], ["network.norm.ghost=16"], ["network.activation=silu"]], ids=str)
def test_the_kernels_agree(further: list[str], dataset: Dataset) -> None:
    found = check_engine(load_recipe("tiny", *SMALL, *further), dataset, CPU, CpuKernels())
    assert found.agrees and 0 < found.difference < 0.1 and 0 < found.yardstick < 0.1


def test_maxima_that_another_rounding_moves_are_no_disagreement(dataset: Dataset) -> None:
    """In ghost batches the order of the images alone rounds nothing otherwise."""
    settings = ["training.epochs=2", "training.batch_size=96", "network.norm.ghost=32", "network.whiten.images=100"]
    found = check_engine(load_recipe("tiny", *settings), dataset, CPU, CpuKernels())
    assert found.agrees and found.difference > TOLERANCE


def test_eager_steps_repeat(dataset: Dataset) -> None:
    assert check_engine(load_recipe("tiny", *SMALL), dataset, CPU, EAGER).difference == 0


class Faulty(Engine):
    """The eager engine, with a fault from a number of steps on."""

    def __init__(self, fault: Callable[[TrainState], None], after: int = 0) -> None:
        super().__init__()
        object.__setattr__(self, "fault", fault)
        object.__setattr__(self, "after", after)

    def prepare(self, state: TrainState) -> Callable[[], None]:
        made = 0

        def step() -> None:
            nonlocal made
            made += 1
            if made > self.after:  # type: ignore[attr-defined]
                self.fault(state)  # type: ignore[attr-defined]
            else:
                train_step(state)

        return step


def mirrored(state: TrainState) -> None:
    state.augment_images = lambda images, plan, *rest: augment(images.flip(3), plan, *rest)
    train_step(state)


def slower(state: TrainState) -> None:
    state.optimizer.rates[:, 0].mul_(0.9)
    train_step(state)
    state.optimizer.rates[:, 0].div_(0.9)


def nothing(state: TrainState) -> None:
    state.step += 1


def not_a_number(state: TrainState) -> None:
    train_step(state)
    next(state.network.head.parameters()).data[0, 0] = torch.nan


def thawed(state: TrainState) -> None:
    """What the schedule has frozen moves."""
    train_step(state)
    state.network.whiten.bias.data += 1e-3


def stale(state: TrainState) -> None:
    """The batch of another step, as of a graph whose inputs were not replaced."""
    state.generator.manual_seed(1)
    train_step(state)


@pytest.mark.parametrize("fault", [mirrored, slower, nothing, not_a_number, thawed, stale])
def test_a_wrong_engine_does_not(fault: Callable[[TrainState], None], dataset: Dataset) -> None:
    assert not check_engine(load_recipe("tiny", *SMALL), dataset, CPU, Faulty(fault)).agrees


def test_a_fault_of_the_third_step_alone_is_found(dataset: Dataset) -> None:
    """A graph is replayed the first time then."""
    recipe = load_recipe("tiny", *SMALL, "optimizer.whiten_bias.schedule=[[0, 1]]")
    state = TrainState(recipe, dataset, CPU, 0)
    assert len(kinds_of_steps(state)) == 1
    assert not check_engine(recipe, dataset, CPU, Faulty(stale, after=2)).agrees
    assert check_engine(recipe, dataset, CPU, Faulty(stale, after=3)).agrees


def test_one_step_of_each_kind_in_its_middle(dataset: Dataset) -> None:
    recipe = load_recipe("tiny", *SMALL, "data.resolution=[[0, 24], [0.5, 24], [0.5, 32]]")
    state = TrainState(recipe, dataset, CPU, 0)  # 12 steps; the whitening's bias is trained for 0.375 of them
    steps = kinds_of_steps(state)
    assert len({state.graph_key(step) for step in steps}) == len({state.graph_key(step) for step in range(12)}) == 3
    assert steps[0] == 2 and steps[0] < steps[1] < steps[2] < 11


def test_differences_are_relative_to_the_change() -> None:
    small, large, still = torch.full((4,), 1e-3), torch.full((4,), 10.0), torch.zeros(4)
    assert largest_difference([small * 1.1, large], [small, large]) == pytest.approx(0.1, rel=1e-4)
    assert largest_difference([still, large], [still, large]) == 0
    assert largest_difference([small, large], [still, large]) == float("inf")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fast94", "hive94"])
def test_the_engines_of_a_gpu_agree(name: str, dataset: Dataset) -> None:
    from fastcifar.training.engine import choose_engine

    for engine in ("graph", "compiled"):
        device = torch.device("cuda")
        recipe = load_recipe(name, "training.batch_size=64", "training.epochs=4")
        assert check_engine(recipe, dataset, device, choose_engine(engine, device)).agrees, engine
