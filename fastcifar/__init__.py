"""fastcifar: train on CIFAR-10 in seconds, and see where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastcifar.system.processors import set_wait_policy
from fastcifar.version import __version__

if TYPE_CHECKING:
    from fastcifar.data.dataset import subset
    from fastcifar.data.store import load_dataset
    from fastcifar.model.checkpoint import load
    from fastcifar.profiling.profiler import profile_module as profile
    from fastcifar.recipes.parse import load_recipe
    from fastcifar.training.run import Trained, train

__all__ = ["Trained", "__version__", "load", "load_dataset", "load_recipe", "profile", "subset", "train"]

set_wait_policy()  # before torch is loaded, by whoever imports it

HOMES = {  # of the public names
    "Trained": "training.run",
    "load": "model.checkpoint",
    "load_dataset": "data.store",
    "load_recipe": "recipes.parse",
    "profile": "profiling.profiler:profile_module",
    "subset": "data.dataset",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: torch takes seconds."""
    if name not in HOMES:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = HOMES[name].partition(":")
    return getattr(import_module(f"fastcifar.{module}"), attribute or name)
