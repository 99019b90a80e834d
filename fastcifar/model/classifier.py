"""What a trained network makes of images: the test set, an image folder, or single files of any size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcifar.data.dataset import Dataset
from fastcifar.data.images import list_image_files, read_image
from fastcifar.errors import DataError, UsageError, nearest
from fastcifar.model import predict
from fastcifar.model.checkpoint import network_of, recipe_of

LIKELIEST = 5


class Classifier:
    """A network with what it needs to take images: their statistics, classes, and the way they are evaluated."""

    def __init__(self, checkpoint: dict[str, Any], device: torch.device, tta: str) -> None:
        facts = checkpoint["dataset"]
        self.network = network_of(checkpoint, device)
        self.dataset: str = facts["name"]
        self.digest: str = facts["digest"]
        self.classes: list[str] = facts["classes"]
        self.mean = torch.tensor(facts["mean"], dtype=torch.float32, device=device)
        self.std = torch.tensor(facts["std"], dtype=torch.float32, device=device)
        self.device = device
        self.recipe = recipe_of(checkpoint).evaluation
        self.tta = self.recipe.views if tta == "recipe" else tta
        if self.tta not in predict.VIEWS:
            raise UsageError(f"--tta is '{tta}'; {nearest(tta, ['recipe', *predict.VIEWS])}")
        if tta != "recipe":  # asked for by name: every image gets all of the views
            self.recipe = dataclasses.replace(self.recipe, views=self.tta, uncertain=1.0)  # type: ignore[arg-type]

    def logits(self, images: Tensor) -> Tensor:
        """Averaged logits (N, classes) of uint8 images (N, 3, 32, 32), on the CPU."""
        found = predict.infer(self.network, images.to(self.device), self.mean, self.std, self.recipe)
        return found.averaged.cpu()


@dataclass(frozen=True)
class LabelledImages:
    """Images to judge, uint8 (N, 3, 32, 32), with labels (N,) or with file names."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    files: tuple[str, ...] = ()


def from_dataset(dataset: Dataset, model: Classifier) -> LabelledImages:
    """The test images of a dataset with the model's classes."""
    if list(dataset.classes) != model.classes:
        raise UsageError(f"Dataset '{dataset.name}' has other classes than this network was trained on.")
    return LabelledImages(dataset.name, dataset.test.images, dataset.test.labels)


def from_files(paths: list[Path], model: Classifier) -> LabelledImages:
    """Image files of any size; or one folder of class folders, whose names are the labels."""
    folders = [path for path in paths if path.is_dir()]
    if len(paths) == 1 and folders:
        root = paths[0] / "test" if (paths[0] / "test").is_dir() else paths[0]  # an image folder with both splits
        classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        if classes:
            unknown = [name for name in classes if name not in model.classes]
            if unknown:
                raise DataError(
                    f"Folder {root / unknown[0]} is no class of this network; {nearest(unknown[0], model.classes)}"
                )
            files = [(path, model.classes.index(name)) for name in classes for path in list_image_files(root / name)]
            return LabelledImages(
                str(root), read_all([path for path, _ in files]), torch.tensor([label for _, label in files])
            )
        paths = list_image_files(root)
    elif folders:
        raise UsageError(f"{folders[0]} is a folder: give one folder, or single image files.")
    return LabelledImages("files", read_all(paths), files=tuple(str(path) for path in paths))


def read_all(paths: list[Path]) -> Tensor:
    """Images of any size as uint8 (N, 3, 32, 32)."""
    return torch.stack([read_image(path) for path in paths])


def evaluate_images(model: Classifier, subject: LabelledImages, per_class: bool, confusion: bool) -> dict[str, Any]:
    """The accuracy where labels are known, what else was asked for, and the likeliest classes of single files."""
    logits = model.logits(subject.images)
    found: dict[str, Any] = {"dataset": subject.name, "images": len(logits), "tta": model.tta, "accuracy": None}
    if subject.labels is not None:
        found["accuracy"] = predict.accuracy(logits, subject.labels)
        if per_class:
            found["per_class"] = dict(zip(model.classes, predict.per_class(logits, subject.labels), strict=True))
        if confusion:
            found["confusion"] = predict.confusion(logits, subject.labels)
    if subject.files:
        rows = zip(subject.files, logits.softmax(1), strict=True)
        found["predictions"] = [{"file": file, "classes": likeliest(model.classes, row)} for file, row in rows]
    return found


def likeliest(classes: list[str], probabilities: Tensor) -> list[dict[str, Any]]:
    """The likeliest classes of one image with their probabilities, best first."""
    best = probabilities.topk(min(LIKELIEST, len(classes)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"class": classes[index], "probability": value} for index, value in pairs]
