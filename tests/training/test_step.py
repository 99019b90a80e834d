"""The state of a training and its step: images held out, CUDA against CPU."""

from __future__ import annotations

import pytest
import torch
from conftest import few_shapes

from fastcifar.data.dataset import Dataset, holdout_split
from fastcifar.errors import UsageError
from fastcifar.model.augment import AugmentPlan
from fastcifar.recipes.parse import load_recipe
from fastcifar.system.device import prepare_device
from fastcifar.training import trainer
from fastcifar.training.flops import count_flops
from fastcifar.training.step import TrainState, train_step

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 8, 8]", "training.epochs=2.5", "training.batch_size=100", "network.whiten.images=200"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The first thousand embedded images."""
    return few_shapes(1000, 300)


def test_judged_on_images_held_out(dataset: Dataset) -> None:
    held = holdout_split(dataset, 100)
    rows = [part.images.flatten(1).tolist() for part in (held.train, held.test)]
    assert [len(part) for part in rows] == [len(dataset.train.images) - 100, 100]
    assert sorted(rows[0] + rows[1]) == sorted(dataset.train.images.flatten(1).tolist())
    assert torch.equal(held.test.images, holdout_split(dataset, 100).test.images) and not held.published
    assert holdout_split(dataset, 0) is dataset
    with pytest.raises(UsageError, match="leaves none"):
        holdout_split(dataset, len(dataset.train.images))


def test_the_core_holds_images_out(dataset: Dataset) -> None:
    recipe = load_recipe("tiny", *SMALL, "data.holdout=500")
    state = TrainState(recipe, dataset, CPU, 0)
    assert (state.total_steps, len(state.dataset.test.images)) == (13, 500)  # 2.5 epochs of 5 steps
    assert count_flops(recipe, 10, 1000, 300) == count_flops(load_recipe(recipe, "data.holdout=0"), 10, 500, 500)


@pytest.mark.gpu
def test_steps_on_cuda_follow_those_on_the_cpu(dataset: Dataset) -> None:
    prepare_device(torch.device("cuda", 0), None)  # without TF32
    found = load_recipe("tiny", *SMALL, "training.precision=float32", "data.flip=none", "data.translate=0")
    order = torch.randperm(1000)
    weights = []
    for device in (CPU, torch.device("cuda")):
        training = TrainState(found, dataset, device, 0)
        plan = AugmentPlan(order.to(device))
        sample = training.augment(plan.batch(0, 200))
        training.network.set_whitening([sample])
        training.sampler.sample = lambda epoch, plan=plan: plan  # type: ignore[method-assign, misc]
        for _ in range(3):
            train_step(training)
        weights.append(training.network.state_dict())
    here, there = weights
    for key in here:
        torch.testing.assert_close(here[key], there[key].cpu(), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["air94", "hive94", "hlb", "hlb-first"])
def test_every_recipe_trains_on_cuda(name: str, dataset: Dataset) -> None:
    found = load_recipe(name, "training.epochs=3", "training.batch_size=128", "network.whiten.images=500")
    training = TrainState(found, dataset, torch.device("cuda"), 0)
    result = trainer.fit(training)
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert result.train_s > 0
