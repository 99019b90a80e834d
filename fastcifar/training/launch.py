"""How the steps of a run and its evaluation are launched: operator by operator, or as CUDA graphs captured beforehand,
one for each kind of step and one for the evaluation.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from fastcifar.errors import UsageError
from fastcifar.model.augment import AugmentPlan
from fastcifar.model.predict import Logits
from fastcifar.training.annotations import phase
from fastcifar.training.optim import Optimizer
from fastcifar.training.step import TrainState, forward_backward_update, train_step

WARM_UP_RUNS = 2  # of each kind of step: at the first cuDNN chooses algorithms and kernels are loaded


class Steps:
    """The steps and the final evaluation of a training state, launched operator by operator."""

    def __init__(self, state: TrainState) -> None:
        self.state = state

    def step(self) -> None:
        """One update of the weights."""
        train_step(self.state)

    def evaluate(self) -> Logits:
        """The evaluation at the end of a run."""
        return self.state.evaluate(self.state.recipe.evaluation)

    def prepare(self) -> None:
        """Let everything happen that happens once, and leave the state as it was: on CUDA the first whitening, step of
        each kind and evaluation take seconds more than others, elsewhere nothing."""
        if self.state.device.type != "cuda":
            return
        with self.state.preserved():
            self.state.whiten()
            for steps in self.state.kinds().values():
                self.warm_up(steps[0])
            self.evaluate()

    def warm_up(self, step: int) -> None:
        """Make the step of that number twice."""
        state = self.state
        state.network.train()
        for _ in range(WARM_UP_RUNS):
            state.step = step
            train_step(state)


class GraphedSteps(Steps):
    """The steps and the final evaluation of a training state, each a replayed CUDA graph.

    The graphs share one pool of memory: they never run at the same time. The logits of the evaluation lie in it, and
    hold until the next step.
    """

    def __init__(self, state: TrainState) -> None:
        if not isinstance(state.optimizer, Optimizer):
            raise UsageError("An optimizer of one's own decides on the host: a CUDA graph cannot hold it.")
        super().__init__(state)
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(state.device)  # type: ignore[no-untyped-call]  # no capture on the default stream
        self.graphs: dict[Any, torch.cuda.CUDAGraph] = {}
        self.plan: AugmentPlan | None = None  # where the graphs read their batch's plan
        self.evaluation: tuple[torch.cuda.CUDAGraph, Logits] | None = None

    def prepare(self) -> None:
        """Capture a step of every kind and the evaluation, each after it has run uncaptured."""
        before = torch.cuda.current_stream(self.state.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream), self.state.preserved():
            self.state.whiten()
            for key, steps in self.state.kinds().items():
                self.graphs[key] = self.capture_step(steps[0])
            super().evaluate()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                logits = super().evaluate()
            self.evaluation = graph, logits
        before.wait_stream(self.stream)

    def capture_step(self, step: int) -> torch.cuda.CUDAGraph:
        """The graph of the device's part of the step of that number, made after it has run on the very same tensors:
        kernels are compiled and chosen by how these lie, too. The capture itself changes no weight."""
        state = self.state
        state.network.train()
        state.step = step
        state.optimizer.begin(step)
        plan = self.copy_in(state.batch_plan())
        for _ in range(WARM_UP_RUNS):
            forward_backward_update(state, plan)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            forward_backward_update(state, plan)
        return graph

    def step(self) -> None:
        """One update of the weights."""
        train_step(self.state, self.replay)

    def replay(self, state: TrainState, plan: AugmentPlan) -> None:
        """Forward, backward and update for the batch of `plan`."""
        with phase("data"):
            self.copy_in(plan)
        self.graphs[state.graph_key(state.step)].replay()

    def evaluate(self) -> Logits:
        """The evaluation at the end of a run."""
        assert self.evaluation is not None
        graph, logits = self.evaluation
        self.state.network.eval()
        graph.replay()
        return logits

    def copy_in(self, plan: AugmentPlan) -> AugmentPlan:
        """Copy a batch's plan to where the graphs read it, device to device."""
        if self.plan is None:
            self.plan = plan.changed(torch.clone)
        else:
            for field in fields(plan):
                if (source := getattr(plan, field.name)) is not None:
                    getattr(self.plan, field.name).copy_(source)
        return self.plan
