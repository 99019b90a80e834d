"""Trainings made ready: all that happens once happens before a run, and serves the runs of all seeds."""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict

import torch
from torch import Tensor

from fastcifar.data.dataset import Dataset
from fastcifar.errors import FastcifarWarning, MachineError
from fastcifar.recipes.schema import Recipe
from fastcifar.training.engine import EAGER, Engine
from fastcifar.training.launch import Steps
from fastcifar.training.self_check import check_steps
from fastcifar.training.step import DeviceData, TrainState

KEPT = 8  # prepared trainings, of which each holds a network, its momenta and, on CUDA, the memory of its graphs
FREE = 0.3  # of a GPU's memory, below which they are given up


class PreparedTraining:
    """A recipe that is ready to train on a dataset, from one seed after another.

    `steps` are the engine's; `engine` is the one given, or the eager one where that has to agree with it and does not.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: torch.device,
        engine: Engine,
        seed: int,
        weights: Tensor | None = None,
        data: DeviceData | None = None,
    ) -> None:
        self.recipe, self.dataset, self.device = recipe, dataset, device
        self.weights = weights
        self.data = data or DeviceData(dataset, recipe.data.holdout, device)
        self.engine = engine
        self.prepare(seed)

    def prepare(self, seed: int) -> None:
        """Make a state for the seed and have the engine prepare it."""
        self.seed: int | None = seed  # for which the state is fresh
        if not self.engine.checked:
            self.steps = self.engine.prepare(self.new_state(seed))
            return
        steps, reason = self.checked_steps(seed)
        if steps is None:
            warnings.warn(f"The eager engine runs in place of {self.engine.name}: {reason}.", FastcifarWarning, 2)
            self.engine = EAGER
            steps = EAGER.prepare(self.new_state(seed))
        self.steps = steps

    def checked_steps(self, seed: int) -> tuple[Steps | None, str]:
        """The steps of an engine, or None and the reason where they cannot be had or are not the eager engine's."""
        try:
            steps = self.engine.prepare(self.new_state(seed))
            found = check_steps(steps)
        except (RuntimeError, MachineError) as error:  # of drivers, compilers, memory
            return None, str(error).splitlines()[0].rstrip(".")
        return (steps, "") if found.agrees else (None, found.complaint())

    def new_state(self, seed: int) -> TrainState:
        """A fresh state of plain operators."""
        return TrainState(self.recipe, self.dataset, self.device, seed, self.weights, self.data)

    def begin(self, seed: int) -> Steps:
        """The steps of a run from this seed, as those of a fresh process."""
        if self.seed != seed:
            if self.steps.state.resettable:
                self.steps.state.reset(seed)
            else:
                self.prepare(seed)
        self.seed = None
        return self.steps


class PreparedTrainings:
    """The prepared trainings of a bench or search: one a recipe and engine, the images on the device once."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.data: dict[int, DeviceData] = {}  # by how many images are held out
        self.kept: OrderedDict[tuple[Recipe, Engine], PreparedTraining] = OrderedDict()  # the latest used at the end

    def get(self, recipe: Recipe, engine: Engine, seed: int) -> PreparedTraining:
        """The training of a recipe, prepared now (for this seed) or earlier; those not used for longest are given up
        where memory is short."""
        key = recipe, engine
        if key not in self.kept:
            while self.kept and (len(self.kept) >= KEPT or self.memory_is_short()):
                self.kept.popitem(last=False)
                gc.collect()  # networks and graphs refer to themselves
            holdout = recipe.data.holdout
            if holdout not in self.data:
                self.data[holdout] = DeviceData(self.dataset, holdout, self.device)
            self.kept[key] = PreparedTraining(recipe, self.dataset, self.device, engine, seed, data=self.data[holdout])
        self.kept.move_to_end(key)
        return self.kept[key]

    def memory_is_short(self) -> bool:
        """Whether a GPU has little memory left, beside what PyTorch keeps for reuse."""
        if self.device.type != "cuda":
            return False
        free, total = torch.cuda.mem_get_info(self.device)
        reusable = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + reusable < FREE * total
