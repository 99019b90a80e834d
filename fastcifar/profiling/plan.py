"""The plan of a profile: one recipe or checkpoint, or two recipes interleaved, on which images and engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastcifar.data.dataset import EMBEDDED, Dataset
from fastcifar.data.store import MissingDataset, load_dataset
from fastcifar.errors import MachineError, UsageError
from fastcifar.model.checkpoint import load_checkpoint, network_of, recipe_of
from fastcifar.profiling.recording import Recording, mean_step, record
from fastcifar.profiling.targets import ProfileTarget, recipe_target, run_targets, with_batch
from fastcifar.recipes.parse import bind_overrides, default_recipe, load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.system.device import is_oom, peak_memory
from fastcifar.training.engine import Engine

SIDES = ("a", "b")  # of a comparison


@dataclass(frozen=True)
class ProfilePlan:
    """One recipe, or two to compare, each with its engine; the batch size in a recipe is the one to be measured."""

    recipes: list[Recipe]
    engines: list[Engine]
    dataset: Dataset
    device: torch.device
    fewer_images: bool  # than a recipe's own batch size
    network_state: dict[str, Tensor] | None = None  # of a checkpoint

    def introduction(self) -> str:
        """One line before the start, which says so where a step has fewer images than in a training."""
        names = " and ".join(dict.fromkeys(recipe.name for recipe in self.recipes))
        batches = " and ".join(map(str, sorted({recipe.training.batch_size for recipe in self.recipes})))
        fewer = " (fewer than the recipe's; --batch changes it)" if self.fewer_images else ""
        return f"Profiling {names} on {self.dataset.name}: {batches} images a step{fewer}"

    def target(self, recipe: Recipe, engine: Engine) -> ProfileTarget:
        """The step to be measured of one recipe."""
        return recipe_target(recipe, self.dataset, self.device, engine, self.network_state)

    def measure(self, steps: int | None, whole_run: bool = False) -> list[Recording]:
        """A recording for each recipe, of the second step of its run; with `whole_run`, of the mean step of the run.

        Raises MachineError with a batch size that fits where memory does not suffice.
        """
        try:
            return self.measure_mean_steps(steps) if whole_run else self.measure_steps(steps)
        except (MemoryError, RuntimeError) as error:
            if not is_oom(error):
                raise
        # Outside the handler: the error would keep alive what filled the memory.
        raise self.out_of_memory()

    def measure_steps(self, steps: int | None) -> list[Recording]:
        """A recording for each recipe, of the second step of its run."""
        return record([self.target(*side) for side in zip(self.recipes, self.engines, strict=True)], steps)

    def measure_mean_steps(self, steps: int | None) -> list[Recording]:
        """A recording for each recipe, of the mean step of its run."""
        runs = [
            run_targets(recipe, self.dataset, self.device, engine, self.network_state)
            for recipe, engine in zip(self.recipes, self.engines, strict=True)
        ]
        recordings = iter(record([target for run in runs for target, _ in run], steps))
        return [mean_step([next(recordings) for _ in run], [share for _, share in run]) for run in runs]

    def out_of_memory(self) -> MachineError:
        """The error that names a batch size whose step does run."""
        peak = peak_memory(self.device) / 2**30
        sides = zip(self.recipes, self.engines, strict=True)
        recipe, engine = max(sides, key=lambda side: side[0].training.batch_size)
        fits = batch = recipe.training.batch_size
        while fits > 1:
            fits //= 2
            if self.fits(with_batch(recipe, fits, self.device), engine):
                break
        return MachineError(
            f"Out of memory on {self.device} with {batch} images a step, where {peak:.1f} GiB were in use at the peak: "
            f"--batch {fits} fits."
        )

    def fits(self, recipe: Recipe, engine: Engine) -> bool:
        """Whether memory suffices for one step."""
        try:
            self.target(recipe, engine).run()
        except (MemoryError, RuntimeError) as error:
            if not is_oom(error):
                raise
            return False
        return True


def plan_recipes(
    names: Sequence[str | None],
    overrides: Sequence[str],
    dataset: str | None,
    device: torch.device,
    engines: Sequence[Engine],
    batch: int | None = None,
) -> ProfilePlan:
    """The plan to profile one recipe, or to compare two; None names the default recipe of the device and the dataset.

    In a comparison `overrides` (`section.key=value`) of one side begin with `a:` or `b:`. `engines` are one for each.
    """
    images = find_images(dataset, "cifar10")
    default = default_recipe(device.type, images.name)
    if len(names) == 1:
        recipes = [load_recipe(names[0] or default, *overrides)]
    else:
        bound = bind_overrides(overrides, SIDES)
        recipes = [load_recipe(name or default, *bound[side]) for name, side in zip(names, SIDES, strict=True)]
    return make_plan(recipes, images, device, engines, batch)


def plan_checkpoint(
    path: Path, dataset: str | None, device: torch.device, engine: Engine, batch: int | None = None
) -> ProfilePlan:
    """The plan to profile the network of a checkpoint with its recipe and weights."""
    tree = load_checkpoint(path)
    network_state = network_of(tree, device).state_dict()
    images = find_images(dataset, tree["dataset"]["name"])
    if len(images.classes) != len(tree["dataset"]["classes"]):
        raise UsageError(f"Dataset '{images.name}' has other classes than this network was trained on.")
    return make_plan([recipe_of(tree, path)], images, device, [engine], batch, network_state)


def make_plan(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    device: torch.device,
    engines: Sequence[Engine],
    batch: int | None,
    network_state: dict[str, Tensor] | None = None,
) -> ProfilePlan:
    """The plan with the batch size that is going to be measured."""
    measured = [with_batch(recipe, batch, device) for recipe in recipes]
    fewer = any(m.training.batch_size < own.training.batch_size for m, own in zip(measured, recipes, strict=True))
    return ProfilePlan(measured, list(engines), dataset, device, fewer, network_state)


def find_images(name: str | None, usual: str) -> Dataset:
    """The named dataset; None: the usual one where it is on this machine, else the embedded one, because no time
    depends on what the images show."""
    if name is not None:
        return load_dataset(name)
    try:
        return load_dataset(usual)
    except MissingDataset:
        return load_dataset(EMBEDDED)
