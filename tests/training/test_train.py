"""Training: the whole way from a dataset to an accuracy, interruptions included."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Call, Cli, few_shapes

import fastcifar
from fastcifar.data.dataset import Dataset, Split, holdout_split
from fastcifar.data.store import load_dataset
from fastcifar.errors import MachineError, UsageError
from fastcifar.model.augment import AugmentPlan, augment
from fastcifar.model.predict import VIEWS, accuracy, confusion, images_evaluated, infer, per_class
from fastcifar.recipes import schema
from fastcifar.recipes.parse import default_recipe, load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.system.device import explain_oom
from fastcifar.training import trainer
from fastcifar.training.flops import rehearse
from fastcifar.training.step import TrainState, train_step

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


def test_running_out_of_memory_says_what_to_try() -> None:
    with pytest.raises(MachineError, match=r"Out of memory.*batch_size=500"), explain_oom(CPU, 1000):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="tensor"), explain_oom(CPU, 1000):
        torch.zeros(2) @ torch.zeros(3)


def test_evaluating_in_between_changes_nothing(dataset: Dataset) -> None:
    found = load_recipe("tiny", *SMALL)
    assert same(train(found, dataset)[0], train(found, dataset, eval_every=1)[0])


def test_a_rehearsal_leaves_the_run_alone(dataset: Dataset) -> None:
    found = load_recipe("tiny", *SMALL)
    plain, _ = train(found, dataset)
    training = TrainState(found, dataset, CPU, 0)
    assert rehearse(found, dataset, CPU) > 0
    trainer.fit(training)
    assert same(plain, training)


def test_the_loop_does_not_wait_for_a_slow_reader(dataset: Dataset) -> None:
    """The view's thread may hang in a write for ever: the callback only keeps the state."""
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.training import TrainView

    view = TrainView(Screen(), "CPU", False)
    _, result = train(load_recipe("tiny", *SMALL), dataset, on_change=view.update)  # its thread never runs
    assert len(result.epochs) == 3 and view.status is not None and view.status.stage == "done"


# ------------------------------------------------------------------------------------------------------- evaluation


def plain_views(
    network: torch.nn.Module, images: torch.Tensor, weights: tuple[float, float], kind: str
) -> torch.Tensor:
    """Test-time augmentation as airbench does it, on normalised images."""

    def mirrored(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * network(x) + 0.5 * network(x.flip(-1))

    if kind == "flip":
        return mirrored(images)
    padded = torch.nn.functional.pad(images, (1,) * 4, "reflect")
    shifted = 0.5 * mirrored(padded[:, :, 0:32, 0:32]) + 0.5 * mirrored(padded[:, :, 2:34, 2:34])
    return weights[0] * mirrored(images) + weights[1] * shifted


@pytest.mark.parametrize(("kind", "shifted"), [("none", 0.5), ("flip", 0.5), ("full", 0.5), ("full", 2 / 3)])
@pytest.mark.parametrize("uncertain", [1.0, 0.25])
@torch.no_grad()
def test_views_are_the_anchors_views(kind: str, shifted: float, uncertain: float, dataset: Dataset) -> None:
    training = TrainState(load_recipe("tiny", *SMALL), dataset, CPU, 0)
    training.whiten()
    training.network.eval()
    images = dataset.test.images[:80]
    settings = schema.Evaluation(views=kind, shifted_weight=shifted, uncertain=uncertain, batch_size=32)  # type: ignore[arg-type]
    found = infer(training.network, images, training.mean, training.std, settings)
    normal = augment(images, AugmentPlan(torch.arange(80)), training.mean, training.std, torch.float32)
    plain = training.network(normal)
    expected = plain if kind == "none" else plain_views(training.network, normal, (1 - shifted, shifted), kind)
    least = plain.softmax(1).amax(1).argsort()[: int(uncertain * 80)]
    mixed = plain.clone()
    mixed[least] = expected[least]
    torch.testing.assert_close(found.plain, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.averaged, mixed, atol=1e-5, rtol=1e-4)
    assert images_evaluated(settings, 80) == 80 + (VIEWS[kind] - 1) * len(least)


def test_confusion_and_per_class_count_every_image() -> None:
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 2, 1])
    assert confusion(logits, labels) == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert per_class(logits, labels) == [1.0, 0.5, 0.5]
    assert accuracy(logits, labels) == 0.6


def test_images_grow_within_a_run(dataset: Dataset) -> None:
    found = load_recipe("tiny", *[*SMALL, "training.epochs=2", "data.resolution=[[0, 16], [0.5, 16], [0.5, 32]]"])
    training = TrainState(found, dataset, CPU, 0)
    seen: list[int] = []
    training.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    trainer.fit(training)
    half = training.total_steps // 2
    assert seen[: 2 * half] == [16] * half + [32] * half and set(seen[2 * half :]) == {32}  # views are of full size


def test_judged_on_images_held_out(dataset: Dataset) -> None:
    held = holdout_split(dataset, 100)
    rows = [part.images.flatten(1).tolist() for part in (held.train, held.test)]
    assert [len(part) for part in rows] == [len(dataset.train.images) - 100, 100]
    assert sorted(rows[0] + rows[1]) == sorted(dataset.train.images.flatten(1).tolist())
    assert torch.equal(held.test.images, holdout_split(dataset, 100).test.images) and not held.published
    assert holdout_split(dataset, 0) is dataset
    with pytest.raises(UsageError, match="leaves none"):
        holdout_split(dataset, len(dataset.train.images))


def test_train_says_what_it_is_judged_on(call: Call) -> None:
    done = call("train", "tiny", "--dataset", "shapes", *SHORTEST, "--set", "data.holdout=300", "--out", "a", "--json")
    assert done.code == 0 and "300 training images held out" in done.err
    assert round(done.document["accuracy"] * 300, 6).is_integer() and not done.document["published_dataset"]


def test_the_recipe_of_a_machine_without_a_gpu() -> None:
    assert [default_recipe(device) for device in ("cpu", "mps", "cuda")] == ["quick90", "quick90", "fast94"]


# ------------------------------------------------------------------------------------------------------ real images


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


# ------------------------------------------------------------------------------------------------- the whole process


SHORT = ["network.widths=[8, 8, 8]", "network.head.scale=0.03", "training.epochs=2", "evaluation.views=flip"]
TRAIN = ["train", "tiny", "--dataset", "shapes", "--threads", "1", *(part for s in SHORT for part in ("--set", s))]


SHORTEST = [part for each in (*SHORT, "training.epochs=0.1") for part in ("--set", each)]


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


@pytest.mark.gpu
def test_steps_on_cuda_follow_those_on_the_cpu(dataset: Dataset) -> None:
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
