"""fastcifar: train on CIFAR-10 in seconds, and see where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcifar.lab import Trained, load, load_dataset, load_recipe, subset, train
    from fastcifar.profiler import profile_module as profile

__version__ = "0.1.0"
__all__ = ["Trained", "load", "load_dataset", "load_recipe", "profile", "subset", "train"]

HOMES = {"profile": "profiler:profile_module"}  # of public names; the others live in `lab`


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = HOMES.get(name, f"lab:{name}").partition(":")
    return getattr(import_module(f"fastcifar.{module}"), attribute)
