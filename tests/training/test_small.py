"""Small runs: one step, few images, small batches, very many epochs."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import pytest
import torch
from helpers import Call, few_shapes

from fastcifar.data.dataset import Dataset, Split, subset
from fastcifar.data.store import load_dataset
from fastcifar.errors import UsageError
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.launch import Steps
from fastcifar.training.run import train
from fastcifar.training.step import TrainState
from fastcifar.training.trainer import TrainLoop, fit

NARROW = ("network.widths=[8, 8, 8]", "network.norm.ghost=0", "evaluation.views=none")
FORTY = ("--dataset", "shapes", "--threads", "1", "--set", "data.holdout=9960", "--set", NARROW[0])
CPU = torch.device("cpu")


def one_a_class() -> Dataset:
    """One training image of each class, and one test image."""
    whole = load_dataset("shapes")
    rows = torch.stack([(whole.train.labels == label).nonzero()[0, 0] for label in range(10)])
    return dataclasses.replace(subset(whole, rows), test=Split(whole.test.images[:1], whole.test.labels[:1]))


@pytest.mark.parametrize("name", ["tiny", "quick90", "fast94", "air94", "hive94", "hlb", "hlb-first", "hlb-3x3"])
@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_a_run_of_one_step(name: str, engine: str) -> None:
    recipe = load_recipe(name, *NARROW, "training.epochs=0.001", "ema.start=0.5")
    trained = train(recipe, few_shapes(40, 20), threads=1, engine=engine)
    assert len(trained.result.epochs) == 1 and 0 <= trained.accuracy <= 1


@pytest.mark.parametrize("settings", [(), ("ema.start=0.5",), ("training.batch_size=1",), ("network.whiten.images=1",)])
def test_one_image_a_class(settings: tuple[str, ...]) -> None:
    recipe = load_recipe("tiny", *NARROW, "training.epochs=2", *settings)
    trained = train(recipe, one_a_class(), threads=1)
    assert len(trained.result.epochs) == 2 and trained.accuracy in (0, 1)


def test_a_single_image() -> None:
    dataset = subset(one_a_class(), torch.tensor([3]))
    assert len(train(load_recipe("tiny", *NARROW, "training.epochs=3"), dataset, threads=1).result.epochs) == 3


def test_steps_in_which_nothing_is_trained() -> None:
    frozen = [f"optimizer.{name}.schedule=[[0, 1], [0.5, 0]]" for name in ("filters", "head", "biases", "whiten_bias")]
    recipe = load_recipe("tiny", *NARROW, "training.epochs=4", "training.batch_size=20", *frozen)
    half, whole = (TrainState(recipe, few_shapes(40, 20), CPU, 0) for _ in range(2))
    half.total_steps //= 2
    fit(half)
    fit(whole)
    assert all(torch.equal(a, b) for a, b in zip(half.network.parameters(), whole.network.parameters(), strict=True))


def test_images_that_batch_normalisation_cannot_normalise() -> None:
    recipe = load_recipe("tiny", *NARROW, "training.batch_size=1", "data.resolution=[[0, 16]]")
    with pytest.raises(UsageError, match="two images a step"):
        train(recipe, few_shapes(40, 20), threads=1)
    with pytest.raises(UsageError, match="nothing is left of images of 16 pixels after 4 groups"):
        load_recipe("tiny", "data.resolution=[[0, 16]]", "network.widths=[8,8,8,8]", "network.convs=[1,1,1,1]")


@pytest.mark.slow
@pytest.mark.parametrize("epochs", ["1", "0.001"])
def test_every_command_takes_a_run_of_one_step(call: Call, tmp_path: Path, epochs: str) -> None:
    length = ("--set", f"training.epochs={epochs}", "--json")
    trained = call("train", "hlb", *FORTY, *length, "--set", "network.norm.ghost=0")
    assert trained.code == 0 and len(trained.document["epochs"]) == 1, trained.err
    for whole in ((), ("--whole-run",)):
        profiled = call("profile", "tiny", *FORTY, *length, "--steps", "2", *whole)
        assert profiled.code == 0 and profiled.document["batch"] == 40, profiled.err
    benched = call("bench", "tiny", *FORTY, *length, "--runs", "2", "--out", "bench.jsonl")
    assert benched.code == 0 and len(benched.document["runs"]) == 2, benched.err
    Path("candidates.toml").write_text("[slow]\noptimizer.filters.lr = 0.05\n")
    searched = call("search", "tiny", "candidates.toml", *FORTY, *length, "--minutes", "0.05", "--out", "search.jsonl")
    assert searched.code == 0 and searched.document["runs"], searched.err


def test_very_many_epochs_cost_no_more_each_than_few() -> None:
    """The loop without its steps: what it keeps and sums up an epoch must not grow with the epochs."""
    recipe = load_recipe("tiny", *NARROW, "training.epochs=5000")

    class Counted(Steps):
        def step(self) -> None:
            self.state.step += 1
            self.state.metrics += torch.tensor([1.0, 1.0, 40.0])

    loop = TrainLoop(Counted(TrainState(recipe, few_shapes(40, 20), CPU, 0)), lambda status: None)
    longest, seconds = 0, []
    for _ in range(10):
        began = time.process_time()
        for _ in range(500):
            loop.run_epoch()
            longest = max(longest, len(loop.snapshots))
        seconds.append(time.process_time() - began)
    assert len(loop.status.epochs) == 5000 and longest <= 1
    assert min(seconds[5:]) < 2 * min(seconds[:5])
    assert loop.status.trained_s == pytest.approx(sum(epoch.device_s for epoch in loop.status.epochs))


def test_saving_takes_no_more_than_a_fifth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("tiny", *NARROW, "training.epochs=30")
    saves: list[float] = []

    def slow(tree: object) -> None:
        time.sleep(0.5)
        saves.append(time.perf_counter())

    began = time.perf_counter()
    fit(TrainState(recipe, few_shapes(40, 20), CPU, 0), save=slow)
    gaps = [later - 0.5 - earlier for earlier, later in itertools.pairwise(saves)]
    assert saves and all(gap > 4 * 0.5 for gap in gaps)
    assert len(saves) < 2 + (time.perf_counter() - began) / 2.5
