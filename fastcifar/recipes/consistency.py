"""Whether the keys of a recipe go together: what depends on more than one of them, and schedules."""

from __future__ import annotations

from fastcifar.errors import UsageError
from fastcifar.recipes import schedule
from fastcifar.recipes.schema import SIDE, SMALLEST_SIDE, Recipe, shrinkage


def check_whole(recipe: Recipe, where: str) -> None:
    """Raise UsageError where keys contradict each other; `where` says in the message what was read."""
    check_layers(recipe, where)
    check_sizes(recipe, where)
    check_optimizer(recipe, where)
    check_schedules(recipe, where)


def check_layers(recipe: Recipe, where: str) -> None:
    """The lists of the network, which speak of the same groups, and its whitening."""
    network = recipe.network
    if len(network.widths) != len(network.convs) or not network.widths:
        raise UsageError(f"In {where}, 'network.widths' and 'network.convs' must be lists of the same, nonzero length.")
    if len(network.widths) > 4:
        raise UsageError(f"In {where}, 'network.widths' names more than 4 groups: each halves the 32 pixels.")
    if network.kernels and tuple(map(len, network.kernels)) != network.convs:
        example = [[3] * convs for convs in network.convs]
        raise UsageError(
            f"In {where}, 'network.kernels' must name one kernel size for each of 'network.convs', for example "
            f"{example}, or be empty."
        )
    if network.whiten.filters > network.whiten.all_filters:
        raise UsageError(
            f"In {where}, 'network.whiten.filters' is {network.whiten.filters}, but a 'network.whiten.kernel' of "
            f"{network.whiten.kernel} has only {network.whiten.all_filters}."
        )
    if network.bottlenecks and len(network.bottlenecks) != len(network.widths):
        raise UsageError(
            f"In {where}, 'network.bottlenecks' must name one number of channels for each of 'network.widths', for "
            f"example {list(network.widths)}, or be empty."
        )
    if network.bottlenecks and all(convs < 3 for convs in network.convs):
        raise UsageError(
            f"In {where}, 'network.bottlenecks' needs a group of at least 3 convolutions in 'network.convs': it lies "
            "between those behind the first."
        )
    if network.residual and any(shrinkage(size) for sizes in network.kernels for size in sizes[1:]):
        raise UsageError(
            f"In {where}, 'network.residual' needs odd 'network.kernels' behind the first of a group: even ones shrink "
            "the map."
        )


def check_sizes(recipe: Recipe, where: str) -> None:
    """Batches in whole ghost batches, and images large enough for all groups."""
    network = recipe.network
    if network.norm.ghost and recipe.training.batch_size % network.norm.ghost:
        raise UsageError(f"In {where}, 'training.batch_size' must be a multiple of 'network.norm.ghost'.")
    if any(not SMALLEST_SIDE <= side <= SIDE for _, side in recipe.data.resolution):
        raise UsageError(f"In {where}, 'data.resolution' must lie in {SMALLEST_SIDE}..{SIDE} pixels everywhere.")
    smallest = round(min((side for _, side in recipe.data.resolution), default=SIDE))
    if network.last_side(smallest) < 1 and not network.factory:
        raise UsageError(
            f"In {where}, nothing is left of images of {smallest} pixels after {len(network.widths)} groups: take "
            "larger images, fewer 'network.widths' or smaller kernels ('network.whiten.kernel', 'network.kernels')."
        )


def check_optimizer(recipe: Recipe, where: str) -> None:
    """What is frozen, and the lists and schedules of Muon."""
    network, filters = recipe.network, recipe.optimizer.filters
    freeze = recipe.optimizer.freeze
    if freeze and (len(freeze) != len(network.widths) or list(freeze) != sorted(freeze)):
        raise UsageError(
            f"In {where}, 'optimizer.freeze' must name one fraction of the run for each of 'network.widths', none "
            f"smaller than the one before, for example {[0.8] + [1.0] * (len(network.widths) - 1)}, or be empty."
        )
    if freeze and (network.factory or recipe.optimizer.factory):
        raise UsageError(f"In {where}, 'optimizer.freeze' works with fastcifar's own network and optimizer only.")
    if any(len(polynomial) != 3 for polynomial in filters.newton_schulz):
        raise UsageError(f"In {where}, 'optimizer.filters.newton_schulz' needs three numbers [a, b, c] an iteration.")
    if any(value < 1 for _, value in filters.renormalize):
        raise UsageError(f"In {where}, 'optimizer.filters.renormalize' must be at least 1 everywhere.")


def check_schedules(recipe: Recipe, where: str) -> None:
    """The points of every schedule."""
    schedules = {f"optimizer.{name}.schedule": part.schedule for name, part in recipe.optimizer.sections().items()}
    for name, points in {
        **schedules,
        "optimizer.filters.renormalize": recipe.optimizer.filters.renormalize,
        "data.resolution": recipe.data.resolution,
    }.items():
        if problem := schedule.check(points):
            raise UsageError(f"In {where}, '{name}' {problem}.")
