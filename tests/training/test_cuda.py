"""What only a CUDA device shows: engines agree, no wait within an epoch, no penalty of the first run, little memory."""

from __future__ import annotations

import pytest
import torch
from helpers import few_shapes

from fastcifar.data.store import load_dataset
from fastcifar.profiling.profiler import profile
from fastcifar.profiling.targets import recipe_target
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import choose_engine
from fastcifar.training.prepared import PreparedTraining
from fastcifar.training.run import train, train_prepared
from fastcifar.training.self_check import check_engine

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
CLOSE = 0.05  # relative: how far the first run's time may lie from the second's and third's


@pytest.mark.parametrize("engine", ["compiled", "graph"])
@pytest.mark.parametrize("name", ["air94", "hive94", "fast94", "hlb", "hlb-first"])
def test_engines_agree_in_steps_of_all_kinds(name: str, engine: str) -> None:
    recipe = load_recipe(name, "training.batch_size=128", "training.epochs=4", "network.whiten.images=500")
    found = check_engine(recipe, few_shapes(2000, 200), CUDA, choose_engine(engine, CUDA))
    assert found.agrees, found


@pytest.mark.parametrize("engine", ["eager", "compiled", "graph"])
def test_within_an_epoch_the_host_never_waits(engine: str) -> None:
    recipe = load_recipe("fast94", "training.batch_size=500", "training.epochs=2")
    state = PreparedTraining(recipe, few_shapes(5000, 500), CUDA, choose_engine(engine, CUDA), seed=0)
    steps = state.begin(0)
    steps.state.whiten()
    steps.state.network.train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(steps.state.steps_per_epoch):
            steps.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["air94", "fast94"])
def test_the_first_run_takes_as_long_as_the_next(name: str) -> None:
    recipe = load_recipe(name, "training.epochs=3")
    prepared = PreparedTraining(recipe, load_dataset("shapes"), CUDA, choose_engine("auto", CUDA), seed=0)
    first, *others = (train_prepared(prepared, seed).result.train_s for seed in range(3))
    assert prepared.engine.name == "graph"
    assert all(first <= (1 + CLOSE) * other for other in others)


def test_the_peak_of_memory_is_bounded() -> None:
    trained = train("air94", "shapes", device=CUDA, engine="graph")
    assert trained.result.peak_memory < 4e9


@pytest.mark.parametrize("engine", ["eager", "compiled", "graph"])
@pytest.mark.parametrize("name", ["fast94", "hlb"])
def test_nearly_all_kernels_have_an_owner(name: str, engine: str) -> None:
    target = recipe_target(load_recipe(name), load_dataset("shapes"), CUDA, choose_engine(engine, CUDA))
    found = profile(target, 3).document()
    assert found["unattributed_ms"] < 0.02 * found["kernel_ms"]
    assert found["kernel_ms"] <= 1.02 * found["step_ms"]
