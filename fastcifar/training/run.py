"""The laboratory, for people who write code: load, change, train, look at every image. Public as `import fastcifar`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.data.dataset import Dataset, Split, holdout_split
from fastcifar.data.store import load_dataset
from fastcifar.errors import DataError, UsageError
from fastcifar.model.checkpoint import CHECKPOINT, RECORD, STATE, dataset_facts, save_checkpoint
from fastcifar.model.predict import infer
from fastcifar.recipes import parse as recipe
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.system import files
from fastcifar.system.device import device_name, explain_oom, pick_device, prepare_device
from fastcifar.training import trainer
from fastcifar.training.engine import choose_engine
from fastcifar.training.flops import count_flops, rehearse
from fastcifar.training.step import TrainState
from fastcifar.training.trainer import Result, Status


@dataclass(frozen=True)
class Trained:
    """A trained network, what it reached, and what it makes of every image."""

    network: nn.Module
    result: Result
    recipe: Recipe
    dataset: Dataset

    @property
    def accuracy(self) -> float:
        """On the test images, with the recipe's test-time augmentation; a fraction of one."""
        return self.result.accuracy

    def logits(self, images: Tensor, tta: bool = True) -> Tensor:
        """Logits (N, classes), float32 on the CPU, of uint8 images (N, 3, 32, 32), such as `dataset.train.images`."""
        device = next(self.network.parameters()).device
        mean, std = (torch.tensor(each, device=device) for each in (self.dataset.mean, self.dataset.std))
        found = infer(self.network, images.to(device), mean, std, self.recipe.evaluation)
        return (found.averaged if tta else found.plain).cpu()

    def losses(self, split: Split) -> Tensor:
        """The cross-entropy (N,) of every image of a split, without label smoothing or test-time augmentation."""
        return F.cross_entropy(self.logits(split.images, tta=False), split.labels, reduction="none")


def train(
    which: str | Recipe,
    dataset: str | Dataset = "cifar10",
    *,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    engine: str = "auto",
    weights: Tensor | None = None,
) -> Trained:
    """Train a recipe, as the command does, and evaluate it.

    `weights`, float (N,), are factors on the losses of the training images. Raises what the command would print.
    """
    chosen = load_recipe(which)
    whole = load_dataset(dataset) if isinstance(dataset, str) else dataset
    images = holdout_split(whole, chosen.data.holdout)
    place = pick_device(device)
    prepare_device(place, threads)
    with explain_oom(place, chosen.training.batch_size):
        training = TrainState(chosen, images, place, seed, weights)
        result = trainer.train(training, images, engine=choose_engine(engine, place)[0])
    return Trained(training.network.eval(), result, chosen, images)


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
        data = self.dataset = holdout_split(self.dataset, self.recipe.data.holdout)
        self.operations = count_flops(self.recipe, len(data.classes), len(data.train.images), len(data.test.images))

    def introduction(self) -> str:
        """One line before the start: recipe, device, operations, time expected (judged by a rehearsal)."""
        with explain_oom(self.device, self.recipe.training.batch_size):
            seconds = rehearse(self.recipe, self.dataset, self.device, self.engine)
        held = self.recipe.data.holdout
        where = "" if self.dataset.published else " (not a published dataset)"
        where = f" (judged on {held:,} training images held out)" if held else where
        return (
            f"{self.recipe.name} on {self.dataset.name}{where}: {self.operations.total:.3g} operations on "
            f"{device_name(self.device)}, about {rough(seconds)}"
        )

    def train(self, eval_every: int, on_change: Callable[[Status], None]) -> Result:
        """Train and evaluate; the state after each epoch worth it is kept in the folder."""
        with explain_oom(self.device, self.recipe.training.batch_size):
            training = TrainState(self.recipe, self.dataset, self.device, self.seed)
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
            "recipe": recipe.recipe_to_dict(self.recipe),
            "dataset": dataset_facts(self.dataset),
            "seed": self.seed,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "engine": self.engine,
            "loop": state,
        }
        files.save_tensors(self.folder / STATE, "state", facts)

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
            "accuracy_on": recipe.eval_split(self.recipe),
            "checkpoint": str(self.folder / CHECKPOINT),
        }

    def keep(self, document: dict[str, Any]) -> None:
        """Keep the checkpoint and the record; the state is not needed any more."""
        save_record(self.folder / RECORD, {**document, "settings": recipe.recipe_to_dict(self.recipe)})
        path = self.folder / CHECKPOINT
        save_checkpoint(path, self.recipe, self.network, self.dataset, self.seed, self.device, document)
        remove_state(self.folder)

    def leave(self) -> None:
        """After a failure: remove the folder where nothing was finished."""
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def way_on(self) -> str:
        """How to go on after an interruption."""
        if (self.folder / STATE).exists():
            return f"Interrupted; the finished epochs are kept: fastcifar train --resume {self.folder}"
        return "Interrupted; nothing was kept yet (a state is kept after an epoch, on a GPU if it took 10 s)."


def saved_state(folder: Path) -> dict[str, Any]:
    """The state in the folder of an interrupted run; raises DataError where there is none."""
    path = folder / STATE
    if not path.exists():
        if (folder / CHECKPOINT).exists():
            raise DataError(f"The run in {folder} is finished: there is nothing to resume.")
        raise DataError(f"There is no interrupted run in {folder}: it holds no {STATE}.")
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


def create_run_folder(path: Path | None, recipe: str, seed: int, force: bool) -> Path:
    """A new folder for a run: `path`, or `runs/<recipe>-<seed>-<time>`.

    One that exists is only taken with `force`, and then emptied of an earlier run. Raises UsageError, or DataError
    where the folder cannot be written.
    """
    folder = path or Path("runs") / f"{recipe}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists; give another --out, or --force to write over the run in it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, RECORD, STATE):
            (folder / name).unlink(missing_ok=True)
        save_record(folder / RECORD, {})
        (folder / RECORD).unlink()
    except OSError as error:
        raise DataError(f"The run folder {folder} cannot be written: {error.strerror}; give another --out.") from None
    return folder


def save_record(path: Path, document: dict[str, Any]) -> None:
    """A JSON document; raises DataError where it cannot be written."""
    files.write_atomically(path, lambda file: file.write(json.dumps(document, indent=2).encode() + b"\n"))


def remove_state(folder: Path) -> None:
    """Drop the state to go on from, once the run is finished."""
    (folder / STATE).unlink(missing_ok=True)
