"""The public Python API, user-supplied code in a recipe, and the examples that README links to, run as they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Call
from torch.nn import functional as F

import fastcifar
from fastcifar.errors import UsageError
from fastcifar.training.step import summed_loss

EXAMPLES = Path(__file__).parent / "examples"
QUICK = ("network.widths=[8, 8, 8]", "training.epochs=0.2", "evaluation.views=none")


def run_example(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An example that README links to, run in an empty folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    program = sys.executable if name.endswith(".py") else "bash"
    command = [program, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_sweep(tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    done = run_example("sweep.sh", tmp_path)
    rows = [[float(cell) for cell in line.split("\t")] for line in done.stdout.splitlines()]
    assert {row[0] for row in rows} == {0.03, 0.1, 0.3}, done.stderr
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)


@pytest.mark.slow
def test_nightly_guard(tmp_path: Path) -> None:
    reached = run_example("nightly.sh", tmp_path, "tiny", "2")
    assert reached.stdout.strip() == "as good as ever", reached.stderr
    missed = run_example("nightly.sh", tmp_path, "tiny", "99.9")  # resumes the same file
    assert missed.stdout.startswith("accuracy fell") and "train time" in missed.stdout
    broken = run_example("nightly.sh", tmp_path, "tyni")
    assert broken.stdout.strip() == "could not be measured"


@pytest.mark.slow
def test_bench_in_two_processes(tmp_path: Path) -> None:
    done = run_example("torchrun.sh", tmp_path)
    assert "| tiny | 4 |" in done.stdout and "| narrow | 4 |" in done.stdout, done.stderr


@pytest.mark.slow
def test_experiment_in_python(tmp_path: Path) -> None:
    assert len((EXAMPLES / "hardest.py").read_text(encoding="utf-8").strip().splitlines()) < 25
    done = run_example("hardest.py", tmp_path)
    found = re.findall(r"(\w+) 60 %: ([\d.]+) %", done.stdout)
    assert [name for name, _ in found] == ["hardest", "random"], done.stderr
    assert all(float(accuracy) > 15 for _, accuracy in found)


def test_every_image_can_be_looked_at() -> None:
    dataset = fastcifar.load_dataset("shapes")
    recipe = fastcifar.load_recipe(fastcifar.load_recipe("tiny"), *QUICK)
    trained = fastcifar.train(recipe, dataset, seed=2, threads=1)
    logits = trained.logits(dataset.test.images)
    assert logits.shape == (2000, 10) and logits.dtype == torch.float32
    assert float((logits.argmax(1) == dataset.test.labels).float().mean()) == pytest.approx(trained.accuracy)
    losses = trained.losses(dataset.test)
    plain = trained.logits(dataset.test.images, tta=False)
    assert float(losses.mean()) == pytest.approx(float(F.cross_entropy(plain, dataset.test.labels)))


def test_weights_count_and_zero_leaves_an_image_out() -> None:
    logits, labels = torch.randn(6, 10, requires_grad=True), torch.arange(6)
    weights = torch.tensor([0.0, 1, 2, 1, 1, 1])
    singles = [summed_loss(logits[i : i + 1], labels[i : i + 1], 0.2) for i in range(6)]
    expected = sum(weight * single for weight, single in zip(weights, singles, strict=True))
    loss = summed_loss(logits, labels, 0.2, weights)
    assert float(loss.detach()) == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-5)
    loss.backward()
    assert logits.grad is not None and not logits.grad[0].any() and logits.grad[1].any()
    logits = logits.detach()
    assert float(summed_loss(logits, labels, 0.2, torch.ones(6))) == pytest.approx(
        float(summed_loss(logits, labels, 0.2))
    )
    dataset = fastcifar.load_dataset("shapes")
    with pytest.raises(UsageError, match="3 weights for 10000"):
        fastcifar.train(fastcifar.load_recipe("tiny", *QUICK), dataset, weights=torch.ones(3), threads=1)


def test_weights_of_one_train_as_without() -> None:
    dataset = fastcifar.load_dataset("shapes")
    recipe = fastcifar.load_recipe("tiny", *QUICK, "training.epochs=0.1")
    plain = fastcifar.train(recipe, dataset, threads=1)
    weighted = fastcifar.train(recipe, dataset, threads=1, weights=torch.ones(10_000))
    for a, b in zip(plain.network.parameters(), weighted.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_subset_is_what_was_kept() -> None:
    dataset = fastcifar.load_dataset("shapes")
    part = fastcifar.subset(dataset, dataset.train.labels < 3)
    assert set(part.train.labels.tolist()) == {0, 1, 2} and len(part.test.images) == 2000
    assert part.mean == dataset.mean and not part.published and part.digest != dataset.digest
    with pytest.raises(UsageError, match="no images"):
        fastcifar.subset(dataset, torch.zeros(10_000, dtype=torch.bool))


MINE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, recipe, classes):
        super().__init__(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, recipe.widths[0]), nn.ReLU(),
                         nn.Linear(recipe.widths[0], classes))

def optimizer(network, section, steps):
    made = torch.optim.Adam(network.parameters(), lr=section.filters.lr)
    return made, torch.optim.lr_scheduler.LambdaLR(made, lambda step: max(0, 1 - step / steps))

number = 3
def nothing(*arguments):
    return None
"""
TOML = 'extends = "tiny"\ntraining.epochs = 0.3\nnetwork.factory = "mine:Net"\noptimizer.factory = "mine:optimizer"\n'


def test_a_network_and_an_optimizer_of_ones_own(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine.toml").write_text(TOML + "optimizer.filters.lr = 0.001\n")
    arguments = ["--dataset", "shapes", "--threads", "1", "--json"]
    first, second = (call("train", "mine.toml", *arguments, "--out", out) for out in ("a", "b"))
    assert first.code == 0, first.err
    losses = [done.document["epochs"][-1]["train_loss"] for done in (first, second)]
    assert losses[0] == losses[1]  # the seed holds for it, too
    still = call("train", "mine.toml", *arguments, "--set", "optimizer.filters.lr=0", "--out", "c").document
    assert still["epochs"][-1]["train_loss"] != losses[0], "its optimizer is the one that learns"
    assert first.document["flops"] > 0
    refused = call("eval", "a", "--dataset", "shapes")
    assert refused.code == 3 and "'mine:Net'" in refused.err and "never run" in refused.err
    profiled = call("profile", "mine.toml", *arguments, "--batch", "8", "--steps", "2")
    assert [layer["kind"] for layer in profiled.document["layers"]][-3:] == ["ReLU", "Linear", "loss"]
