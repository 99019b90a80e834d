"""Run folders: the checkpoint, the record of the run, and the state to go on from. All are written atomically."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastcifar
from fastcifar import files
from fastcifar import recipe as recipes
from fastcifar.data import Dataset
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.recipe import Recipe
from fastcifar.step import build_network

CHECKPOINT, RECORD, STATE = "checkpoint.pt", "run.json", "state.pt"


def versions() -> dict[str, str]:
    """What a result depends on besides recipe, data, seed and device."""
    return {"fastcifar": fastcifar.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def create_run_folder(path: Path | None, recipe: str, seed: int, force: bool) -> Path:
    """A new folder for a run: `path`, or `runs/<recipe>-<seed>-<time>`.

    One that exists is only taken with `force`, and then emptied of an earlier run. Raises UsageError, or DataError
    where the folder cannot be written.
    """
    folder = path or Path("runs") / f"{recipe}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists; give another --out, or --force to write over the run in it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, RECORD, STATE):
            (folder / name).unlink(missing_ok=True)
        save_record(folder / RECORD, {})
        (folder / RECORD).unlink()
    except OSError as error:
        raise DataError(f"The run folder {folder} cannot be written: {error.strerror}; give another --out.") from None
    return folder


def save_record(path: Path, document: dict[str, Any]) -> None:
    """A JSON document; raises DataError where it cannot be written."""
    files.write_atomically(path, lambda file: file.write(json.dumps(document, indent=2).encode() + b"\n"))


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint keeps of its dataset: enough to know it again, and to prepare images for the network."""
    keys = ("name", "digest", "published", "classes", "mean", "std")
    return {key: list(value) if isinstance(value := getattr(dataset, key), tuple) else value for key in keys}


def save_checkpoint(
    path: Path,
    recipe: Recipe,
    network: nn.Module,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    metrics: dict[str, Any],
) -> None:
    """The trained weights with all that is needed to use them and to know where they came from."""
    files.save_tensors(
        path,
        "checkpoint",
        {
            "recipe": recipes.to_dict(recipe),
            "dataset": dataset_facts(dataset),
            "seed": seed,
            "device": device.type,
            "weights": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
            "metrics": metrics,
            "versions": versions(),
        },
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The tree that `save_checkpoint` wrote; raises DataError for a file that is missing, damaged or foreign."""
    keys = ("recipe", "dataset", "weights")
    return files.load_tensors(path / CHECKPOINT if path.is_dir() else path, "checkpoint", keys)


def recipe_of(tree: dict[str, Any], path: Path | str = "the checkpoint") -> Recipe:
    """The recipe kept in a checkpoint or state; raises DataError for one that would run code of somebody's own."""
    try:
        recipe = recipes.from_dict(tree["recipe"], where=str(path))
    except (KeyError, TypeError, FastcifarError) as error:
        raise DataError(f"The recipe in {path} cannot be used: {error}") from None
    for code in (recipe.network.factory, recipe.optimizer.factory):
        if code:
            raise DataError(
                f"The recipe in {path} names code ('{code}'), which is never run from a file with weights: build the "
                "network yourself and give it the file's `weights`."
            )
    return recipe


def network_of(tree: dict[str, Any], device: torch.device) -> nn.Module:
    """The network of a checkpoint with its weights, in evaluation mode; raises DataError where they do not fit."""
    recipe = recipe_of(tree)
    try:
        network = build_network(recipe, len(tree["dataset"]["classes"]), device)
        network.load_state_dict(tree["weights"])
    except (KeyError, TypeError, RuntimeError, AttributeError):
        raise DataError("The weights in the checkpoint do not fit its recipe: it is damaged.") from None
    return network.eval()


def remove_state(folder: Path) -> None:
    """Drop the state to go on from, once the run is finished."""
    (folder / STATE).unlink(missing_ok=True)
