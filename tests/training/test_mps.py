"""Apple GPUs, without one: each operator that a run launches has a kernel there, and none works in float64."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import few_shapes
from mps_kernels import KEPT, Recorder, installed_table, kernel, parse_table, record_run, with_parts
from torch import Tensor

from fastcifar.data.dataset import Dataset
from fastcifar.model.augment import AugmentPlan, augment
from fastcifar.model.network import Network, build_network
from fastcifar.model.predict import infer
from fastcifar.recipes.parse import load_recipe, recipe_names

RELEASES = json.loads(KEPT.read_text())


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return few_shapes(128, 64)


@pytest.mark.parametrize("name", recipe_names())
def test_every_operator_of_a_run_has_a_kernel(name: str, dataset: Dataset) -> None:
    recorder = record_run(name, dataset)
    table = installed_table()
    launched = with_parts(recorder.names, table)
    assert [each for each in sorted(launched) if kernel(each, table) is None] == []
    for release, kernels in RELEASES.items():
        unknown = sorted(recorder.names - kernels.keys())
        assert not unknown, f"not in {KEPT.name}, which `python tests/training/mps_kernels.py` writes: {unknown}"
        assert [each for each in sorted(recorder.names) if kernels[each] is None] == [], release
    assert not recorder.doubles, "Apple GPUs have no float64"


@pytest.mark.parametrize("name", recipe_names())
def test_float64_stays_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whitening is computed in float64, on the CPU: tensors without content, on the device `meta`, stand for those
    on a GPU, and what is copied from there to the CPU is ones."""
    monkeypatch.setattr(Tensor, "cpu", lambda each: torch.ones(each.shape, dtype=each.dtype) if each.is_meta else each)
    recipe, device = load_recipe(name), torch.device("meta")
    with Recorder("meta") as there, Recorder("cpu") as here:
        network = build_network(recipe, 10, device)
        assert isinstance(network, Network)
        images = torch.zeros(300, 3, 32, 32, dtype=torch.uint8, device=device)
        mean = std = torch.ones(3, device=device)
        index = torch.arange(200, device=device)
        network.set_whitening([augment(images, AugmentPlan(index), mean, std, torch.float32)])
        logits = infer(network, images, mean, std, recipe.evaluation)
    assert logits.averaged.is_meta and logits.averaged.shape == (300, 10)
    assert "convolution" in there.names and "_linalg_eigh" in here.names and here.doubles
    assert not there.doubles
    launched = with_parts(there.names, table := installed_table())
    assert [each for each in sorted(launched) if kernel(each, table) is None] == []


TABLE = """
- func: a(Tensor self) -> Tensor
  structured_delegate: a.out
  variants: function, method

- func: a.out(Tensor self, *, Tensor(a!) out) -> Tensor(a!)
  structured: True
  dispatch:
    # a comment
    CPU, CUDA: a_out
    MPS: a_out_mps  # and one here
  tags: pointwise

- func: b(Tensor self) -> Tensor
  variants: function

- func: c(Tensor self) -> Tensor
  dispatch:
    CPU: c_cpu
    CUDA: c_cuda
  autogen: c.out

- func: d(Tensor self) -> Tensor
  dispatch:
    SparseCPU: d_sparse
    CompositeExplicitAutograd: d
"""


def test_the_table_is_read_as_it_is_meant() -> None:
    table = parse_table(TABLE)
    assert [kernel(name, table) for name in ("a", "a.out", "b", "c", "d", "e")] == [
        "MPS", "MPS", "composite", None, "composite", None
    ]  # fmt: skip
    # Two that are known: one with a kernel, and one of CUDA's library.
    real = installed_table()
    assert kernel("max_pool2d_with_indices", real) == "MPS" and kernel("_cudnn_rnn", real) is None
