"""Prepared trainings: each run equals one of a fresh process, whatever was trained before it; engines that are wrong
are found and left."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import few_shapes
from helpers import Cli
from torch import Tensor

from fastcifar.data.dataset import Dataset
from fastcifar.errors import FastcifarWarning, MachineError
from fastcifar.model.checkpoint import load_checkpoint, network_of
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.training import prepared as prepared_file
from fastcifar.training.engine import EAGER, Engine, choose_engine
from fastcifar.training.launch import Steps
from fastcifar.training.prepared import PreparedTraining, PreparedTrainings
from fastcifar.training.run import train, train_prepared
from fastcifar.training.step import TrainState, train_step

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 16, 16]", "training.epochs=2", "training.batch_size=50", "network.whiten.images=100"]
# Averages, growing images, alternating flips, a held-out share: all that a run keeps besides its weights.
MIXED = [*SMALL, "ema.every=2", "ema.start=0.3", "data.resolution=[[0.0,24],[0.5,24],[0.5,32]]", "data.cutout=4"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return few_shapes(300, 60)


def weights(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state_dict.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("settings", [MIXED, [*SMALL, "data.holdout=50"]], ids=["mixed", "holdout"])
def test_each_seed_gives_what_a_fresh_training_gives(engine: str, settings: list[str], dataset: Dataset) -> None:
    recipe = load_recipe("tiny", *settings)
    trainings = PreparedTrainings(dataset, CPU)
    for seed in (1, 0, 1):
        again = train_prepared(trainings.get(recipe, choose_engine(engine, CPU), seed), seed)
        alone = train(recipe, dataset, seed=seed, device=CPU, engine=engine)
        assert equal(weights(again.network.state_dict()), weights(alone.network.state_dict())), seed
        assert again.accuracy == alone.accuracy
        losses = [[epoch.train_loss for epoch in run.result.epochs] for run in (again, alone)]
        assert losses[0] == losses[1]
    assert len(trainings.kept) == 1


def test_a_run_after_others_equals_one_of_a_process_of_its_own(cli: Cli, tmp_path: Path) -> None:
    short = [*SMALL[:1], "training.epochs=0.2", "evaluation.views=none"]
    settings = [part for setting in short for part in ("--set", setting)]
    done = cli(
        "train", "tiny", "--dataset", "shapes", "--seed", "7", *settings, "--out", str(tmp_path / "run"), "--json"
    )
    assert done.code == 0, done.err
    recipe = load_recipe("tiny", *short)
    trainings = PreparedTrainings(few_shapes(10_000, 2000), CPU)
    for seed in (3, 7):
        trained = train_prepared(trainings.get(recipe, choose_engine("auto", CPU), seed), seed)
    tree = load_checkpoint(Path(done.document["checkpoint"]))
    assert equal(weights(trained.network.state_dict()), network_of(tree, CPU).state_dict())


def test_what_diverged_leaves_nothing_behind(dataset: Dataset) -> None:
    recipe = load_recipe("tiny", *MIXED)
    trainings = PreparedTrainings(dataset, CPU)
    state = trainings.get(recipe, EAGER, 0).begin(0).state
    state.whiten()
    for _ in range(8):
        train_step(state)
    with torch.no_grad():
        for tensor in (*state.network.state_dict().values(), *state.ema.averages, state.metrics):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 3)
        for momentum in (momentum for group in state.optimizer.groups for momentum in group.momenta):
            momentum.fill_(float("nan"))
    again = train_prepared(trainings.get(recipe, EAGER, 5), 5)
    alone = train(recipe, dataset, seed=5, device=CPU, engine="eager")
    assert equal(weights(again.network.state_dict()), weights(alone.network.state_dict()))


USERS = """\
import torch
from torch import nn

class Net(nn.Module):
    built = 0
    def __init__(self, recipe, classes):
        super().__init__()
        Net.built += 1
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, classes), nn.Dropout(0.1))
    def forward(self, x):
        return self.layers(x)

def optimizer(network, section, steps):
    sgd = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    return sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1 - step / steps)
