"""Shell completion of recipes, datasets and recipe keys: what can follow what is typed already, without torch."""

from __future__ import annotations

import glob

DATASETS = ("cifar10", "cifar100", "shapes")  # can be named before they are on this machine


def complete_recipe(incomplete: str) -> list[str]:
    """Built-in recipes, and TOML files once something is typed; also behind the `NAME=` of a bench."""
    from fastcifar.recipes.parse import recipe_names

    name, equals, typed = incomplete.rpartition("=")
    files = sorted(glob.glob(f"{glob.escape(typed)}*.toml")) if typed else []
    return [f"{name}{equals}{recipe}" for recipe in (*recipe_names(), *files)]


def complete_dataset(incomplete: str) -> list[str]:
    """The datasets in FASTCIFAR_HOME, and those that can be downloaded or are embedded."""
    from fastcifar.errors import FastcifarError
    from fastcifar.system.files import dataset_files

    try:
        stored = [path.stem for path in dataset_files()]
    except FastcifarError:  # no home can be made: a command says so, completion stays silent
        stored = []
    return sorted({*DATASETS, *stored})


def complete_setting(incomplete: str) -> list[str]:
    """The keys of a recipe with `=`, also behind the `NAME:` of one of several recipes."""
    from fastcifar.recipes.parse import recipe_keys

    name, colon, _ = incomplete.rpartition(":")
    return [f"{name}{colon}{key}=" for key in recipe_keys()]
