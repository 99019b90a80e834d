"""Profiles of other engines than eager."""

from __future__ import annotations

import torch
from conftest import Cli

from fastcifar.data.store import load_dataset
from fastcifar.profiling.profiler import profile
from fastcifar.profiling.targets import subject_of
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import choose_engine

CPU = torch.device("cpu")


def test_the_compiled_engine_is_seen_by_profile() -> None:
    found = load_recipe("air94", "training.batch_size=8")
    images = load_dataset("shapes")
    plain, fast = (
        profile(subject_of(found, images, CPU, engine=choose_engine(which, CPU)), 2) for which in ("eager", "compiled")
    )
    assert (plain.engine, fast.engine) == ("eager", "compiled")
    kinds = {layer.name: layer.kind for layer in fast.layers}
    assert kinds["group2.conv1"] == "WinogradConv2d"
    assert [layer.flops for layer in fast.layers] == [layer.flops for layer in plain.layers]
    assert fast.unattributed_ms <= 0.02 * fast.kernel_ms
    busy = {layer.name: (layer.forward_ms, layer.backward_ms) for layer in fast.layers}
    assert min(*busy["group2.conv1"], *busy["group3.conv2"]) > 0


def test_one_profile_has_no_second_side(cli: Cli) -> None:
    done = cli("profile", "tiny", "--dataset", "shapes", "--engine", "b:compiled")
    assert done.code == 2 and "--engine 'b:compiled' is for 'b', which is not here" in done.err
