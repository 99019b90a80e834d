"""The laboratory, for people who write code: load, change, train, look at every image. Public as `import fastcifar`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar import data, evaluate, machine, recipe, store, trainer
from fastcifar import engine as engines
from fastcifar.data import Dataset, Split
from fastcifar.errors import UsageError
from fastcifar.recipe import Recipe
from fastcifar.step import Training
from fastcifar.trainer import Result


def load(path: str | Path, device: str = "cpu") -> nn.Module:
    """The trained network of a checkpoint that `fastcifar train` wrote, in evaluation mode, on `device`.

    It takes images (N, 3, 32, 32), normalised with the `mean` and `std` that stand in the checkpoint, in channels-last
    memory and the type of its parameters, and gives logits (N, classes). Raises DataError for a damaged checkpoint.
    """
    return store.network_of(store.load_checkpoint(Path(path)), torch.device(device))


def load_recipe(name: str | Recipe, *settings: str) -> Recipe:
    """A recipe by its name or its file's path, or one to be changed, with settings such as `training.epochs=2`."""
    return recipe.change(name, settings) if isinstance(name, Recipe) else recipe.load(name, settings)


def load_dataset(name: str = "cifar10") -> Dataset:
    """A dataset on this machine: `shapes` always, others after `fastcifar download`; raises DataError elsewhere."""
    return data.load(name)


def subset(dataset: Dataset, keep: Tensor) -> Dataset:
    """The dataset with a part of its training images: a mask, bool (N,), or their rows, int64 (n,).

    The pixels' mean and standard deviation stay those of the whole.
    """
    train = Split(dataset.train.images[keep], dataset.train.labels[keep])
    if not len(train.images):
        raise UsageError("A subset of no images cannot be trained on.")
    name = f"{len(train.images):,} of {dataset.name}"
    digest = data.combine(data.digest_of(train), data.digest_of(dataset.test))
    return dataclasses.replace(dataset, name=name, train=train, digest=digest, published=False)


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
        found = evaluate.infer(self.network, images.to(device), mean, std, self.recipe.evaluation)
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
    images = data.hold_out(whole, chosen.data.holdout)
    place = machine.pick_device(device)
    machine.prepare(place, threads)
    with machine.memory_errors(place, chosen.training.batch_size):
        training = Training(chosen, images, place, seed, weights)
        result = trainer.train(training, images, engine=engines.choose(engine, place)[0])
    return Trained(training.network.eval(), result, chosen, images)
