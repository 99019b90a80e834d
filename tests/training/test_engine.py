"""Engines: the same training however its steps are executed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import few_shapes

from fastcifar.data.dataset import Dataset
from fastcifar.errors import MachineError, UsageError
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import OwnKernels, bind_engines, choose_engine
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.step import TrainState

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 16, 24]", "training.epochs=2", "training.batch_size=100", "network.whiten.images=200"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return few_shapes(500, 100)


@pytest.mark.parametrize("name", ["tiny", "hlb"])
def test_engines_take_the_same_steps(name: str, dataset: Dataset) -> None:
    found = load_recipe(name, *SMALL, *(["network.project=8"] if name == "hlb" else []))
    trained = []
    for which in ("eager", "compiled"):
        training = TrainState(found, dataset, CPU, 0)
        training.whiten()
        make_step = choose_engine(which, CPU).prepare(training).step
        for _ in range(2):  # later the maps themselves are chaotic, and tell any rounding from any other
            make_step()
        trained.append(training)
    for (key, a), b in zip(
        trained[0].network.state_dict().items(), trained[1].network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3, msg=key)
    torch.testing.assert_close(trained[0].metrics, trained[1].metrics, rtol=1e-3, atol=1e-2)


def test_names_are_bound_to_recipes() -> None:
    assert bind_engines([], ["a", "b"], "auto") == {"a": "auto", "b": "auto"}
    assert bind_engines(["b:graph", "eager"], ["a", "b"], "auto") == {"a": "eager", "b": "graph"}
    with pytest.raises(UsageError, match="for 'c', which is not here"):
        bind_engines(["c:eager"], ["a", "b"], "auto")


def test_what_cannot_run_here_is_said() -> None:
    with pytest.raises(UsageError, match="no engine 'grap'.*graph"):
        choose_engine("grap", CPU)
    with pytest.raises(MachineError, match=r"graph engine cannot run here: .*CUDA device.*--engine eager"):
        choose_engine("graph", CPU)
    assert choose_engine("auto", CPU) == OwnKernels()


def test_a_run_goes_on_with_the_engine_it_began_with(dataset: Dataset, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state(load_recipe("tiny", *SMALL), dataset, 0, CPU, "eager", {})
    assert folder.load_state()["engine"] == "eager"
