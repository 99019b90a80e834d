"""The first images of a run, shown without training: those that the run itself sees."""

from __future__ import annotations

import pytest
import torch
from helpers import few_shapes

from fastcifar.recipes.parse import load_recipe
from fastcifar.training.preview import first_images
from fastcifar.training.step import TrainState

AUGMENTATIONS = {
    "alternating": ["data.flip=alternating", "data.translate=3"],
    "random": ["data.flip=random", "data.cutout=8", "data.brightness=0.1", "data.contrast=0.2"],
    "small": ["data.resolution=[[0, 20], [1, 32]]"],
    "holdout": ["data.holdout=100"],
}


@pytest.mark.parametrize("settings", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_they_are_those_of_the_run(settings: list[str]) -> None:
    recipe = load_recipe("tiny", "network.widths=[4, 4, 4]", "training.batch_size=50", *settings)
    state = TrainState(recipe, few_shapes(300, 10), torch.device("cpu"), 7)
    state.whiten()
    plan = state.batch_plan()
    expected, std, mean = state.augment(plan)[:6], state.std[:, None, None], state.mean[:, None, None]
    stored, shown = first_images(recipe, state.dataset, 7, 6)
    assert torch.equal(stored, state.images[plan.index[:6]])
    pixels = (expected * std + mean) * 255
    assert shown.shape == expected.shape
    assert (shown.float() - pixels.clamp(0, 255)).abs().max() <= 0.5 + 1e-3
    assert not torch.equal(shown, first_images(recipe, state.dataset, 8, 6)[1])
