"""How a step is executed: operator by operator, with compiled kernels, or as a CUDA graph that is replayed.

All engines train the same recipe: what differs is who launches which kernels, and rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch

from fastcifar.errors import FastcifarError, MachineError, UsageError, nearest
from fastcifar.model.augment import AugmentPlan
from fastcifar.model.kernels.build import library, private_folder, warn_not_kept
from fastcifar.recipes.parse import bind_overrides
from fastcifar.training.annotations import phase
from fastcifar.training.optim import Optimizer
from fastcifar.training.step import TrainState, forward_backward_update, train_step

ENGINES = ("eager", "compiled", "graph", "auto")
KERNELS = ("convolution", "norm_act", "augment")  # of the compiled engine on a CPU


def choose_engine(asked: str, device: torch.device) -> tuple[str, str]:
    """The engine that is going to run, and one sentence where `auto` could not take the one it wanted.

    Raises UsageError for a name that is none, MachineError with the reason where the named one cannot run here.
    """
    if asked not in ENGINES:
        raise UsageError(f"There is no engine '{asked}'; {nearest(asked, ENGINES)}")
    if asked == "auto":
        # On CUDA eager is what was measured so far; nobody has yet seen the others keep their promise there.
        if device.type != "cpu":
            return "eager", ""
        if missing := missing_requirement("compiled", device):
            return "eager", f"The eager engine runs, slower than the compiled one: {missing}."
        return "compiled", ""
    if missing := missing_requirement(asked, device):
        raise MachineError(f"The {asked} engine cannot run here: {missing}; use --engine eager.")
    return asked, ""


def bind_engines(asked: Iterable[str], names: Sequence[str], default: str) -> dict[str, str]:
    """The engine of each of several recipes: `name:engine` is for the one of that name, `engine` for all others.

    Raises UsageError for a name that is none of them.
    """
    general_first = sorted(asked, key=lambda each: ":" in each)
    return {name: [default, *given][-1] for name, given in bind_overrides(general_first, names, "--engine").items()}


def missing_requirement(engine: str, device: torch.device) -> str | None:
    """Why an engine cannot run on this device; None where it can."""
    if engine == "graph" and device.type != "cuda":
        return f"a CUDA graph needs a CUDA device, and this is {device.type}"
    if engine == "compiled" and device.type == "cpu":
        try:
            for name in KERNELS:
                library(name)
        except (FastcifarError, OSError) as error:
            return str(error)
    if engine == "compiled" and device.type == "cuda" and not has_triton():
        return "PyTorch's compiler needs Triton"
    if engine == "compiled" and device.type == "mps":
        return "there are no compiled kernels for an Apple GPU"
    return None


def has_triton() -> bool:
    """Whether Triton is installed, without importing it."""
    from importlib.util import find_spec

    return find_spec("triton") is not None


def start_engine(engine: str, training: TrainState) -> Callable[[], None]:
    """Prepare a training for an engine that `choose` gave; returns what makes one step.

    On a CPU compiled kernels are our own, for images, convolutions, pooling, norms and activations; on CUDA they are
    `torch.compile`'s.
    """
    if engine == "compiled" and training.device.type == "cpu":
        from fastcifar.model.kernels import convolution, norm_act
        from fastcifar.model.kernels.augment import augment_cpu

        library("augment")
        training.augment_images = augment_cpu
        convolution.install(training.network)
        norm_act.install(training.network)
    elif engine == "compiled":
        try:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder()))
        except OSError as error:
            warn_not_kept(error)
        training.network.compile(dynamic=False)
    elif engine == "graph":
        return Graphs(training).step
    return lambda: train_step(training)


class Graphs:
    """Steps as CUDA graphs, one for each key of step that comes more than once.

    The first step of a key runs as it is, which prepares all that a capture must not meet for the first time; the
    second is captured, and replayed from then on. Both count, so nothing has to be undone.
    """

    def __init__(self, training: TrainState) -> None:
        if not isinstance(training.optimizer, Optimizer):
            raise UsageError("An optimizer of one's own decides on the host: a CUDA graph cannot hold it.")
        self.training = training
        self.graphs: dict[Any, torch.cuda.CUDAGraph | None] = {}
        self.plan: AugmentPlan | None = None  # where the graphs read their batch's plan

    def step(self) -> None:
        """One update of the weights."""
        training = self.training
        with phase("optimizer"):
            training.optimizer.begin(training.step)
        with phase("data"):
            self.take(training.batch_plan())
        assert self.plan is not None
        key = training.graph_key(training.step)
        if key not in self.graphs:
            self.graphs[key] = None
            forward_backward_update(training, self.plan)
        else:
            if (graph := self.graphs[key]) is None:
                graph = self.graphs[key] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    forward_backward_update(training, self.plan)
            graph.replay()
        training.step += 1

    def take(self, part: AugmentPlan) -> None:
        """Copy a batch's plan to where the graphs read it; nothing leaves the device."""
        if self.plan is None:
            given = {item.name: getattr(part, item.name) for item in fields(part)}
            self.plan = AugmentPlan(**{name: tensor.clone() for name, tensor in given.items() if tensor is not None})
            return
        for item in fields(part):
            if (source := getattr(part, item.name)) is not None:
                getattr(self.plan, item.name).copy_(source)
