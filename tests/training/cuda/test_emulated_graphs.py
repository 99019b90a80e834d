"""The graph engine without a GPU, on emulated CUDA graphs: every step is bit for bit the eager engine's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any
from unittest import mock

import pytest
import torch
from emulated_graphs import LaunchedOneByOne, Log, emulated_graphs
from helpers import few_shapes
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from fastcifar.data.dataset import Dataset
from fastcifar.model import predict
from fastcifar.model.augment import AugmentPlan
from fastcifar.recipes.parse import load_recipe, recipe_names
from fastcifar.recipes.schema import Recipe
from fastcifar.training.engine import choose_engine
from fastcifar.training.launch import Steps
from fastcifar.training.optim import Optimizer
from fastcifar.training.step import TrainState, total_steps, train_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
STEPS_PER_EPOCH, BATCH = 10, 16


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """Graphs are emulated in every test."""
    with emulated_graphs() as log:
        yield log


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return few_shapes(STEPS_PER_EPOCH * BATCH, 32)


def narrow(name: str, steps: int, *overrides: str) -> Recipe:
    """A recipe with few channels, for so many steps."""
    network = load_recipe(name).network
    small = [f"training.batch_size={BATCH}", f"training.epochs={steps / STEPS_PER_EPOCH}", "network.whiten.images=64"]
    small += ["network.widths=[8, 16, 16]", "evaluation.batch_size=16"]
    small += ["network.project=8"] * bool(network.project) + ["network.norm.ghost=8"] * bool(network.norm.ghost)
    return load_recipe(name, *small, *overrides)


def kinds(recipe: Recipe, dataset: Dataset) -> Counter[Any]:
    """How often each kind of step comes in a run."""
    state = TrainState(recipe, dataset, CPU, 0)
    return Counter(state.graph_key(step) for step in range(state.total_steps))


def shortened(name: str, dataset: Dataset, *overrides: str) -> Recipe:
    """A narrow recipe with as few steps as have all kinds of step of the whole recipe (on 50,000 images), each twice
    if it comes more than once there."""
    whole = total_steps(load_recipe(name), 50_000)
    wanted = Counter({kind: min(2, count) for kind, count in kinds(narrow(name, whole), dataset).items()})
    lengths = range(3 * STEPS_PER_EPOCH, whole, STEPS_PER_EPOCH)
    return next(narrow(name, steps, *overrides) for steps in lengths if kinds(narrow(name, steps), dataset) >= wanted)


def prepare(state: TrainState) -> Steps:
    """What the graph engine makes of a state on the CPU; its kernels, if it has some, are for CUDA."""
    engine = choose_engine("graph", CUDA)
    with mock.patch.object(type(engine), "install", lambda self, state: None):
        return engine.prepare(state)


def begin(state: TrainState) -> None:
    """What a run does before its first step."""
    state.whiten()
    state.network.train()
    state.clear_metrics()


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    """All tensors of a state, by names."""
    found = {**state.network.state_dict()}
    for owner in (state, state.optimizer, state.ema):
        found |= {f"{type(owner).__name__}.{name}": value for name, value in vars(owner).items()}
    found |= {f"momentum {number}": each for number, each in enumerate(tree_leaves(state.optimizer.state()))}
    found |= {f"average {number}": each for number, each in enumerate(state.ema.averages)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def differences(recipe: Recipe, dataset: Dataset, weights: Tensor | None = None) -> list[str]:
    """Where a run on graphs differs from an eager one: the first tensors that do, and all that moved in memory."""
    eager, graphed = (TrainState(recipe, dataset, CPU, 3, weights) for _ in range(2))
    make_step = prepare(graphed).step
    addresses = {name: tensor.data_ptr() for name, tensor in tensors_of(graphed).items()}
    begin(eager)
    begin(graphed)
    found: list[str] = []
    while not found and eager.step < eager.total_steps:
        train_step(eager)
        make_step()
        ours = tensors_of(graphed)
        found = [f"{name} differs" for name, tensor in tensors_of(eager).items() if not tensor.equal(ours[name])]
    return found + [
        f"{name} moved" for name, tensor in tensors_of(graphed).items() if tensor.data_ptr() != addresses[name]
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_steps_on_graphs_are_the_eager_ones(name: str, dataset: Dataset, log: Log) -> None:
    assert differences(shortened(name, dataset), dataset) == []
    assert log.captures > 0
    assert log.replays > log.captures


def test_other_kernels_bottlenecks_and_pooling_on_graphs(dataset: Dataset) -> None:
    settings = (
        *("network.convs=[3, 2, 3]", "network.kernels=[[3, 1, 1], [3, 1], [2, 3, 3]]", "network.pool=max_mean"),
        *("network.residual=true", "network.bottlenecks=[8, 8, 8]"),
    )
    assert differences(shortened("fast94", dataset, *settings), dataset) == []


def test_frozen_groups_on_graphs(dataset: Dataset) -> None:
    settings = ("optimizer.freeze=[0.4, 0.7, 1]", "optimizer.whiten_bias.schedule=[[0, 1], [0.2, 0]]")
    assert differences(narrow("tiny", 30, *settings), dataset) == []


def test_cutout_and_weights_on_graphs(dataset: Dataset) -> None:
    weights = torch.rand(len(dataset.train.labels), generator=torch.Generator().manual_seed(0)) + 0.5
    assert differences(narrow("tiny", 30, "data.cutout=6", "data.brightness=0.2"), dataset, weights) == []


def test_preparation_leaves_the_state_as_it_was(dataset: Dataset) -> None:
    untouched, prepared = (TrainState(narrow("hlb", 30), dataset, CPU, 3) for _ in range(2))
    prepare(prepared)
    ours = tensors_of(prepared)
    ours["Optimizer.now"].zero_()  # each step takes up its rates before anything else
    assert [name for name, tensor in tensors_of(untouched).items() if not tensor.equal(ours[name])] == []
    assert untouched.generator.get_state().equal(prepared.generator.get_state())
    assert prepared.step == 0


def late_work(recipe: Recipe, dataset: Dataset, log: Log) -> list[str]:
    """What a prepared run still captures, or launches one by one: a kind of step that is new, or the evaluation."""
    state = TrainState(recipe, dataset, CPU, 3)
    steps = prepare(state)
    begin(state)
    captured, found = log.captures, []
    for number in range(state.total_steps):
        with LaunchedOneByOne(log) as launched:
            steps.step()
        if launched.convolutions:
            found.append(f"step {number} was launched one by one")
        if log.captures > captured:
            found.append(f"step {number} was captured")
        captured = log.captures
    with LaunchedOneByOne(log) as launched:
        evaluate(state, steps)
    return found + ["the evaluation was launched one by one"] * bool(launched.convolutions)


def evaluate(state: TrainState, steps: Steps) -> predict.Logits:
    """The evaluation at the end of a run."""
    state.ema.apply()
    return steps.evaluate()


@pytest.mark.parametrize("name", ["quick90", "hlb"])
def test_nothing_is_captured_or_new_once_the_run_has_begun(name: str, dataset: Dataset, log: Log) -> None:
    assert late_work(shortened(name, dataset), dataset, log) == []


@pytest.mark.parametrize("name", ["tiny", "hlb", "hive94"])
def test_the_evaluation_on_graphs_is_the_eager_one(name: str, dataset: Dataset) -> None:
    logits = []
    for prepared in (False, True):
        state = TrainState(narrow(name, 30), dataset, CPU, 3)
        steps = prepare(state) if prepared else Steps(state)
        begin(state)
        for _ in range(3):
            train_step(state)
        logits.append(evaluate(state, steps))
    assert logits[0].plain.equal(logits[1].plain)
    assert logits[0].averaged.equal(logits[1].averaged)


# Planted faults: each must be found by the comparison above.


@pytest.mark.parametrize(("name", "part"), [("quick90", 0), ("quick90", 1), ("hlb", 2)])
def test_kinds_of_step_not_told_apart_are_found(
    name: str, part: int, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, key = shortened(name, dataset), TrainState.graph_key

    def without_a_part(self: TrainState, step: int) -> Any:
        return tuple(each for number, each in enumerate(key(self, step)) if number != part)

    monkeypatch.setattr(TrainState, "graph_key", without_a_part)
    assert differences(recipe, dataset) != []


def test_rates_in_a_new_tensor_are_found(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_step = Optimizer.begin

    def rebound(self: Optimizer, step: int) -> None:
        begin_step(self, step)
        self.now = self.now.clone()

    monkeypatch.setattr(Optimizer, "begin", rebound)
    found = differences(narrow("tiny", 30), dataset)
    assert "group1.conv1.weight differs" in found
    assert "Optimizer.now moved" in found


def test_a_plan_that_is_not_copied_in_is_found(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = TrainState.batch

    def of_a_copy(self: TrainState, plan: AugmentPlan) -> tuple[Tensor, Tensor, Tensor | None]:
        with _disable_current_modes():  # no graph holds the copy: it stays what it was at the capture
            parts = {field.name: getattr(plan, field.name) for field in fields(plan)}
            copy = AugmentPlan(**{name: part.clone() for name, part in parts.items() if part is not None})
        return batch(self, copy)

    monkeypatch.setattr(TrainState, "batch", of_a_copy)
    assert "TrainState.metrics differs" in differences(narrow("tiny", 30), dataset)


# The emulation itself.


def test_a_capture_leaves_no_effect_and_a_replay_has_it_again(log: Log) -> None:
    total, rate = torch.zeros(3), torch.ones(())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=torch.cuda.graph_pool_handle(), stream=torch.cuda.Stream()):
        total.add_(rate * 2)
    assert total.tolist() == [0, 0, 0]
    graph.replay()
    rate.fill_(5)
    graph.replay()
    assert total.tolist() == [12, 12, 12]
    assert (log.captures, log.replays) == (1, 2)


@pytest.mark.parametrize("work", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: torch.rand_like(x)])
def test_a_capture_refuses_what_cuda_refuses(work: Any) -> None:
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        work(torch.ones(3))


def test_torch_cuda_is_put_back() -> None:
    with mock.patch.object(torch.cuda, "CUDAGraph", before := torch.cuda.CUDAGraph), emulated_graphs():
        assert torch.cuda.CUDAGraph is not before
    assert torch.cuda.CUDAGraph is before
