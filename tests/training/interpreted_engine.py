"""Whole steps with our Triton kernels, interpreted on the CPU; run by `test_triton_engine.py`, in its environment."""

from __future__ import annotations

import pytest
import torch
from helpers import few_shapes

from fastcifar.data.dataset import Dataset
from fastcifar.model.kernels.triton_operators import INTERPRETED
from fastcifar.profiling.profiler import profile
from fastcifar.profiling.targets import step_target
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import OwnKernels
from fastcifar.training.self_check import check_engine
from fastcifar.training.step import TrainState

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 8, 8]", "training.epochs=2", "training.batch_size=4", "network.whiten.images=20"]
PLAIN = "evaluation.views=none"  # an interpreted image takes seconds
GROWING = "data.resolution=[[0, 24], [0.5, 24], [0.5, 32]]"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    assert INTERPRETED
    return few_shapes(16, 4)


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("tiny", []),
        ("tiny", ["network.convs=[3, 2, 2]", "network.kernels=[[3, 1, 1], [1, 3], [2, 3]]", "network.pool=max_mean"]),
        ("hive94", [GROWING]),
        ("hlb", ["network.project=8", "ema.every=1"]),
    ],
)
def test_all_kinds_of_step_agree_with_the_eager_engine(name: str, further: list[str], dataset: Dataset) -> None:
    found = check_engine(load_recipe(name, *SMALL, PLAIN, *further), dataset, CPU, OwnKernels())
    assert found.agrees, found
    assert found.difference > 0


def test_a_profile_knows_whose_each_kernel_is(dataset: Dataset) -> None:
    state = TrainState(load_recipe("tiny", *SMALL, PLAIN), dataset, CPU, 0)
    steps = OwnKernels().prepare(state)
    state.whiten()
    state.network.train()
    items = profile(step_target(steps, 1, OwnKernels()), 1).document()["items"]
    named = [(item["phase"], item["kernel"].rpartition("triton_"), item["layer"]) for item in items]
    ours = {(phase, kernel, layer) for phase, (_, prefix, kernel), layer in named if prefix}
    assert {
        ("data", "augment", None),
        ("forward", "whiten", "whiten"),
        ("forward", "pool_statistics", "group1.norm1"),
        ("forward", "normalize", "group3.norm2"),
        ("forward", "global_max", "pool"),
    } <= ours
    backward = {layer for phase, _, layer in ours if phase == "backward"}
    assert {"whiten", "group1.norm1", "group2.norm2", "pool", "loss"} <= backward, ours
    assert {phase for phase, op, _ in ours if op.startswith(("muon", "gram", "sgd"))} == {"optimizer"}
