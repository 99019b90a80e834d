"""One run: `train`, the only way to train, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.store import load_dataset
from fastcifar.model.network import network_code
from fastcifar.model.predict import infer
from fastcifar.recipes.parse import eval_split, load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.system.device import explain_oom, pick_device, prepare_device
from fastcifar.system.processors import processor_times, usable_processors
from fastcifar.training.engine import Engine, choose_engine
from fastcifar.training.flops import count_flops
from fastcifar.training.prepared import PreparedTraining
from fastcifar.training.trainer import Result, Status, fit


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
    other_load: float | None = None  # share of the machine's processors that others used meanwhile; None: unknown

    @property
    def accuracy(self) -> float:
        """On the test images, with the recipe's test-time augmentation; a fraction of one."""
        return self.result.accuracy

    def logits(self, images: Tensor, tta: bool = True) -> Tensor:
        """Logits (N, classes), float32 on the CPU, of uint8 images (N, 3, 32, 32), such as `dataset.train.images`."""
        device = next(self.network.parameters()).device
        mean, std = (torch.tensor(values, device=device) for values in (self.dataset.mean, self.dataset.std))
        with network_code(self.recipe.network):
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
    siblings: bool = False,
) -> Trained:
    """Train a recipe from a seed and evaluate it.

    A `torch.device` without `threads` is taken as prepared (`prepare_device`), as the command line does once for all
    runs of a bench. `weights`, float (N,), are factors on the losses of the training images. Every `eval_every` epochs
    the test accuracy is measured, outside the train time. `on_change` is called with the run's status and must return
    at once. `save` gets a tree to resume from after each epoch worth it, `saved` is such a tree. With `siblings` the
    processor time of this process's siblings, such as the ranks of one torchrun, does not count as that of others.
    Raises what the command line would print: UsageError, DataError, MachineError (out of memory), Diverged.
    """
    recipe = load_recipe(recipe)
    dataset = load_dataset(dataset) if isinstance(dataset, str) else dataset
    ready = isinstance(device, torch.device) and threads is None
    device = device if isinstance(device, torch.device) else pick_device(device)
    if not ready:
        prepare_device(device, threads)
    engine = choose_engine(engine, device) if isinstance(engine, str) else engine
    with explain_oom(device, recipe.training.batch_size):
        prepared = PreparedTraining(recipe, dataset, device, engine, seed, weights)
    return train_prepared(
        prepared, seed, eval_every=eval_every, on_change=on_change, save=save, saved=saved, siblings=siblings
    )


def train_prepared(
    prepared: PreparedTraining,
    seed: int,
    *,
    eval_every: int = 0,
    on_change: Callable[[Status], None] = lambda status: None,
    save: Callable[[dict[str, Any]], None] | None = None,
    saved: Mapping[str, Any] | None = None,
    siblings: bool = False,
) -> Trained:
    """One of several runs of a prepared training; see `train`. The next run trains the same network anew."""
    before = processor_times(siblings)
    with explain_oom(prepared.device, prepared.recipe.training.batch_size):
        steps = prepared.begin(seed)
        result = fit(steps.state, steps=steps, eval_every=eval_every, on_change=on_change, save=save, saved=saved)
    after = processor_times(siblings)
    other_load = after.other_load(before) if before and after else None
    network, dataset = steps.state.network.eval(), steps.state.dataset
    return Trained(network, result, prepared.recipe, dataset, seed, prepared.engine.name, other_load)


def run_flops(recipe: Recipe, dataset: Dataset) -> int:
    """FLOPs of a run of the recipe on the dataset: training and the final evaluation."""
    return count_flops(recipe, len(dataset.classes), len(dataset.train.images), len(dataset.test.images)).total


def threads_limit(network: nn.Module) -> str | None:
    """What keeps a run on a CPU from using all processors, in words; None where nothing does, or the user chose."""
    usable = usable_processors()
    on_cpu = next(network.parameters()).is_cpu
    return usable.limit or None if on_cpu and torch.get_num_threads() == usable.count else None


def run_record(trained: Trained, flops: int) -> dict[str, Any]:
    """What `train --json` and a run folder's record hold of a run that ends now, beside what all documents hold."""
    return {
        "recipe": trained.recipe.name,
        "dataset": trained.dataset.name,
        "dataset_digest": trained.dataset.digest,
        "published_dataset": trained.dataset.published,
        "seed": trained.seed,
        "engine": trained.engine,
        "threads": torch.get_num_threads(),
        "threads_limited_by": threads_limit(trained.network),
        "flops": flops,
        "tflops_per_s": flops / trained.result.train_s / 1e12,
        **{key: value for key, value in asdict(trained.result).items() if key != "logits"},
        "accuracy_on": eval_split(trained.recipe),
        "at": time.time(),
        "other_load": trained.other_load,
    }
