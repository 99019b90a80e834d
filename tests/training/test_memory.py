"""Memory of a training: what it takes, and what is said where it does not suffice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastcifar.data.store import load_dataset
from fastcifar.errors import MachineError
from fastcifar.recipes.parse import load_recipe
from fastcifar.system.device import explain_oom
from fastcifar.training.step import TrainState

CPU = torch.device("cpu")


def test_memory_of_a_training_is_bounded(tmp_path: Path) -> None:
    """What `air94` keeps for its backward pass fits a GPU of 4 GB, and a step on a CPU takes little beyond it."""
    found = load_recipe("air94", "training.batch_size=200", "network.whiten.images=200")
    training = TrainState(found, load_dataset("shapes"), CPU, 0)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = training.network(training.batch(training.batch_plan())[0])
    assert logits.shape == (200, 10)
    in_half = sum(kept.values()) * (2000 / 200) / 2
    assert 0.5 * 2**30 < in_half < 3 * 2**30

    code = (
        "import resource, torch; from fastcifar.training.engine import OwnKernels; "
        "from fastcifar import load_dataset, load_recipe; from fastcifar.system.device import prepare_device; "
        "from fastcifar.training.step import TrainState; prepare_device(torch.device('cpu'), None); "
        "recipe = load_recipe('air94', 'training.batch_size=200', 'network.whiten.images=200'); "
        "step = OwnKernels().prepare(TrainState(recipe, load_dataset('shapes'), torch.device('cpu'), 0)).step; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; [step() for _ in range(4)]; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 3 * sum(kept.values())


def test_running_out_of_memory_says_what_to_try() -> None:
    with pytest.raises(MachineError, match=r"Out of memory.*batch_size=500"), explain_oom(CPU, 1000):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="tensor"), explain_oom(CPU, 1000):
        torch.zeros(2) @ torch.zeros(3)
