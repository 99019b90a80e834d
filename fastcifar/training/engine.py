"""Engines: how a step is executed: operator by operator, with kernels of our own, or as a replayed CUDA graph.

All engines train the same recipe; they differ in which kernels run, in who launches them, and in rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fastcifar.errors import FastcifarError, MachineError, UsageError, nearest
from fastcifar.model.kernels.install import compile_kernels, install, missing_triton
from fastcifar.model.kernels.triton_operators import runs_on
from fastcifar.recipes.parse import bind_overrides
from fastcifar.training.launch import GraphedSteps, Steps
from fastcifar.training.optim import Optimizer
from fastcifar.training.step import TrainState, loss_and_metrics

ENGINES = ("eager", "compiled", "graph", "auto")


@dataclass(frozen=True)
class Engine:
    """The eager engine: every operator is PyTorch's own, launched one by one. Base of the others."""

    note: str = ""  # one sentence for people, where `auto` could not take the engine it prefers
    checked: bool = False  # whether steps must agree with the eager engine's, which runs where they do not
    name = "eager"

    def install(self, state: TrainState) -> None:
        """Put the engine's kernels in place of what they compute, in a training state. Raises MachineError."""

    def steps(self, state: TrainState) -> Steps:
        """The steps of a state in which the kernels are installed."""
        return Steps(state)

    def prepare(self, state: TrainState) -> Steps:
        """Get a training state ready, in place: its steps, with all that happens once behind them."""
        self.install(state)
        steps = self.steps(state)
        steps.prepare()
        return steps

    def missing(self, device: torch.device) -> str | None:
        """Why this engine cannot run on the device; None where it can."""
        return None


class OwnKernels(Engine):
    """The compiled engine: our own kernels for images, convolutions, pooling, norms, activations, in C++ on a CPU and
    in Triton on CUDA."""

    name = "compiled"

    def install(self, state: TrainState) -> None:
        """Put the kernels in place of the layers they can compute. Raises MachineError where they do not compile."""
        installed = install(state.network, state.device)
        state.augment_images = installed.augment or state.augment_images
        if installed.loss_and_metrics is not None:
            state.loss_and_metrics = partial(installed.loss_and_metrics, loss_and_metrics)
        if runs_on(state.device) and isinstance(state.optimizer, Optimizer):
            from fastcifar.training import fused_update

            fused_update.install(state.optimizer)

    def missing(self, device: torch.device) -> str | None:
        """The compiler's complaint, where the kernels cannot be compiled; Triton; or kernels for such a device."""
        if device.type == "cuda":
            return missing_triton()
        if device.type != "cpu":
            return "there are no compiled kernels for an Apple GPU"
        try:
            compile_kernels()
        except (FastcifarError, OSError) as error:
            return str(error)
        return None


class CudaGraph(OwnKernels):
    """Steps with our own kernels, captured as CUDA graphs and replayed: the host launches one graph a step instead of
    hundreds of kernels."""

    name = "graph"

    def install(self, state: TrainState) -> None:
        """Our kernels where they can run; a graph can hold PyTorch's own as well."""
        if missing_triton() is None:
            super().install(state)

    def steps(self, state: TrainState) -> Steps:
        """See `GraphedSteps`. Raises UsageError for an optimizer of one's own."""
        return GraphedSteps(state)

    def missing(self, device: torch.device) -> str | None:
        """A CUDA device."""
        return None if device.type == "cuda" else f"a CUDA graph needs a CUDA device, and this is {device.type}"


EAGER = Engine()


def choose_engine(name: str, device: torch.device) -> Engine:
    """The engine of that name on this device; for `auto` the fastest that can run, with a `note` where it is not the
    preferred one.

    On CUDA that is the graph engine, which has to agree with the eager one while it prepares. Raises UsageError for an
    unknown name, MachineError with the reason where the named engine cannot run here.
    """
    if name not in ENGINES:
        raise UsageError(f"There is no engine '{name}'; {nearest(name, ENGINES)}")
    if name == "auto":
        if device.type == "cuda":
            return CudaGraph(checked=True)
        if device.type != "cpu":
            return EAGER
        if missing := OwnKernels().missing(device):
            return Engine(f"The eager engine runs, slower than the compiled one: {missing}.")
        return OwnKernels()
    engine = {"eager": EAGER, "compiled": OwnKernels(), "graph": CudaGraph()}[name]
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
