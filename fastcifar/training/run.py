"""One run: `train`, the only way to train, and the run folder that the command line keeps it in."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.store import load_dataset
from fastcifar.errors import DataError, UsageError
from fastcifar.model.checkpoint import CHECKPOINT, RECORD, STATE, dataset_facts, save_checkpoint
from fastcifar.model.predict import infer
from fastcifar.recipes.parse import eval_split, load_recipe, recipe_to_dict
from fastcifar.recipes.schema import Recipe
from fastcifar.system import files
from fastcifar.system.device import explain_oom, pick_device, prepare_device
from fastcifar.training.engine import Engine, choose_engine
from fastcifar.training.flops import count_flops
from fastcifar.training.step import TrainState
from fastcifar.training.trainer import Result, Status, fit

STATE_KEYS = ("recipe", "dataset", "seed", "device", "threads", "engine", "loop")


@dataclass(frozen=True)
class Trained:
    """A trained network, what it reached, and what it predicts for every image.

    `dataset` is the one that it was trained and evaluated on: with held-out images in place of the test images, where
    the recipe holds some out.
    """

    network: nn.Module
    result: Result
    recipe: Recipe
    dataset: Dataset
    seed: int
    engine: str

    @property
    def accuracy(self) -> float:
        """On the test images, with the recipe's test-time augmentation; a fraction of one."""
        return self.result.accuracy

    def logits(self, images: Tensor, tta: bool = True) -> Tensor:
        """Logits (N, classes), float32 on the CPU, of uint8 images (N, 3, 32, 32), such as `dataset.train.images`."""
        device = next(self.network.parameters()).device
        mean, std = (torch.tensor(values, device=device) for values in (self.dataset.mean, self.dataset.std))
        logits = infer(self.network, images.to(device), mean, std, self.recipe.evaluation)
        return (logits.averaged if tta else logits.plain).cpu()

    def losses(self, split: Split) -> Tensor:
        """The cross-entropy (N,) of every image of a split, without label smoothing or test-time augmentation."""
        return F.cross_entropy(self.logits(split.images, tta=False), split.labels, reduction="none")


