"""The loop: results, resuming, snapshots, growing images."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import few_shapes

from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.store import load_dataset
from fastcifar.errors import DataError, MachineError
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.training import trainer
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.step import TrainState

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 8, 8]", "training.epochs=2.5", "training.batch_size=100", "network.whiten.images=200"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The first thousand embedded images."""
    return few_shapes(1000, 300)


def train(found: Recipe, dataset: Dataset, seed: int = 0, **options: object) -> tuple[TrainState, trainer.Result]:
    training = TrainState(found, dataset, CPU, seed)
    return training, trainer.fit(training, **options)  # type: ignore[arg-type]


def same(one: TrainState, other: TrainState) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_run_counts_and_times_what_it_says(dataset: Dataset) -> None:
    seen: list[tuple[str, int]] = []
    found = load_recipe("tiny", *SMALL)
    training, result = train(
        found, dataset, eval_every=1, on_change=lambda status: seen.append((status.stage, status.steps_done))
    )
    assert training.total_steps == 25 and training.step == 25
    assert [epoch.epoch for epoch in result.epochs] == [1, 2, 3]
    assert all(epoch.test_accuracy is not None and math.isfinite(epoch.train_loss) for epoch in result.epochs)
    assert result.epochs_s == pytest.approx(sum(epoch.device_s for epoch in result.epochs))
    assert result.epochs_s + result.eval_s <= result.train_s <= result.wall_s
    assert seen[-1] == ("done", 25) and ("evaluating", 25) in seen
    assert [done for _, done in seen] == sorted(done for _, done in seen)
    assert 0 < result.peak_memory < 8 * 2**30


def test_the_losses_between_snapshots_make_up_those_of_the_epochs(dataset: Dataset) -> None:
    kept: list[trainer.Status] = []
    _, result = train(load_recipe("tiny", *SMALL), dataset, on_change=kept.append)
    losses = kept[-1].losses
    assert len(losses) == 25, "an epoch has ten steps: a snapshot each"
    for epoch, part in zip(result.epochs, (losses[:10], losses[10:20], losses[20:]), strict=True):
        assert sum(part) / len(part) == pytest.approx(epoch.train_loss, rel=1e-4)


def test_the_logits_kept_are_those_that_the_accuracy_is_of(dataset: Dataset) -> None:
    found = load_recipe("tiny", *SMALL)
    training, result = train(found, dataset)
    expected = training.evaluate(found.evaluation)
    assert torch.equal(result.logits, expected.averaged) and not torch.equal(result.logits, expected.plain)
    assert float((result.logits.argmax(1) == dataset.test.labels).double().mean()) == pytest.approx(result.accuracy)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(dataset: Dataset) -> None:
    found = load_recipe("hive94", *SMALL, "data.cutout=8", "ema.start=0.5")
    (one, first), (two, second), (other, _) = (train(found, dataset, seed) for seed in (5, 5, 6))
    assert same(one, two) and first.accuracy == second.accuracy
    assert not same(one, other)


@pytest.mark.parametrize("name", ["hlb", "air94"])
def test_a_resumed_run_ends_as_one_never_interrupted(name: str, dataset: Dataset) -> None:
    found = load_recipe(name, *[*SMALL, "ema.start=0.3", "optimizer.whiten_bias.schedule=[[0, 1], [0.5, 0]]"])
    states: list[dict[str, object]] = []
    straight, result = train(found, dataset, save=lambda state: states.append(_copied(state)))
    assert len(states) == 2
    for state in states:
        resumed, again = train(found, dataset, saved=state)
        assert same(straight, resumed)
        assert (again.accuracy, again.accuracy_no_tta) == (result.accuracy, result.accuracy_no_tta)
        assert [e.train_loss for e in again.epochs] == [e.train_loss for e in result.epochs]


def _copied(state: dict[str, object]) -> dict[str, object]:
    """As it would come back from disk."""
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


def test_a_loss_that_explodes_ends_the_run(dataset: Dataset) -> None:
    found = load_recipe("tiny", *SMALL, "optimizer.head.lr=1e30", "optimizer.filters.lr=1e30")
    with pytest.raises(MachineError, match="loss is not finite.*lower"):
        train(found, dataset)


def test_evaluating_in_between_changes_nothing(dataset: Dataset) -> None:
    found = load_recipe("tiny", *SMALL)
    assert same(train(found, dataset)[0], train(found, dataset, eval_every=1)[0])


@pytest.mark.slow
def test_a_blocked_terminal_does_not_stall_a_training(tmp_path: Path) -> None:
    """A pipe that nobody reads has room for the first lines; then whoever writes to it hangs, but the training."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b" " * (4096 - 250))
    command = [sys.executable, "-m", "fastcifar", "train", "tiny", "--dataset", "shapes", "--out", "run"]
    settings = [f"--set={setting}" for setting in (*SMALL, "training.epochs=6")]
    process = subprocess.Popen([*command, *settings], cwd=tmp_path, stdout=write, stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        deadline, steps = time.monotonic() + 240, 0
        while steps < 500 and time.monotonic() < deadline:
            time.sleep(0.2)
            with contextlib.suppress(DataError):  # not there yet
                steps = RunFolder(tmp_path / "run").load_state()["loop"]["training"]["step"]
        left = len(select.select([read], [], [], 0)[0]) and 4096 - len(os.read(read, 4096))
        assert steps == 500 and left < 100, "the fifth of six epochs ended while the pipe had no room for a line"
    finally:
        process.kill()
        process.wait()
        os.close(read)


def test_images_grow_within_a_run(dataset: Dataset) -> None:
    found = load_recipe("tiny", *[*SMALL, "training.epochs=2", "data.resolution=[[0, 16], [0.5, 16], [0.5, 32]]"])
    training = TrainState(found, dataset, CPU, 0)
    seen: list[int] = []
    training.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    trainer.fit(training)
    half = training.total_steps // 2
    assert seen[: 2 * half] == [16] * half + [32] * half and set(seen[2 * half :]) == {32}  # views are of full size


@pytest.mark.slow
def test_the_real_images_can_be_learned(cifar10_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network on 10,000 real images: far above the 10 % of chance within seconds."""
    monkeypatch.setenv("FASTCIFAR_HOME", str(cifar10_home))
    whole = load_dataset("cifar10")
    part = Split(whole.train.images[:10_000], whole.train.labels[:10_000])
    test = Split(whole.test.images[:2000], whole.test.labels[:2000])
    found = load_recipe("tiny", "training.epochs=3", "evaluation.views=flip")
    _, result = train(found, dataclasses.replace(whole, train=part, test=test))
    assert result.accuracy > 0.55
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
