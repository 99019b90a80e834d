"""A checkpoint applied to images: the test set, an image folder, or single files of any size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.dataset import Dataset
from fastcifar.data.images import crop_and_resize, list_classes, list_images, read_images
from fastcifar.errors import DataError, UsageError, nearest
from fastcifar.model import predict
from fastcifar.model.checkpoint import network_of, recipe_of
from fastcifar.recipes.schema import Evaluation, Views

TOP = 5  # classes listed for a single image


@dataclass(frozen=True)
class Classifier:
    """A network with the classes and pixel statistics of its training images, and how it is evaluated."""

    network: nn.Module
    dataset: str
    classes: list[str]
    mean: Tensor  # float32 (3,), on the network's device, as `std`
    std: Tensor
    recipe: Evaluation

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of uint8 images (N, 3, 32, 32), averaged over their views, on the CPU."""
        logits = predict.infer(self.network, images.to(self.mean.device), self.mean, self.std, self.recipe)
        return logits.averaged.cpu()


def build_classifier(checkpoint: dict[str, Any], device: torch.device, views: Views | None = None) -> Classifier:
    """The classifier in a checkpoint, with the test-time augmentation of its recipe or with other `views`.

    Views chosen here are given to every image, also where the recipe gives them only to the least certain ones. Raises
    DataError where the checkpoint's parts are damaged or do not fit together.
    """
    network = network_of(checkpoint, device)
    recipe = recipe_of(checkpoint).evaluation
    if views is not None:
        recipe = replace(recipe, views=views, uncertain=1.0)
    facts = checkpoint["dataset"]
    try:
        mean, std = (torch.tensor(facts[key], dtype=torch.float32, device=device) for key in ("mean", "std"))
        return Classifier(network, facts["name"], facts["classes"], mean, std, recipe)
    except (KeyError, TypeError, ValueError):
        raise DataError("What the checkpoint says of its dataset is damaged.") from None


@dataclass(frozen=True)
class EvalSet:
    """Images to classify, uint8 (N, 3, 32, 32), with their labels, int64 (N,), or the names of their files."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    files: tuple[str, ...] = ()

    @classmethod
    def from_dataset(cls, dataset: Dataset, classes: list[str]) -> EvalSet:
        """The test images of a dataset; raises UsageError where its classes are not `classes`."""
        if list(dataset.classes) != classes:
            raise UsageError(f"Dataset '{dataset.name}' has other classes than this network was trained on.")
        return cls(dataset.name, dataset.test.images, dataset.test.labels)

    @classmethod
    def from_files(cls, paths: list[Path], classes: list[str]) -> EvalSet:
        """Image files of any size, or one folder: of image files, or of class folders, whose names are the labels.

        Of an image folder with both splits, the test images. Raises DataError for a folder that is none of `classes`
        and for a file that is no image, UsageError for a folder among other paths.
        """
        folders = [path for path in paths if path.is_dir()]
        if folders and len(paths) > 1:
            raise UsageError(f"{folders[0]} is a folder: give one folder, or single image files.")
        if folders:
            root = paths[0] / "test" if (paths[0] / "test").is_dir() else paths[0]
            if names := list_classes(root):
                return cls.from_class_folders(root, names, classes)
            paths = list_images(root)
        return cls("files", read_all(paths), files=tuple(map(str, paths)))

    @classmethod
    def from_class_folders(cls, root: Path, names: list[str], classes: list[str]) -> EvalSet:
        """The image files in the folders `names` of `root`, each labelled with its folder's place in `classes`."""
        if unknown := [name for name in names if name not in classes]:
            raise DataError(f"Folder {root / unknown[0]} is no class of this network; {nearest(unknown[0], classes)}")
        files = [(path, classes.index(name)) for name in names for path in list_images(root / name)]
        labels = torch.tensor([label for _, label in files])
        return cls(str(root), read_all([path for path, _ in files]), labels)


def read_all(paths: list[Path]) -> Tensor:
    """Image files of any size as uint8 (N, 3, 32, 32)."""
    return torch.from_numpy(read_images(paths, crop_and_resize))


def evaluate_images(classifier: Classifier, images: EvalSet, per_class: bool, confusion: bool) -> dict[str, Any]:
    """What `eval --json` holds of the images: accuracies where labels are known, else the top classes of each file."""
    logits = classifier.logits(images.images)
    report: dict[str, Any] = {
        "dataset": images.name,
        "images": len(logits),
        "tta": classifier.recipe.views,
        "accuracy": None,
    }
    if images.labels is not None:
        report["accuracy"] = predict.accuracy(logits, images.labels)
        if per_class:
            accuracies = predict.per_class(logits, images.labels)
            report["per_class"] = dict(zip(classifier.classes, accuracies, strict=True))
        if confusion:
            report["confusion"] = predict.confusion(logits, images.labels)
    if images.files:
        rows = zip(images.files, logits.softmax(1), strict=True)
        report["predictions"] = [{"file": file, "classes": top_classes(classifier.classes, row)} for file, row in rows]
    return report


def top_classes(classes: list[str], probabilities: Tensor) -> list[dict[str, Any]]:
    """The likeliest classes of one image with their probabilities, likeliest first."""
    best = probabilities.topk(min(TOP, len(classes)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"class": classes[index], "probability": value} for index, value in pairs]
