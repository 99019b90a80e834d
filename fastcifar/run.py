"""One run of `train` on disk: what is known before it starts, the training itself, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastcifar import files, machine, operations, recipe, store, trainer
from fastcifar.data import Dataset, hold_out
from fastcifar.errors import DataError, UsageError
from fastcifar.recipe import Recipe
from fastcifar.step import Training
from fastcifar.trainer import Result, Status


@dataclass
class Run:
    """A recipe, a dataset, a seed and a device; the folder to keep it in, and the state to go on from."""

    recipe: Recipe
    dataset: Dataset
    device: torch.device
    seed: int
    folder: Path
    engine: str = "eager"
    saved: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        data = self.dataset = hold_out(self.dataset, self.recipe.data.holdout)
        self.operations = operations.count(
            self.recipe, len(data.classes), len(data.train.images), len(data.test.images)
        )

    def introduction(self) -> str:
        """One line before the start: recipe, device, operations, time expected (judged by a rehearsal)."""
        with machine.memory_errors(self.device, self.recipe.training.batch_size):
            seconds = trainer.rehearse(self.recipe, self.dataset, self.device, self.engine)
        held = self.recipe.data.holdout
        where = "" if self.dataset.published else " (not a published dataset)"
        where = f" (judged on {held:,} training images held out)" if held else where
        return (
            f"{self.recipe.name} on {self.dataset.name}{where}: {self.operations.total:.3g} operations on "
            f"{machine.describe(self.device)}, about {rough(seconds)}"
        )

    def train(self, eval_every: int, on_change: Callable[[Status], None]) -> Result:
        """Train and evaluate; the state after each epoch worth it is kept in the folder."""
        with machine.memory_errors(self.device, self.recipe.training.batch_size):
            training = Training(self.recipe, self.dataset, self.device, self.seed)
            self.network = training.network
            return trainer.train(
                training,
                self.dataset,
                engine=self.engine,
                eval_every=eval_every,
                on_change=on_change,
                save=self.keep_state,
                saved=self.saved,
            )

    def keep_state(self, state: dict[str, Any]) -> None:
        """Keep what a later process needs to go on."""
        facts = {
            "recipe": recipe.to_dict(self.recipe),
            "dataset": store.dataset_facts(self.dataset),
            "seed": self.seed,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "engine": self.engine,
            "loop": state,
        }
        files.save_tensors(self.folder / store.STATE, "state", facts)

    def document(self, result: Result) -> dict[str, Any]:
        """What `--json` and the record of the run hold."""
        return {
            "recipe": self.recipe.name,
            "dataset": self.dataset.name,
            "published_dataset": self.dataset.published,
            "seed": self.seed,
            "engine": self.engine,
            "threads": torch.get_num_threads(),
            "flops": self.operations.total,
            "tflops_per_s": self.operations.total / result.train_s / 1e12,
            **asdict(result),
            "accuracy_on": recipe.judged_on(self.recipe),
            "checkpoint": str(self.folder / store.CHECKPOINT),
        }

    def keep(self, document: dict[str, Any]) -> None:
        """Keep the checkpoint and the record; the state is not needed any more."""
        store.save_record(self.folder / store.RECORD, {**document, "settings": recipe.to_dict(self.recipe)})
        path = self.folder / store.CHECKPOINT
        store.save_checkpoint(path, self.recipe, self.network, self.dataset, self.seed, self.device, document)
        store.remove_state(self.folder)

    def leave(self) -> None:
        """After a failure: remove the folder where nothing was finished."""
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def way_on(self) -> str:
        """How to go on after an interruption."""
        if (self.folder / store.STATE).exists():
            return f"Interrupted; the finished epochs are kept: fastcifar train --resume {self.folder}"
        return "Interrupted; nothing was kept yet (a state is kept after an epoch, on a GPU if it took 10 s)."


def saved_state(folder: Path) -> dict[str, Any]:
    """The state in the folder of an interrupted run; raises DataError where there is none."""
    path = folder / store.STATE
    if not path.exists():
        if (folder / store.CHECKPOINT).exists():
            raise DataError(f"The run in {folder} is finished: there is nothing to resume.")
        raise DataError(f"There is no interrupted run in {folder}: it holds no {store.STATE}.")
    return files.load_tensors(path, "state", ("recipe", "dataset", "seed", "device", "threads", "engine", "loop"))


def check_same_kind(saved: dict[str, Any], device: torch.device) -> None:
    """Refuse to go on with another kind of device, whose random numbers are others."""
    if torch.device(saved["device"]).type != device.type:
        raise UsageError(f"This run began on {saved['device']}: it cannot go on on {device.type}.")


def check_same_dataset(saved: dict[str, Any], dataset: Dataset) -> None:
    """Refuse to go on with other images than the run began with."""
    if saved["dataset"]["digest"] != dataset.digest:
        raise UsageError(f"Dataset '{dataset.name}' is not what this run began with: its content has changed.")


def check_seed(seed: int) -> None:
    """A seed is what PyTorch takes: 0 to 2^63 - 1."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed} must lie in 0..{2**63 - 1}.")


def check_target(target: float | None) -> None:
    """A target is in percent; 0.94 is somebody who means 94."""
    if target is None or 1 < target <= 100:
        return
    if 0 < target <= 1:
        raise UsageError(f"--target {target:g} is in percent: {100 * target:g} is meant?")
    raise UsageError(f"--target {target:g} must be a percentage between 1 and 100.")


def rough(seconds: float) -> str:
    """An estimate, no more exact than it is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s" if seconds >= 1 else "a second"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
