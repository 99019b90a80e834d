"""Optimisation: Muon for filters, SGD with Nesterov momentum for the rest, and a moving average of the weights.

Learning rates come from a table on the device, one row a step, so that a step copies nothing from the host.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.recipes import schedule, schema
from fastcifar.recipes.plugins import UserCode, import_object
from fastcifar.training.annotations import update_of
from fastcifar.training.orthogonal import orthogonalize


@dataclass
class ParameterGroup:
    """Parameters that share their settings, and their momentum buffers (of the same shapes and types)."""

    name: str
    settings: schema.Sgd
    names: list[str]  # of the parameters, as the network has them
    parameters: list[Tensor]
    momenta: list[Tensor]
    trained_steps: int  # after so many steps nothing may move them
    column: int  # of its rate in the optimizer's table

    @property
    def muon(self) -> schema.Filters | None:
        """The settings, where they are Muon's."""
        settings = self.settings
        return settings if isinstance(settings, schema.Filters) and settings.method == "muon" else None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters; float32 where they have several."""
        dtypes = {parameter.dtype for parameter in self.parameters}
        return dtypes.pop() if len(dtypes) == 1 else torch.float32

    def gradients(self) -> list[Tensor]:
        """The gradients; one that backward never reached counts as zero."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]


# Moves the parameters of groups by their gradients, given the rates of all groups (float32, on the device) and whether
# this step rescales filters.
Move = Callable[[list[ParameterGroup], Tensor, bool], None]


