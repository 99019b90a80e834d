"""Recording: the step that trains is the step that is recorded, targets are interleaved, a mean step is a mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import few_shapes
from profiling_helpers import CPU, fixed_recording, scaled, small_target
from torch import nn

from fastcifar.profiling.memory import MemoryUse
from fastcifar.profiling.op_counter import OpCost
from fastcifar.profiling.recording import StepRecord, mean_step, record
from fastcifar.profiling.result import summarize
from fastcifar.profiling.targets import ProfileTarget, run_targets
from fastcifar.recipes.parse import load_recipe


def test_a_step_that_was_recorded_is_the_step_that_trains() -> None:
    """The ranges and the recording change nothing in what is computed, and leave no hooks behind."""
    plain, recorded = small_target("tiny"), small_target("tiny")
    hooks = [len(module._forward_hooks) for module in recorded.network.modules()]
    runs: list[None] = []

    def run() -> None:
        runs.append(None)
        recorded.run()

    record([replace(recorded, run=run)], 1)
    assert len(runs) >= 6
    for _ in range(len(runs)):  # counted, warmed up, its memory measured, timed, recorded
        plain.run()
    for a, b in zip(plain.network.state_dict().values(), recorded.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [len(module._forward_hooks) for module in recorded.network.modules()] == hooks


def test_targets_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr("fastcifar.profiling.recording.settle", lambda target: target.run())
    a, b = (
        ProfileTarget(name, nn.Identity(), lambda name=name: log.append(name), 1, CPU, torch.float32) for name in "ab"
    )
    recordings = record([a, b], 3)
    # Counted, warmed up, memory measured; then each timed and recorded.
    assert "".join(log) == "ab" + "ab" + "ab" + "aabb" + "bbaa" + "aabb"
    assert [recording.target.name for recording in recordings] == ["a", "b"]
    assert [len(recording.steps) for recording in recordings] == [3, 3]


def test_a_mean_step_is_weighted_by_the_shares_of_its_kinds() -> None:
    one = fixed_recording()
    other = fixed_recording()
    twice = [StepRecord(2 * s.seconds, 2 * s.recorded_seconds, scaled(s.kernels, 2.0)) for s in one.steps]
    costs = {("forward", "conv"): OpCost(6, 400, 40)}
    other = replace(other, steps=twice, costs=costs, memory=MemoryUse({"conv": 8}, held=0, step=16))
    mean = mean_step([one, other], [0.25, 0.75])
    assert mean.kinds == 2 and mean.target is other.target
    assert mean.memory is one.memory, "not that of the kind of step that needs most"
    assert [step.seconds for step in mean.steps] == pytest.approx([1.75 * step.seconds for step in one.steps])
    assert mean.costs["forward", "conv"] == OpCost(5, round(0.25 * 28_311_552 + 300), round(0.25 * 3_932_160 + 30))
    assert mean.costs["backward", "act"] == OpCost(0, 0, round(0.25 * 3_145_728))
    before, after = summarize(one), summarize(mean)
    assert after.kernel_ms == pytest.approx(1.75 * before.kernel_ms)
    assert after.phases == pytest.approx({name: 1.75 * time for name, time in before.phases.items()})
    assert sum(item.count for item in after.items) == pytest.approx(sum(item.count for item in before.items))
    assert [step.kernels for step in fixed_recording().steps] == [step.kernels for step in one.steps], "changed"


RUN = ["training.batch_size=8", "data.resolution=[[0, 16], [0.25, 16], [0.25, 32]]", "network.widths=[8, 8, 8]"]


def test_a_run_has_every_kind_of_step_with_its_share() -> None:
    kinds = run_targets(load_recipe("tiny", *RUN, "training.epochs=2"), few_shapes(64, 8), CPU)
    # Small images; large ones; large ones without training the whitening's bias.
    assert sorted(share for _, share in kinds) == [0.125, 0.25, 0.625]
    recordings = record([target for target, _ in kinds], 2)
    mean = summarize(mean_step(recordings, [share for _, share in kinds]))
    parts = [summarize(recording) for recording in recordings]
    for layer in mean.layers:
        flops = [next(each.flops for each in part.layers if each.name == layer.name) for part in parts]
        expected = sum(share * n for (_, share), n in zip(kinds, flops, strict=True))
        assert layer.flops == pytest.approx(expected, abs=2)  # rounded, forward and backward
    assert mean.kinds == 3 and {part.kinds for part in parts} == {1}
    assert sum(mean.phases.values()) + mean.unattributed_ms == pytest.approx(mean.kernel_ms)


def test_a_mean_step_is_of_the_steps_that_a_holdout_leaves() -> None:
    """`profile --whole-run` once counted the steps of a run over all training images."""

    def shares(images: int, *overrides: str) -> list[float]:
        recipe = load_recipe("tiny", *RUN, "training.epochs=0.75", *overrides)
        return sorted(share for _, share in run_targets(recipe, few_shapes(images, 8), CPU))

    held_out = shares(64, "data.holdout=32")
    assert held_out == shares(32) == [1 / 3] * 3  # three steps, one of each kind
    assert held_out != shares(64)
