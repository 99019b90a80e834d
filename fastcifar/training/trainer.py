"""A run from its seed to its accuracy: the loop over steps and epochs, callbacks, going on after an interruption.

The loop launches work and, behind some steps, a snapshot: a timestamp and a copy of the metrics. It reads only snapshots
that the device has already reached, so that within an epoch the host never waits for the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastcifar.data.dataset import Dataset
from fastcifar.errors import Diverged
from fastcifar.model import predict as evaluate
from fastcifar.recipes.schema import Evaluation
from fastcifar.system.device import peak_memory, reset_peak_memory
from fastcifar.system.timing import Timestamp, process_age
from fastcifar.training.engine import start_engine
from fastcifar.training.step import TrainState

SNAPSHOTS_PER_EPOCH = 16
QUICK_EPOCH = 10.0  # seconds: on CUDA an epoch shorter than this is not worth the wait that saving costs


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


@dataclass(frozen=True)
class MetricsSnapshot:
    """A point in the device's work, with the metrics as they were there."""

    mark: Timestamp
    start: Timestamp  # of its epoch
    step: int
    metrics: Tensor  # (3,): sum of losses, correct predictions, images since the epoch began
    lr: float


def train(
    training: TrainState,
    dataset: Dataset,
    *,
    engine: str = "eager",
    eval_every: int = 0,
    on_change: Callable[[Status], None] = lambda status: None,
    save: Callable[[dict[str, Any]], None] | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Result:
    """Train to the end and evaluate on the test images; `training` holds the final weights afterwards.

    Every `eval_every` epochs the test accuracy is taken, outside the train time. `on_change` is called with the same
    status again and again and must return at once. `save` is called with the state after each epoch that was worth
    it; `saved` is such a state to go on from. Raises Diverged when the loss is not finite.
    """
    setup_s = process_age()
    reset_peak_memory(training.device)
    loop = TrainLoop(training, dataset, engine, on_change)
    if saved is None:
        loop.whiten()
    else:
        loop.restore(saved)
    while training.step < training.total_steps:
        loop.run_epoch()
        number = -(-training.step // training.steps_per_epoch)
        if eval_every and number % eval_every == 0:
            loop.take_test_accuracy()
        if save is not None and loop.worth_saving():
            loop.save(save)
    return loop.finish(setup_s)


class TrainLoop:
    """The epochs of one run, and what is known of them."""

    def __init__(
        self, training: TrainState, dataset: Dataset, engine: str, on_change: Callable[[Status], None]
    ) -> None:
        self.training = training
        self.step = start_engine(engine, training)
        self.dataset = dataset
        self.on_change = on_change
        self.status = Status(training.total_steps, training.steps_per_epoch)
        self.snapshots: deque[MetricsSnapshot] = deque()
        self.snapshot_every = max(1, training.steps_per_epoch // SNAPSHOTS_PER_EPOCH)
        # Where the metrics of each snapshot go, all at once: pinning memory within an epoch would wait for the device.
        snapshots = training.total_steps // self.snapshot_every + -(-training.total_steps // training.steps_per_epoch)
        self.slots = iter(torch.empty(snapshots, 3, pin_memory=training.device.type == "cuda"))
        self.test_images = dataset.test.images.to(training.device)
        self.whiten_s = 0.0
        self.epochs_before = 0  # finished by an earlier process
        self.latest = self.mark()  # the next epoch is timed from here

    def mark(self) -> Timestamp:
        return Timestamp(self.training.device)

    def whiten(self) -> None:
        """Set the whitening; the first thing that counts as train time."""
        before = self.latest
        self.training.whiten()
        self.latest = self.mark()
        self.latest.wait()
        self.whiten_s = self.latest.seconds_since(before)

    def run_epoch(self) -> None:
        """All steps up to the end of the epoch, or of the run."""
        training, start = self.training, self.latest
        training.network.train()
        training.clear_metrics()
        end = min(training.total_steps, (training.step // training.steps_per_epoch + 1) * training.steps_per_epoch)
        while training.step < end:
            self.step()
            if training.step == end or training.step % self.snapshot_every == 0:
                self.record_snapshot(start)
                self.drain_snapshots()

    def record_snapshot(self, start: Timestamp) -> None:
        """A snapshot behind the step just launched; the copy lands in pinned memory before its mark is reached."""
        training = self.training
        metrics = next(self.slots)
        metrics.copy_(training.metrics, non_blocking=True)
        self.latest = self.mark()
        lr = training.optimizer.rate(training.step - 1)
        self.snapshots.append(MetricsSnapshot(self.latest, start, training.step, metrics, lr))

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
        status.trained_s = epoch_s + sum(epoch.device_s for epoch in status.epochs[self.epochs_before :])
        if snapshot.step % status.steps_per_epoch == 0 or snapshot.step == status.total_steps:
            number = len(status.epochs) + 1
            status.epochs.append(Epoch(number, epoch_s, images / epoch_s, loss / images, correct / images, snapshot.lr))
        self.on_change(status)

    def evaluate(self, recipe: Evaluation) -> evaluate.Logits:
        """The logits of the test images, with the weights as they are."""
        training = self.training
        return evaluate.infer(training.network, self.test_images, training.mean, training.std, recipe)

    def take_test_accuracy(self) -> None:
        """Add the test accuracy to the epoch just run; the time it takes counts nowhere but in the wall time."""
        self.drain_snapshots(wait=True)
        recipe = dataclasses.replace(self.training.recipe.evaluation, views="none")
        accuracy = evaluate.accuracy(self.evaluate(recipe).plain.cpu(), self.dataset.test.labels)
        self.status.epochs[-1] = dataclasses.replace(self.status.epochs[-1], test_accuracy=accuracy)
        self.on_change(self.status)
        self.latest = self.mark()

    def worth_saving(self) -> bool:
        """Whether to keep the state after the epoch just run: always, but for quick epochs on CUDA and the last."""
        if self.training.step == self.training.total_steps:
            return False
        epochs = self.status.epochs
        return self.training.device.type != "cuda" or bool(epochs and epochs[-1].device_s > QUICK_EPOCH)

    def save(self, keep: Callable[[dict[str, Any]], None]) -> None:
        """Hand over all that a later process needs to go on from here; the time counts in the wall time alone."""
        self.drain_snapshots(wait=True)
        epochs = [dataclasses.asdict(epoch) for epoch in self.status.epochs]
        keep({"training": self.training.state(), "epochs": epochs, "whiten_s": self.whiten_s})
        self.latest = self.mark()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state that `save` handed over."""
        self.training.restore(saved["training"])
        self.whiten_s = saved["whiten_s"]
        self.status.epochs = [Epoch(**epoch) for epoch in saved["epochs"]]
        self.epochs_before = len(self.status.epochs)
        self.status.steps_before = self.status.steps_done = self.training.step
        self.on_change(self.status)
        self.latest = self.mark()

    def finish(self, setup_s: float) -> Result:
        """The evaluation at the end, on the averaged weights where the recipe averages, and the sums."""
        before = self.latest
        self.status.stage = "evaluating"
        self.on_change(self.status)
        self.training.ema.apply()
        logits = self.evaluate(self.training.recipe.evaluation)
        after = self.mark()
        self.drain_snapshots(wait=True)
        after.wait()
        labels = self.dataset.test.labels
        eval_s = after.seconds_since(before)
        epochs_s = sum(epoch.device_s for epoch in self.status.epochs)
        self.status.stage = "done"
        self.on_change(self.status)
        return Result(
            accuracy=evaluate.accuracy(logits.averaged.cpu(), labels),
            accuracy_no_tta=evaluate.accuracy(logits.plain.cpu(), labels),
            train_s=self.whiten_s + epochs_s + eval_s,
            epochs_s=epochs_s,
            eval_s=eval_s,
            setup_s=setup_s,
            wall_s=process_age(),
            peak_memory=peak_memory(self.training.device),
            epochs=self.status.epochs,
        )