class Optimizer:
    """One update of all parameters a call; what is frozen by its schedule loses its gradient and stays put."""

    def __init__(self, network: nn.Module, recipe: schema.Optimizer, steps: int) -> None:
        device = next(network.parameters()).device
        rates: list[list[float]] = []
        sections = recipe.sections()
        self.groups: list[ParameterGroup] = []
        for (name, share), named in parameter_groups(network, recipe.freeze).items():
            names, parameters = list(named), list(named.values())
            settings = sections[name]
            factors = schedule.over_steps(schedule.shortened(settings.schedule, share), steps)
            rates.append([settings.lr * factor for factor in factors])
            momenta = [torch.zeros_like(parameter) for parameter in parameters]
            trained_steps = schedule.trained_steps(factors)
            self.groups.append(
                ParameterGroup(name, settings, names, parameters, momenta, trained_steps, column=len(self.groups))
            )
        self.rates = torch.tensor(rates, dtype=torch.float32).T.contiguous().to(device)  # (steps, groups)
        self.now = torch.zeros(len(rates), device=device)  # the row of the current step
        self.filter_rates = rates[0]
        self.renormalize = renormalized_steps(recipe.filters.renormalize, steps)
        self.move: Move = plain_update  # an engine may put a faster one here

    def begin(self, step: int) -> None:
        """Before the forward pass of `step`: take up its rates, and what is no longer trained out of the graph."""
        self.now.copy_(self.rates[step])
        for group in self.groups:
            trained = step < group.trained_steps
            for parameter in group.parameters:
                parameter.requires_grad_(trained)
                if not trained:
                    parameter.grad = None

    def graph_key(self, step: int) -> Any:
        """What tells steps apart: which groups are trained, and whether filters are rescaled."""
        return tuple(step < group.trained_steps for group in self.groups), self.renormalize[step]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move all parameters by their gradients, and drop these."""
        trained = [group for group in self.groups if step < group.trained_steps]
        self.move(trained, self.now, self.renormalize[step])
        for group in trained:
            for parameter in group.parameters:
                parameter.grad = None

    def rate(self, step: int) -> float:
        """The learning rate of the filters (of the first group there is)."""
        return self.filter_rates[step]

    def state(self) -> list[list[Tensor]]:
        """The momentum buffers, for a checkpoint."""
        return [group.momenta for group in self.groups]

    def restore(self, state: list[list[Tensor]]) -> None:
        """Take up the buffers of `state`."""
        for group, momenta in zip(self.groups, state, strict=True):
            torch._foreach_copy_(group.momenta, momenta)

    def reset(self) -> None:
        """Begin anew, for another run of the same network: the momenta become zero, in place."""
        for group in self.groups:
            torch._foreach_zero_(group.momenta)


class ExternalOptimizer:
    """PyTorch optimizers of one's own, in the place of `Optimizer`: one, or one with the scheduler of its rates."""

    groups: tuple[ParameterGroup, ...] = ()  # nothing is known of what it freezes

    def __init__(self, given: Any, code: UserCode) -> None:
        """Take what a factory gave; raises UsageError where it is of another form."""
        if isinstance(given, tuple) and len(given) != 2:
            raise code.fault(f"gave a tuple of {len(given)}")
        self.optimizer, self.scheduler = given if isinstance(given, tuple) else (given, None)
        self.code = code
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise code.fault(f"gave no torch.optim.Optimizer but {type(self.optimizer).__name__}")
        if not callable(getattr(self.scheduler, "step", None)) and self.scheduler is not None:
            raise code.fault(f"gave no scheduler but {type(self.scheduler).__name__}")
        for part in filter(None, (self.optimizer, self.scheduler)):
            if not steps_without_arguments(part):
                raise code.fault(f"gave a {type(part).__name__}, whose step() needs arguments")

    def begin(self, step: int) -> None:
        """Nothing is frozen, and the scheduler has set the rates."""

    def graph_key(self, step: int) -> Any:
        """Nothing is known that tells steps apart."""

    def update(self, step: int) -> None:
        """Move all parameters by their gradients, drop these, and set the rates of the next step."""
        with self.code:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.scheduler is not None:
                self.scheduler.step()

    def rate(self, step: int) -> float:
        """The learning rate of the first group, as it is now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state(self) -> Any:
        """Both states, for a checkpoint."""
        return [self.optimizer.state_dict(), self.scheduler.state_dict() if self.scheduler is not None else {}]

    def restore(self, state: Any) -> None:
        """Take up the states of `state`."""
        self.optimizer.load_state_dict(state[0])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state[1])


def make_optimizer(network: nn.Module, recipe: schema.Optimizer, steps: int) -> Optimizer | ExternalOptimizer:
    """The optimizer of a recipe, ours or what the code that it names makes of (network, section, steps)."""
    if not recipe.factory:
        return Optimizer(network, recipe, steps)
    code = UserCode(
        recipe.factory,
        "it is called with the network, the recipe's optimizer section and the steps, and gives a "
        "torch.optim.Optimizer, or a tuple of one and its scheduler, which are stepped without arguments",
    )
    with code:
        given = import_object(recipe.factory)(network, recipe, steps)
    return ExternalOptimizer(given, code)


def steps_without_arguments(part: Any) -> bool:
    """Whether the `step` of an optimizer or scheduler needs no arguments, as far as its signature is known."""
    try:
        # The class's: schedulers put wrappers of another signature on the optimizer itself.
        inspect.signature(type(part).step).bind(part)
    except TypeError:
        return False
    except (AttributeError, ValueError):
        return True
    return True


SECTIONS = tuple(schema.Optimizer().sections())  # in the order of the groups


def parameter_groups(network: nn.Module, freeze: Sequence[float] = ()) -> dict[tuple[str, float], dict[str, Tensor]]:
    """Every trained parameter by its name, under the name of its section of the recipe and the share of the run in
    which it is trained: that of its conv group in `freeze`, where there is one; those trained longest come first."""
    members: dict[tuple[str, float], dict[str, Tensor]] = defaultdict(dict)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            members[section_of(name, parameter), trained_share(name, freeze)][name] = parameter
    return dict(sorted(members.items(), key=lambda item: (SECTIONS.index(item[0][0]), -item[0][1])))


def section_of(name: str, parameter: Tensor) -> str:
    """The section of the recipe that says how a parameter is trained."""
    if name == "whiten.bias":
        return "whiten_bias"
    if name == "head.weight":
        return "head"
    return "filters" if parameter.ndim > 1 else "biases"


def trained_share(name: str, freeze: Sequence[float]) -> float:
    """The share of the run in which a parameter is trained, given those of the conv groups (none: all of it); a
    projection, which feeds the first, ends with it."""
    layer = name.partition(".")[0]
    if not freeze or layer in ("whiten", "head"):
        return 1.0
    return freeze[0] if layer == "project" else freeze[int(layer.removeprefix("group")) - 1]


def renormalized_steps(every: schedule.Points, steps: int) -> list[bool]:
    """Whether each step rescales the filters: as soon as as many steps have passed as the schedule then says."""
    flags, last = [], -1
    for step in range(steps):
        flags.append(step - last >= int(schedule.value_at(every, (step + 1) / steps)))
        last = step if flags[-1] else last
    return flags


def plain_update(groups: list[ParameterGroup], now: Tensor, renormalize: bool) -> None:
    """A `Move` by PyTorch's operators, which work everywhere: the reference for faster ones."""
    # Operators over many tensors take a scalar on the device in one launch only if it has the tensors' type.
    rates = {dtype: now.to(dtype) for dtype in {group.dtype for group in groups}}
    for group in groups:
        rate = rates[group.dtype][group.column]
        with update_of(group.names):
            if settings := group.muon:
                muon(group, settings, rate, renormalize)
            else:
                sgd(group, rate)


