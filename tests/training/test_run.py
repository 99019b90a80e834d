"""Runs as processes: interrupted, resumed, evaluated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Call, Cli

import fastcifar
from fastcifar.data.store import load_dataset
from fastcifar.model.augment import AugmentPlan, augment
from fastcifar.model.predict import accuracy
from fastcifar.recipes.parse import default_recipe, recipe_names
from fastcifar.system.processors import usable_processors

SHORT = ["network.widths=[8, 8, 8]", "network.head.scale=0.03", "training.epochs=2", "evaluation.views=flip"]
TRAIN = ["train", "tiny", "--dataset", "shapes", "--threads", "1", *(part for s in SHORT for part in ("--set", s))]
SHORTEST = [part for each in (*SHORT, "training.epochs=0.1") for part in ("--set", each)]


def test_the_users_threads_are_kept(call: Call) -> None:
    """More than the processors that may be used, which limit the default alone."""
    before, wanted = torch.get_num_threads(), usable_processors().count + 1
    try:
        done = call("train", "tiny", "--dataset", "shapes", *SHORTEST, "--threads", str(wanted), "--json")
    finally:
        torch.set_num_threads(before)
    assert done.document["threads"] == wanted and done.document["threads_limited_by"] is None


def test_train_says_what_it_is_judged_on(call: Call) -> None:
    done = call("train", "tiny", "--dataset", "shapes", *SHORTEST, "--set", "data.holdout=300", "--out", "a", "--json")
    assert done.code == 0 and "300 held-out training images" in done.err
    assert round(done.document["accuracy"] * 300, 6).is_integer() and not done.document["published_dataset"]


@pytest.mark.parametrize(
    ("dataset", "recipes"),
    [(name, ["quick90", "quick90", "fast94"]) for name in ("cifar10", "shapes", "pets", "cifar1000")]
    + [("cifar100", ["quick100", "quick100", "fast100"])],
)
def test_the_recipe_where_none_is_named(dataset: str, recipes: list[str]) -> None:
    assert [default_recipe(device, dataset) for device in ("cpu", "mps", "cuda")] == recipes
    assert set(recipes) <= set(recipe_names())


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcifar", *TRAIN, "--out", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing broke off, judged after its last epoch; it missed its target."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, "--json", "--target", "99.9", "--eval-every", "2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 5 and "below the target" in err
    (folder / "said.json").write_text(out)
    return folder


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_broken_off_goes_on_to_the_very_result(
    how: signal.Signals, cli: Cli, whole: Path, tmp_path: Path
) -> None:
    expected = json.loads((whole / "said.json").read_text())
    folder = tmp_path / "broken"
    process = start(folder)
    wait_for((folder / "state.pt").exists)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"fastcifar train --resume {folder}" in err and "Traceback" not in err
    assert not (folder / "checkpoint.pt").exists()
    resumed = cli("train", "--resume", folder, "--json")
    assert resumed.code == 0, resumed.err
    for key in ("accuracy", "accuracy_no_tta", "recipe", "seed", "flops"):
        assert resumed.document[key] == expected[key]
    one, other = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (whole, folder))
    assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])
    assert not (folder / "state.pt").exists()


def test_train_eval_and_load_agree(cli: Cli, whole: Path) -> None:
    found = json.loads((whole / "said.json").read_text())
    expected = "recipe dataset seed engine accuracy accuracy_no_tta train_s epochs_s eval_s setup_s wall_s flops"
    expected += " tflops_per_s peak_memory epochs checkpoint command version torch device"
    assert set(expected.split()) <= set(found)
    assert [epoch["test_accuracy"] is None for epoch in found["epochs"]] == [True, False]
    assert json.loads((whole / "run.json").read_text())["accuracy"] == found["accuracy"]

    judged = cli("eval", whole, "--json", "--per-class", "--confusion", "--threads", "1").document
    assert judged["accuracy"] == found["accuracy"]
    assert sum(map(sum, judged["confusion"])) == judged["images"] == 2000
    assert (
        cli("eval", whole, "--tta", "none", "--json", "--threads", "1").document["accuracy"] == found["accuracy_no_tta"]
    )

    network = fastcifar.load(whole)
    checkpoint = torch.load(whole / "checkpoint.pt", weights_only=True)
    assert checkpoint["metrics"]["accuracy"] == found["accuracy"]
    test = load_dataset("shapes").test
    mean, std = (torch.tensor(checkpoint["dataset"][key]) for key in ("mean", "std"))
    logits = network(augment(test.images, AugmentPlan(torch.arange(2000)), mean, std, torch.float32))
    assert accuracy(logits, test.labels) == pytest.approx(found["accuracy_no_tta"], abs=0.002)
