"""Engines: how a step is executed: operator by operator, with compiled kernels, or as a replayed CUDA graph.

All engines train the same recipe; they differ in which kernels run, in who launches them, and in rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from fastcifar.errors import FastcifarError, MachineError, UsageError, nearest
from fastcifar.model.augment import AugmentPlan
from fastcifar.model.kernels.build import private_folder, warn_not_kept
from fastcifar.model.kernels.install import compile_kernels, install
from fastcifar.recipes.parse import bind_overrides
from fastcifar.training.annotations import phase
from fastcifar.training.optim import Optimizer
from fastcifar.training.step import TrainState, forward_backward_update, train_step

ENGINES = ("eager", "compiled", "graph", "auto")


@dataclass(frozen=True)
class Engine:
    """The eager engine: every operator is PyTorch's own, launched one by one. Base of the others."""

    note: str = ""  # one sentence for people, where `auto` could not take the engine it prefers
    name = "eager"

    def prepare(self, state: TrainState) -> Callable[[], None]:
        """Get a training state ready, in place; returns the function that makes one step of it."""
        return lambda: train_step(state)

    def missing(self, device: torch.device) -> str | None:
        """Why this engine cannot run on the device; None where it can."""
        return None


class CpuKernels(Engine):
    """The compiled engine on a CPU: our own C++ kernels for images, convolutions, pooling, norms, activations."""

    name = "compiled"

    def prepare(self, state: TrainState) -> Callable[[], None]:
        """Put the kernels in place of the layers they can compute. Raises MachineError where they do not compile."""
        state.augment_images = install(state.network).augment
        return lambda: train_step(state)

    def missing(self, device: torch.device) -> str | None:
        """The compiler's complaint, where the kernels cannot be compiled."""
        try:
            compile_kernels()
        except (FastcifarError, OSError) as error:
            return str(error)
        return None


class TorchCompile(Engine):
    """The compiled engine elsewhere: `torch.compile` of the network's forward and backward pass."""

    name = "compiled"

    def prepare(self, state: TrainState) -> Callable[[], None]:
        """Mark the network for compilation, which happens at its first step."""
        try:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder()))
        except OSError as error:
            warn_not_kept(error)
        state.network.compile(dynamic=False)
        return lambda: train_step(state)

    def missing(self, device: torch.device) -> str | None:
        """Triton, or a kind of device that we have compiled kernels for."""
        from importlib.util import find_spec

        if device.type == "mps":
            return "there are no compiled kernels for an Apple GPU"
        return None if find_spec("triton") else "PyTorch's compiler needs Triton"


class CudaGraph(Engine):
    """Steps captured as CUDA graphs and replayed: the host launches one graph a step instead of hundreds of kernels."""

    name = "graph"

    def prepare(self, state: TrainState) -> Callable[[], None]:
        """Graphs are captured while the run makes its first steps of each kind."""
        return GraphedSteps(state).step

    def missing(self, device: torch.device) -> str | None:
        """A CUDA device."""
        return None if device.type == "cuda" else f"a CUDA graph needs a CUDA device, and this is {device.type}"


EAGER = Engine()


def choose_engine(name: str, device: torch.device) -> Engine:
    """The engine of that name on this device; for `auto` the fastest that can run, with a `note` where it is not the
    preferred one.

    Raises UsageError for an unknown name, MachineError with the reason where the named engine cannot run here.
    """
    if name not in ENGINES:
        raise UsageError(f"There is no engine '{name}'; {nearest(name, ENGINES)}")
    compiled = CpuKernels() if device.type == "cpu" else TorchCompile()
    if name == "auto":
        # On CUDA only eager has been measured so far.
        if device.type != "cpu":
            return EAGER
        if missing := compiled.missing(device):
            return Engine(f"The eager engine runs, slower than the compiled one: {missing}.")
        return compiled
    engine = {"eager": EAGER, "compiled": compiled, "graph": CudaGraph()}[name]
    if missing := engine.missing(device):
        raise MachineError(f"The {name} engine cannot run here: {missing}; use --engine eager.")
    return engine


def bind_engines(options: Iterable[str], names: Sequence[str], default: str) -> dict[str, str]:
    """The engine's name for each of several recipes: `name:engine` is for the one of that name, `engine` for all
    others.

    Raises UsageError for a name that is none of them.
    """
    general_first = sorted(options, key=lambda option: ":" in option)
    bound = bind_overrides(general_first, names, "--engine")
    return {name: engines[-1] if engines else default for name, engines in bound.items()}


class GraphedSteps:
    """Steps as CUDA graphs, one for each kind of step that comes more than once.

    The first step of a kind runs as it is, which prepares all that a capture must not meet for the first time; the
    second is captured, and replayed from then on. Both count, so nothing has to be undone.
    """

    def __init__(self, state: TrainState) -> None:
        if not isinstance(state.optimizer, Optimizer):
            raise UsageError("An optimizer of one's own decides on the host: a CUDA graph cannot hold it.")
        self.state = state
        self.graphs: dict[Any, torch.cuda.CUDAGraph | None] = {}
        self.plan: AugmentPlan | None = None  # where the graphs read their batch's plan

    def step(self) -> None:
        """One update of the weights."""
        train_step(self.state, self.run)

    def run(self, state: TrainState, plan: AugmentPlan) -> None:
        """Forward, backward and update for the batch of `plan`: as it is, captured, or replayed."""
        with phase("data"):
            static = self.copy_in(plan)
        key = state.graph_key(state.step)
        if key not in self.graphs:
            self.graphs[key] = None
            forward_backward_update(state, static)
            return
        if (graph := self.graphs[key]) is None:
            graph = self.graphs[key] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                forward_backward_update(state, static)
        graph.replay()

    def copy_in(self, plan: AugmentPlan) -> AugmentPlan:
        """Copy a batch's plan to where the graphs read it, device to device."""
        if self.plan is None:
            tensors = {field.name: getattr(plan, field.name) for field in fields(plan)}
            self.plan = AugmentPlan(**{name: tensor.clone() for name, tensor in tensors.items() if tensor is not None})
        else:
            for field in fields(plan):
                if (source := getattr(plan, field.name)) is not None:
                    getattr(self.plan, field.name).copy_(source)
        return self.plan
