"""A run from its seed to its accuracy: the loop over steps and epochs, callbacks, going on after an interruption.

The loop launches work and, behind some steps, a snapshot: a timestamp and a copy of the metrics. It reads only
snapshots that the device has already reached, so that within an epoch the host never waits for the device.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastcifar.errors import Diverged
from fastcifar.model import predict
from fastcifar.system.device import peak_memory, reset_peak_memory
from fastcifar.system.timing import Timestamp, process_age
from fastcifar.training.launch import Steps
from fastcifar.training.step import TrainState

SNAPSHOTS_PER_EPOCH = 16
QUICK_EPOCH = 10.0  # seconds: on CUDA an epoch shorter than this is not worth the wait that saving costs
SAVING_PACE = 4.0  # a state is saved when this many times as long was trained since the last one as saving that took


@dataclass(frozen=True)
class Epoch:
    """One finished epoch; accuracies are fractions, times seconds on the device."""

    epoch: int
    device_s: float
    images_per_s: float
    train_loss: float  # mean over the epoch's images, each as it was when its batch came
    train_accuracy: float
    lr: float  # of the filters, at the last step
    test_accuracy: float | None = None  # without test-time augmentation, where it was asked for


@dataclass
class Status:
    """Where a run stands: changed in place by the trainer, read by whoever draws it."""

    total_steps: int
    steps_per_epoch: int
    stage: str = "training"  # training, evaluating, done
    steps_done: int = 0  # steps known to be finished on the device
    steps_before: int = 0  # of these, done by an earlier process
    trained_s: float = 0.0  # seconds this process took for the others
    loss: float | None = None  # mean over the images of the current epoch so far
    losses: list[float] = field(default_factory=list)  # means over the images between one snapshot and the next
    epochs: list[Epoch] = field(default_factory=list)

    def seconds_left(self) -> float | None:
        """Time to go until the last step, at the pace so far; None where no step is finished yet."""
        steps = self.steps_done - self.steps_before
        return (self.total_steps - self.steps_done) * self.trained_s / steps if steps else None


@dataclass(frozen=True)
class Result:
    """What a run reached and what it cost; accuracies are fractions, times seconds, memory bytes."""

    accuracy: float
    accuracy_no_tta: float
    train_s: float
    epochs_s: float
    eval_s: float
    setup_s: float
    wall_s: float
    peak_memory: int
    epochs: list[Epoch]
    logits: Tensor = field(repr=False, compare=False)  # float32 (N, classes) on the CPU, averaged over the views


@dataclass(frozen=True)
class MetricsSnapshot:
    """A point in the device's work, with the metrics as they were there."""

    mark: Timestamp
    start: Timestamp  # of its epoch
    step: int
    metrics: Tensor  # (3,): sum of losses, correct predictions, images since the epoch began
    lr: float


