"""Run folders: the checkpoint, the record of the run, and the state to go on from. All are written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.dataset import Dataset
from fastcifar.errors import DataError, FastcifarError
from fastcifar.model.network import build_network
from fastcifar.recipes.parse import recipe_to_dict, stored_recipe
from fastcifar.recipes.schema import Recipe
from fastcifar.system import files
from fastcifar.version import versions

CHECKPOINT, RECORD, STATE = "checkpoint.pt", "run.json", "state.pt"


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
    logits: Tensor,
) -> None:
    """The trained weights with all that is needed to use them and to know where they came from.

    The `logits`, float32 (N, classes), of the images evaluated on are kept with their labels in the same file, so that
    one atomic write replaces both, and those of one run never stand beside the weights of another.
    """
    files.save_tensors(
        path,
        "checkpoint",
        {
            "recipe": recipe_to_dict(recipe),
            "dataset": dataset_facts(dataset),
            "seed": seed,
            "device": device.type,
            "weights": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
            "metrics": metrics,
            "evaluation": pack_evaluation(logits, dataset.test.labels),
            "versions": versions(),
        },
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The tree that `save_checkpoint` wrote; raises DataError for a file that is missing, damaged or foreign."""
    keys = ("recipe", "dataset", "weights")
    return files.load_tensors(path / CHECKPOINT if path.is_dir() else path, "checkpoint", keys)


def pack_evaluation(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Logits (N, classes) and labels (N,) as a checkpoint keeps them: half precision, and int32.

    Of each image's logits the largest is taken away, which changes no probability: near zero half precision is fine
    enough that the likeliest class stays the likeliest, and nothing overflows.
    """
    relative = logits - logits.amax(1, keepdim=True)
    return {"logits": relative.half(), "labels": labels.to(torch.int32)}


def kept_evaluation(tree: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Logits, float32 (N, classes), and labels, int64 (N,), of the images that a run was evaluated on.

    None for a checkpoint of an earlier version, which kept none. Raises DataError where they are damaged.
    """
    if "evaluation" not in tree:
        return None
    try:
        logits, labels = tree["evaluation"]["logits"].float(), tree["evaluation"]["labels"].long()
        classes = len(tree["dataset"]["classes"])
        if logits.shape != (len(labels), classes) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise DataError("The logits in the checkpoint are damaged.") from None
    return logits, labels


def recipe_of(tree: dict[str, Any], path: Path | str = "the checkpoint") -> Recipe:
    """The recipe kept in a checkpoint or state; raises DataError for one that would run code of somebody's own."""
    try:
        recipe = stored_recipe(tree["recipe"], where=str(path))
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


def load(path: str | Path, device: str = "cpu") -> nn.Module:
    """The trained network of a checkpoint that `fastcifar train` wrote, in evaluation mode, on `device`.

    It takes images (N, 3, 32, 32), normalised with the `mean` and `std` that stand in the checkpoint, in channels-last
    memory and the type of its parameters, and gives logits (N, classes). Raises DataError for a damaged checkpoint.
    """
    return network_of(load_checkpoint(Path(path)), torch.device(device))