"""


def test_code_of_ones_own_is_built_anew_for_each_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_prepared.py").write_text(USERS)
    recipe = load_recipe(
        "tiny", *SMALL, "network.factory=mine_prepared:Net", "optimizer.factory=mine_prepared:optimizer"
    )
    prepared = PreparedTraining(recipe, dataset, CPU, EAGER, seed=1)
    for seed in (1, 2):
        again = weights(train_prepared(prepared, seed).network.state_dict())
        assert equal(again, weights(train(recipe, dataset, seed=seed, device=CPU, engine="eager").network.state_dict()))
    assert sys.modules["mine_prepared"].Net.built >= 4  # none was trained twice


def test_few_are_kept_and_the_latest_used(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_file, "KEPT", 2)
    recipes = [load_recipe("tiny", *SMALL, f"optimizer.filters.lr=0.{number}") for number in (1, 2, 3)]
    trainings = PreparedTrainings(dataset, CPU)
    first, second = (trainings.get(recipe, EAGER, 0) for recipe in recipes[:2])
    assert trainings.get(recipes[0], EAGER, 0) is first
    trainings.get(recipes[2], EAGER, 0)
    assert trainings.get(recipes[0], EAGER, 0) is first
    assert trainings.get(recipes[1], EAGER, 0) is not second
    assert first.data is second.data  # the images are on the device once


def test_a_preparation_leaves_the_state_as_it_was(dataset: Dataset) -> None:
    state = TrainState(load_recipe("tiny", *MIXED), dataset, CPU, 3)
    state.whiten()
    before, plan = weights(state.network.state_dict()), state.sampler.sample(0)
    generator = state.generator.get_state()
    addresses = [tensor.data_ptr() for tensor in state.network.state_dict().values()]
    random = torch.get_rng_state()
    with state.preserved():
        for steps in state.kinds().values():
            Steps(state).warm_up(steps[0])
        torch.rand(3)
        Steps(state).evaluate()
        assert not equal(before, weights(state.network.state_dict()))
    assert equal(before, weights(state.network.state_dict()))
    assert [tensor.data_ptr() for tensor in state.network.state_dict().values()] == addresses
    assert torch.equal(state.generator.get_state(), generator)
    assert torch.equal(torch.get_rng_state(), random)
    assert state.step == 0
    assert state.plan is None
    assert float(state.metrics.sum()) == 0
    assert all(float(momentum.norm()) == 0 for group in state.optimizer.groups for momentum in group.momenta)
    assert not torch.equal(plan.index, state.sampler.sample(0).index)


@dataclass(frozen=True)
class Faulty(Engine):
    """An engine that enlarges a filter after each step."""

    name = "faulty"

    def steps(self, state: TrainState) -> Steps:
        class FaultySteps(Steps):
            def step(self) -> None:
                super().step()
                with torch.no_grad():
                    self.state.network.get_parameter("group2.conv1.weight")[3].mul_(1.2)

        return FaultySteps(state)


@dataclass(frozen=True)
class Missing(Engine):
    """An engine that fails when it prepares."""

    def install(self, state: TrainState) -> None:
        raise MachineError("there is no such compiler.")


def small(name: str) -> Recipe:
    return load_recipe(name, *SMALL, *(["network.project=8"] if name.startswith("hlb") else []))


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Faulty(checked=True), r"group2\.conv1\.weight, step \d+ differs by"),
        (Missing(checked=True), "no such compiler"),
    ],
)
def test_the_eager_engine_takes_the_place_of_a_wrong_one(engine: Engine, reason: str, dataset: Dataset) -> None:
    recipe = small("tiny")
    with pytest.warns(FastcifarWarning, match=f"The eager engine runs in place of .*: .*{reason}"):
        trained = train(recipe, dataset, seed=2, device=CPU, engine=engine)
    assert trained.engine == "eager"
    alone = train(recipe, dataset, seed=2, device=CPU, engine="eager")
    assert equal(weights(trained.network.state_dict()), weights(alone.network.state_dict()))


def test_a_right_engine_is_kept(dataset: Dataset) -> None:
    recipe = small("tiny")
    engine = type(choose_engine("compiled", CPU))(checked=True)
    trained = train(recipe, dataset, seed=2, device=CPU, engine=engine)
    assert trained.engine == "compiled"
    alone = train(recipe, dataset, seed=2, device=CPU, engine="compiled")
    assert equal(weights(trained.network.state_dict()), weights(alone.network.state_dict()))
