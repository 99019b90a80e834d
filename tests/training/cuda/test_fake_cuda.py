"""Steps over fake CUDA tensors: what a CUDA graph cannot hold is in none of them, and the types are those wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import Unavailable, hooked_environment
from helpers import golden

from fastcifar.recipes.parse import recipe_names

SCRIPT = Path(__file__).with_name("lint_steps.py")
Document = dict[str, Any]
ENGINES = ("eager", "compiled")
# Ghost batches lie apart from each other: the gradient of their images comes back channel by channel.
KNOWN = {"hlb-first": ["not in channels-last memory: convolution_backward"]}


@pytest.fixture(scope="session")
def linted(compiled: Path) -> Document:
    """What `lint_steps.py` prints; all steps run once a session, in a process of their own."""
    try:
        environment = hooked_environment(compiled)
    except Unavailable as reason:
        pytest.skip(str(reason))
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("recipe", recipe_names())
def test_a_graph_can_hold_every_kind_of_step(linted: Document, recipe: str, engine: str) -> None:
    kinds = linted[engine][recipe]["kinds"]
    assert kinds == {kind: KNOWN.get(recipe, []) for kind in kinds}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("recipe", recipe_names())
def test_a_graph_can_hold_the_evaluation(linted: Document, recipe: str, engine: str) -> None:
    assert linted[engine][recipe]["evaluation"] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_can_hold_other_kernels_and_pooling(linted: Document, engine: str) -> None:
    found, plain = linted["variants"][engine], linted[engine]["tiny"]
    assert found["kinds"] == {kind: [] for kind in plain["kinds"]} and found["evaluation"] == []
    types, others = found["types"]["forward"], plain["types"]["forward"]
    assert types.keys() - others.keys() == ({"add", "mean"} if engine == "eager" else set())
    assert types["convolution"] == others["convolution"]


def test_all_kinds_of_step_are_looked_at(linted: Document) -> None:
    kinds = {recipe: list(found["kinds"]) for recipe, found in linted["compiled"].items()}
    assert len(kinds["fast94"]) == 8  # three sizes, the bias trained or frozen at the first, renormalised or not
    assert "32 px, whiten_bias frozen, renormalised" in kinds["fast94"]
    assert "32 px, averaged" in kinds["hlb"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="built for the CPU, PyTorch takes SiLU's gradient apart")
@pytest.mark.parametrize("recipe", recipe_names())
def test_the_types_of_operators_are_those_wanted(linted: Document, recipe: str, engine: str) -> None:
    golden(f"types-{engine}-{recipe}.json", json.dumps(linted[engine][recipe]["types"], indent=1))


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("item", "waits for the device: _local_scalar_dense"),
        ("boolean index", "waits for the device: index"),
        ("boolean index written", "waits for the device: index_put_"),
        ("random numbers", "draws random numbers: rand"),
        ("copy from the host", "between host and device: _to_copy"),
        ("scalar of the host", "between host and device: mul"),
        ("gradients kept", "gradient kept: head.weight"),
        ("contiguous filters", "not in channels-last memory: group2.conv1.weight"),
    ],
)
def test_faults_are_found(linted: Document, fault: str, finding: str) -> None:
    assert finding in linted["planted"][fault]["findings"]


def test_float32_where_half_is_wanted_is_found(linted: Document) -> None:
    found = linted["planted"]["float32"]
    assert found["findings"] == []
    assert linted["eager"]["tiny"]["types"]["forward"]["amax"] == ["float16 -> float16"]
    assert found["types"]["forward"]["amax"] == ["float32 -> float32"]