def train(
    recipe: str | Recipe,
    dataset: str | Dataset = "cifar10",
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    threads: int | None = None,
    engine: str | Engine = "auto",
    weights: Tensor | None = None,
    eval_every: int = 0,
    on_change: Callable[[Status], None] = lambda status: None,
    save: Callable[[dict[str, Any]], None] | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a recipe from a seed and evaluate it.

    `weights`, float (N,), are factors on the losses of the training images. Every `eval_every` epochs the test accuracy
    is measured, outside the train time. `on_change` is called with the run's status and must return at once. `save`
    gets a tree to resume from after each epoch worth it, `saved` is such a tree. Raises what the command line would
    print: UsageError, DataError, MachineError (out of memory), Diverged.
    """
    recipe = load_recipe(recipe)
    dataset = load_dataset(dataset) if isinstance(dataset, str) else dataset
    device = device if isinstance(device, torch.device) else pick_device(device)
    prepare_device(device, threads)
    engine = choose_engine(engine, device) if isinstance(engine, str) else engine
    with explain_oom(device, recipe.training.batch_size):
        warm_up(recipe, dataset, device, engine)
        state = TrainState(recipe, dataset, device, seed, weights)
        result = fit(state, engine=engine, eval_every=eval_every, on_change=on_change, save=save, saved=saved)
    return Trained(state.network.eval(), result, recipe, state.dataset, seed, engine.name)


WARMED_UP: set[tuple[Recipe, str, torch.device]] = set()


def warm_up(recipe: Recipe, dataset: Dataset, device: torch.device, engine: Engine) -> None:
    """On CUDA, once a process for each recipe: two steps and an evaluation of a scratch state, which load kernels, let
    cuDNN choose its algorithms and allocate memory, all outside the train time. Elsewhere nothing."""
    key = (recipe, engine.name, device)
    if device.type != "cuda" or key in WARMED_UP:
        return
    WARMED_UP.add(key)
    state = TrainState(recipe, dataset, device, seed=0)
    state.whiten()
    step = engine.prepare(state)
    step()
    infer(state.network, state.dataset.test.images.to(device), state.mean, state.std, recipe.evaluation)
    state.network.train()
    step()


def run_flops(recipe: Recipe, dataset: Dataset) -> int:
    """FLOPs of a run of the recipe on the dataset: training and the final evaluation."""
    return count_flops(recipe, len(dataset.classes), len(dataset.train.images), len(dataset.test.images)).total


def run_record(trained: Trained, flops: int) -> dict[str, Any]:
    """What `train --json` and the record in a run folder hold of a run, beside what all documents hold."""
    return {
        "recipe": trained.recipe.name,
        "dataset": trained.dataset.name,
        "dataset_digest": trained.dataset.digest,
        "published_dataset": trained.dataset.published,
        "seed": trained.seed,
        "engine": trained.engine,
        "threads": torch.get_num_threads(),
        "flops": flops,
        "tflops_per_s": flops / trained.result.train_s / 1e12,
        **asdict(trained.result),
        "accuracy_on": eval_split(trained.recipe),
    }


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: while it trains the state to resume from, afterwards the checkpoint and the record.

    All three are written atomically.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The trained weights."""
        return self.path / CHECKPOINT

    def save_state(
        self, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, engine: str, loop: Any
    ) -> None:
        """Keep what a later process needs to resume; raises DataError where it cannot be written."""
        tree = {
            "recipe": recipe_to_dict(recipe),
            "dataset": dataset_facts(dataset),
            "seed": seed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "engine": engine,
            "loop": loop,
        }
        files.save_tensors(self.path / STATE, "state", tree)

    def load_state(self) -> dict[str, Any]:
        """What `save_state` kept; raises DataError where the folder holds no interrupted run."""
        path = self.path / STATE
        if not path.exists():
            if self.checkpoint.exists():
                raise DataError(f"The run in {self.path} is finished: there is nothing to resume.")
            raise DataError(f"There is no interrupted run in {self.path}: it holds no {STATE}.")
        return files.load_tensors(path, "state", STATE_KEYS)

    def finish(self, trained: Trained, device: torch.device, record: dict[str, Any]) -> None:
        """Keep the record and the checkpoint, and drop the state; raises DataError where they cannot be written."""
        save_record(self.path / RECORD, {**record, "settings": recipe_to_dict(trained.recipe)})
        save_checkpoint(self.checkpoint, trained.recipe, trained.network, trained.dataset, trained.seed, device, record)
        (self.path / STATE).unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """After a failure: remove the folder where nothing was kept."""
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def resume_hint(self) -> str:
        """One sentence after an interruption: what was kept, and how to resume."""
        if (self.path / STATE).exists():
            return f"Interrupted; the finished epochs are kept: fastcifar train --resume {shlex.quote(str(self.path))}"
        return "Interrupted; nothing was kept yet (a state is kept after an epoch, on a GPU if it took 10 s)."


def create_run_folder(path: Path | None, recipe: str, seed: int, force: bool) -> RunFolder:
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
        files.check_writable(folder / RECORD)
    except OSError as error:
        raise DataError(f"The run folder {folder} cannot be written: {error.strerror}; give another --out.") from None
    return RunFolder(folder)


def save_record(path: Path, document: dict[str, Any]) -> None:
    """A JSON document; raises DataError where it cannot be written."""
    files.write_text(path, json.dumps(document, indent=2) + "\n")


def check_resumable(state: dict[str, Any], dataset: Dataset, device: torch.device) -> None:
    """Raise UsageError where a saved state cannot be resumed: on another kind of device, whose random numbers are
    others, or with other images than the run began with."""
    if torch.device(state["device"]).type != device.type:
        raise UsageError(f"This run began on {state['device']}: it cannot be resumed on {device.type}.")
    if state["dataset"]["digest"] != dataset.digest:
        raise UsageError(f"Dataset '{dataset.name}' is not what this run began with: its content has changed.")