def nesterov(group: ParameterGroup, gradients: list[Tensor]) -> list[Tensor]:
    """Take the gradients into the momentum and look ahead, as PyTorch's SGD does; returns the new directions."""
    momentum = group.settings.momentum
    torch._foreach_mul_(group.momenta, momentum)
    torch._foreach_add_(group.momenta, gradients)
    return list(torch._foreach_add(gradients, group.momenta, alpha=momentum))


def sgd(group: ParameterGroup, rate: Tensor) -> None:
    """SGD with Nesterov momentum and weight decay; `rate` is a scalar on the device."""
    gradients = group.gradients()
    if group.settings.weight_decay:
        gradients = list(torch._foreach_add(gradients, group.parameters, alpha=group.settings.weight_decay))
    directions = nesterov(group, gradients)
    torch._foreach_mul_(directions, rate)
    torch._foreach_sub_(group.parameters, directions)


def muon(group: ParameterGroup, settings: schema.Filters, rate: Tensor, renormalize: bool) -> None:
    """Muon (Jordan et al., 2024): the momentum's direction, orthogonalised, filter by filter.

    `renormalize` first scales each filter bank to the norm of one with unit rows, so that the update's share of the
    weights is the learning rate's alone (airbench94_muon).
    """
    directions = nesterov(group, group.gradients())
    if renormalize:
        factors = torch._foreach_reciprocal(torch._foreach_norm(group.parameters))
        torch._foreach_mul_(factors, [len(parameter) ** 0.5 for parameter in group.parameters])
        torch._foreach_mul_(group.parameters, factors)
    updates = orthogonalize(dict(zip(group.names, directions, strict=True)), settings.newton_schulz)
    torch._foreach_mul_(updates, rate)
    torch._foreach_sub_(group.parameters, updates)
    if settings.weight_decay:  # in half precision a change below 2.4e-4 of a weight is lost here
        torch._foreach_sub_(group.parameters, torch._foreach_mul(group.parameters, rate * settings.weight_decay))


class Ema:
    """An exponential moving average of a network's weights and running statistics, taken in place.

    The average begins as a copy of the network at the first update, so a new run finds nothing to reset.
    """

    def __init__(self, network: nn.Module, recipe: schema.Ema, steps: int) -> None:
        self.first = next((s for s in range(steps) if s >= recipe.start * steps and (s + 1) % recipe.every == 0), steps)
        self.every = recipe.every
        self.decay = recipe.decay
        self.sources = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        self.averages = [tensor.clone() for tensor in self.sources] if self.first < steps else []

    def graph_key(self, step: int) -> str:
        """What `update` does after a step: nothing, begin, or average."""
        if step < self.first or (step - self.first) % self.every:
            return "nothing"
        return "begin" if step == self.first else "average"

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the update of `step`: take the new weights in, where this step does."""
        kind = self.graph_key(step)
        if kind == "begin":
            torch._foreach_copy_(self.averages, self.sources)
        elif kind == "average":
            torch._foreach_lerp_(self.averages, self.sources, 1 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages in the network's place, for the evaluation at the end."""
        if self.averages:
            torch._foreach_copy_(self.sources, self.averages)
