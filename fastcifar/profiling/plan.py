"""What `profile` was asked to measure: one recipe or checkpoint, or two recipes by turns, on which images."""

from __future__ import annotations

from pathlib import Path

import torch

from fastcifar.data.dataset import EMBEDDED, Dataset
from fastcifar.data.store import MissingDataset, load_dataset
from fastcifar.errors import MachineError, UsageError
from fastcifar.model.checkpoint import load_checkpoint, network_of, recipe_of
from fastcifar.profiling import profiler
from fastcifar.profiling.result import Profile
from fastcifar.profiling.targets import Subject, run_of, subject_of, with_batch
from fastcifar.recipes.parse import bind_overrides, default_recipe, load_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.system.device import is_oom, peak_memory
from fastcifar.training.engine import Engine, bind_engines, choose_engine


class Study:
    """The recipes with their settings, and the images; nothing is measured yet."""

    def __init__(
        self,
        name: str | None,
        versus: str | None,
        checkpoint: Path | None,
        settings: list[str],
        dataset: str | None,
        device: torch.device,
        batch: int | None,
        engines: list[str],
    ) -> None:
        self.device = device
        self.weights = None
        if checkpoint is not None:
            if name is not None or settings:
                raise UsageError("--checkpoint brings its recipe along: it takes no other recipe and no --set.")
            tree = load_checkpoint(checkpoint)
            self.weights = network_of(tree, device).state_dict()
            recipes, kept = [recipe_of(tree, checkpoint)], tree["dataset"]
            self.dataset = images(dataset, kept["name"])
            if len(self.dataset.classes) != len(kept["classes"]):
                raise UsageError(f"Dataset '{self.dataset.name}' has other classes than this network was trained on.")
        else:
            name = name or default_recipe(device.type)
            if versus is None:
                recipes = [load_recipe(name, *settings)]
            else:
                bound = bind_overrides(settings, ("a", "b"))
                recipes = [load_recipe(name, *bound["a"]), load_recipe(versus, *bound["b"])]
            self.dataset = images(dataset, "cifar10")
        self.asked = recipes
        self.recipes = [with_batch(each, batch, device) for each in recipes]
        chosen = bind_engines(engines, ("a", "b")[: len(recipes)], "eager")
        self.engines = [choose_engine(each, device) for each in chosen.values()]

    def introduction(self) -> str:
        """One line before the start, that says where less is measured than a training does."""
        names = " and ".join(dict.fromkeys(each.name for each in self.recipes))
        batches = sorted({each.training.batch_size for each in self.recipes})
        smaller = any(
            a.training.batch_size != b.training.batch_size for a, b in zip(self.asked, self.recipes, strict=True)
        )
        less = " (fewer than the recipe's; --batch changes it)" if smaller else ""
        return f"Profiling {names} on {self.dataset.name}: {' and '.join(map(str, batches))} images a step{less}"

    def subject(self, which: Recipe, engine: Engine) -> Subject:
        return subject_of(which, self.dataset, self.device, self.weights, engine)

    def measure(self, steps: int | None, whole_run: bool = False) -> list[Profile]:
        """The profiles, of a run's second step or of the mean of all its steps.

        Raises MachineError with a batch size that fits where the memory does not suffice.
        """
        sides = list(zip(self.recipes, self.engines, strict=True))
        try:
            if not whole_run:
                return profiler.measure([self.subject(*each) for each in sides], steps)
            runs = [run_of(which, self.dataset, self.device, self.weights, engine) for which, engine in sides]
            return profiler.measure_runs(runs, steps)
        except (MemoryError, RuntimeError) as error:
            if not is_oom(error):
                raise
        # Outside the handler: the error would keep alive what filled the memory.
        peak = peak_memory(self.device) / 2**30
        largest, engine = max(sides, key=lambda side: side[0].training.batch_size)
        fits = profiler.fitting_batch(
            lambda batch: self.subject(with_batch(largest, batch, self.device), engine),
            largest.training.batch_size,
        )
        raise MachineError(
            f"Out of memory on {self.device} with {largest.training.batch_size} images a step, where {peak:.1f} GiB "
            f"were in use at the peak: --batch {fits} fits."
        )


def images(asked: str | None, usual: str) -> Dataset:
    """The dataset asked for; or the usual one where it is here, else the embedded one: no time depends on what the
    images show."""
    if asked is not None:
        return load_dataset(asked)
    try:
        return load_dataset(usual)
    except MissingDataset:
        return load_dataset(EMBEDDED)