def fit(
    state: TrainState,
    *,
    steps: Steps | None = None,
    eval_every: int = 0,
    on_change: Callable[[Status], None] = lambda status: None,
    save: Callable[[dict[str, Any]], None] | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Result:
    """Train a state to the end and evaluate it; `state` holds the final weights afterwards.

    `steps` are those of an engine that prepared the state; None: the eager engine's, not prepared. Every `eval_every`
    epochs the test accuracy is measured, outside the train time. `on_change` is called with the same status again and
    again and must return at once. `save` is called with a tree to resume from after each epoch that was worth it;
    `saved` is such a tree. Raises Diverged when the loss is not finite.
    """
    reset_peak_memory(state.device)
    loop = TrainLoop(steps or Steps(state), on_change)
    setup_s = process_age()
    loop.begin(saved)
    while state.step < state.total_steps:
        loop.run_epoch()
        epoch = -(-state.step // state.steps_per_epoch)
        if eval_every and epoch % eval_every == 0:
            loop.measure_test_accuracy()
        if save is not None and loop.worth_saving():
            loop.save(save)
    return loop.finish(setup_s)


class TrainLoop:
    """The epochs of one run: launches steps, and reads what the device has finished of them."""

    def __init__(self, steps: Steps, on_change: Callable[[Status], None]) -> None:
        self.steps = steps
        self.state = state = steps.state
        self.on_change = on_change
        self.status = Status(state.total_steps, state.steps_per_epoch)
        self.snapshots: deque[MetricsSnapshot] = deque()
        self.snapshot_every = max(1, state.steps_per_epoch // SNAPSHOTS_PER_EPOCH)
        # Where the metrics of each snapshot go, all at once: pinning memory within an epoch would wait for the device.
        snapshots = state.total_steps // self.snapshot_every + -(-state.total_steps // state.steps_per_epoch)
        self.slots = iter(torch.empty(snapshots, 3, pin_memory=state.device.type == "cuda"))
        self.seen = (0.0, 0.0)  # sum of losses and images of the current epoch, at the snapshot read last
        self.whiten_s = 0.0
        self.finished_s = 0.0  # of the epochs that this process finished
        self.save_s = 0.0  # seconds that the last saved state took
        self.saved_at = time.perf_counter()
        self.latest = self.mark()  # the next epoch is timed from here

    def mark(self) -> Timestamp:
        return Timestamp(self.state.device)

    def begin(self, saved: Mapping[str, Any] | None) -> None:
        """Restore a saved state, or set the whitening, which is the first thing that counts as train time."""
        if saved is not None:
            self.restore(saved)
            return
        before = self.latest = self.mark()
        self.state.whiten()
        self.latest = self.mark()
        self.latest.wait()
        self.whiten_s = self.latest.seconds_since(before)

    def run_epoch(self) -> None:
        """All steps up to the end of the epoch, or of the run."""
        state, start = self.state, self.latest
        state.network.train()
        state.clear_metrics()
        end = min(state.total_steps, (state.step // state.steps_per_epoch + 1) * state.steps_per_epoch)
        while state.step < end:
            self.steps.step()
            if state.step == end or state.step % self.snapshot_every == 0:
                self.record_snapshot(start)
                self.drain_snapshots()

    def record_snapshot(self, start: Timestamp) -> None:
        """A snapshot behind the step just launched; the copy lands in pinned memory before its mark is reached."""
        state = self.state
        metrics = next(self.slots)
        metrics.copy_(state.metrics, non_blocking=True)
        self.latest = self.mark()
        lr = state.optimizer.rate(state.step - 1)
        self.snapshots.append(MetricsSnapshot(self.latest, start, state.step, metrics, lr))

    def drain_snapshots(self, wait: bool = False) -> None:
        """Take up what the device has finished; with `wait`, all that was launched."""
        while self.snapshots and (wait or self.snapshots[0].mark.reached()):
            self.snapshots[0].mark.wait()
            self.read(self.snapshots.popleft())

    def read(self, snapshot: MetricsSnapshot) -> None:
        """Take one finished snapshot into the status; a loss that is not finite ends the run."""
        status = self.status
        loss, correct, images = snapshot.metrics.tolist()
        if not math.isfinite(loss):
            raise Diverged(
                f"The loss is not finite at step {snapshot.step} of {status.total_steps}: try a lower "
                "optimizer.filters.lr, or training.precision=float32."
            )
        epoch_s = snapshot.mark.seconds_since(snapshot.start)
        status.steps_done = snapshot.step
        status.loss = loss / images
        status.losses.append((loss - self.seen[0]) / (images - self.seen[1]))
        self.seen = (loss, images)
        status.trained_s = self.finished_s + epoch_s
        if snapshot.step % status.steps_per_epoch == 0 or snapshot.step == status.total_steps:
            self.finished_s += epoch_s
            self.seen = (0.0, 0.0)
            number = len(status.epochs) + 1
            status.epochs.append(Epoch(number, epoch_s, images / epoch_s, loss / images, correct / images, snapshot.lr))
        self.on_change(status)

    def measure_test_accuracy(self) -> None:
        """Add the test accuracy to the epoch just run; the time it takes counts nowhere but in the wall time."""
        self.drain_snapshots(wait=True)
        recipe = dataclasses.replace(self.state.recipe.evaluation, views="none")
        accuracy = predict.accuracy(self.state.evaluate(recipe).plain.cpu(), self.state.dataset.test.labels)
        self.status.epochs[-1] = dataclasses.replace(self.status.epochs[-1], test_accuracy=accuracy)
        self.on_change(self.status)
        self.latest = self.mark()

    def worth_saving(self) -> bool:
        """Whether to keep the state after the epoch just run: always, but for the last, for quick ones on CUDA, and
        where runs of many short epochs would spend their time on saving."""
        if self.state.step == self.state.total_steps:
            return False
        if time.perf_counter() - self.saved_at < SAVING_PACE * self.save_s:
            return False
        epochs = self.status.epochs
        return self.state.device.type != "cuda" or bool(epochs and epochs[-1].device_s > QUICK_EPOCH)

    def save(self, keep: Callable[[dict[str, Any]], None]) -> None:
        """Hand over all that a later process needs to go on from here; the time counts in the wall time alone."""
        self.drain_snapshots(wait=True)
        before = time.perf_counter()
        epochs = [dataclasses.asdict(epoch) for epoch in self.status.epochs]
        keep({"training": self.state.state(), "epochs": epochs, "whiten_s": self.whiten_s})
        self.saved_at = time.perf_counter()
        self.save_s = self.saved_at - before
        self.latest = self.mark()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state that `save` handed over."""
        self.state.restore(saved["training"])
        self.whiten_s = saved["whiten_s"]
        self.status.epochs = [Epoch(**epoch) for epoch in saved["epochs"]]
        self.status.steps_before = self.status.steps_done = self.state.step
        self.on_change(self.status)
        self.latest = self.mark()

    def finish(self, setup_s: float) -> Result:
        """The evaluation at the end, on the averaged weights where the recipe averages, and the sums."""
        before = self.latest
        self.status.stage = "evaluating"
        self.on_change(self.status)
        self.state.ema.apply()
        logits = self.steps.evaluate()
        after = self.mark()
        self.drain_snapshots(wait=True)
        after.wait()
        labels, averaged = self.state.dataset.test.labels, logits.averaged.cpu()
        eval_s = after.seconds_since(before)
        epochs_s = sum(epoch.device_s for epoch in self.status.epochs)
        self.status.stage = "done"
        self.on_change(self.status)
        return Result(
            accuracy=predict.accuracy(averaged, labels),
            accuracy_no_tta=predict.accuracy(logits.plain.cpu(), labels),
            train_s=self.whiten_s + epochs_s + eval_s,
            epochs_s=epochs_s,
            eval_s=eval_s,
            setup_s=setup_s,
            wall_s=process_age(),
            peak_memory=peak_memory(self.state.device),
            epochs=self.status.epochs,
            logits=averaged,
        )
