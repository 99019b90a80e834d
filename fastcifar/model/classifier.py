"""A checkpoint applied to images: the test set, an image folder, arrays, or single files of any size."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.arrays import SUFFIXES, evaluation_pair, to_pixels
from fastcifar.data.coarse import COARSE_NAMES
from fastcifar.data.dataset import Dataset, Note, no_note
from fastcifar.data.folders import class_images, has_folders, split_folders
from fastcifar.data.images import crop_and_resize, read_images
from fastcifar.data.source import Reading, is_litter, list_images
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
    """Images to classify, uint8 (N, 3, 32, 32), with their labels, int64 (N,), if known, and their files, if any."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    files: tuple[str, ...] = ()

    @property
    def image_names(self) -> list[str]:
        """What each image is called: its file, else its row number."""
        return list(self.files) or [str(row) for row in range(len(self.images))]

    @classmethod
    def from_dataset(cls, dataset: Dataset, classes: list[str]) -> EvalSet:
        """The test images of a dataset; raises UsageError where its classes are not `classes`."""
        if list(dataset.classes) != classes:
            raise UsageError(f"Dataset '{dataset.name}' has other classes than this network was trained on.")
        return cls(dataset.name, dataset.test.images, dataset.test.labels)

    @classmethod
    def from_files(cls, paths: list[Path], classes: list[str], note: Note = no_note) -> EvalSet:
        """Image files of any size, one folder, or arrays in one `.npz` or in one or two `.npy` files.

        A folder holds image files, or class folders, whose names are the labels; of one with both splits, the test
        images are taken. `note` is given what was left out. Raises DataError for a folder that is none of `classes` and
        for a file that is no image, UsageError for a folder or arrays among other paths.
        """
        reading = Reading(resize=True)
        paths = without_litter(paths, reading)
        folders = [path for path in paths if path.is_dir()]
        if folders and len(paths) > 1:
            raise UsageError(f"{folders[0]} is a folder: give one folder, or single image files.")
        arrays = [path for path in paths if path.suffix.lower() in SUFFIXES and path not in folders]
        if arrays:
            return cls.from_arrays(paths, classes)
        if folders:
            images = cls.from_folder(folders[0], classes, reading)
        else:
            images = cls("files", read_all(paths), files=tuple(map(str, paths)))
        if left_out := reading.left_out.sentence():
            note(left_out)
        return images

    @classmethod
    def from_folder(cls, root: Path, classes: list[str], reading: Reading) -> EvalSet:
        """The images in a folder, with labels where they lie in class folders."""
        test = split_folders(root)[1] or root
        if not has_folders(test):
            files = list_images(test, reading.left_out)
            return cls(str(test), read_all(require_some(files, test)), files=tuple(map(str, files)))
        folders = class_images(test, reading.left_out)
        for name, inside in folders.items():
            if inside and name not in classes:
                raise DataError(f"Folder {test / name} is no class of this network; {nearest(name, classes)}")
        files = [path for inside in folders.values() for path in inside]
        labels = torch.tensor([classes.index(name) for name, inside in folders.items() for _ in inside])
        return cls(str(test), read_all(require_some(files, test)), labels, tuple(map(str, files)))

    @classmethod
    def from_arrays(cls, paths: list[Path], classes: list[str]) -> EvalSet:
        """Images, and labels if there are any, in arrays; labels are names or numbers of `classes`."""
        if len(paths) > 2 or (len(paths) == 2 and {path.suffix.lower() for path in paths} != {".npy"}):
            raise UsageError("Give one .npz file, or one .npy file of images and perhaps one of their labels.")
        pair = evaluation_pair(paths)
        images = torch.from_numpy(to_pixels(pair, Reading(resize=True)))
        if pair.labels is None:
            return cls(pair.where, images)
        numbers = {name: number for number, name in enumerate(classes)}
        if pair.labels.dtype.kind != "U":
            numbers = {str(number): number for number in range(len(classes))}
        if unknown := next((label for label in map(str, pair.labels.tolist()) if label not in numbers), None):
            raise DataError(f"{pair.where} has the label {unknown}, which is no class of this network.")
        return cls(pair.where, images, torch.tensor([numbers[str(label)] for label in pair.labels.tolist()]))


def without_litter(paths: list[Path], reading: Reading) -> list[Path]:
    """The paths without system files, which a `*` in the shell brings along; a path that is given alone is kept."""
    if len(paths) == 1:
        return paths
    litter = [path for path in paths if is_litter(path.name) and not path.is_dir()]
    for path in litter:
        reading.left_out.add("hidden or system files", path)
    return [path for path in paths if path not in litter]


def require_some(files: list[Path], folder: Path) -> list[Path]:
    """The files; raises DataError where there are none."""
    if not files:
        raise DataError(f"There is no image file in {folder}.")
    return files


def read_all(paths: list[Path]) -> Tensor:
    """Image files of any size as uint8 (N, 3, 32, 32)."""
    return torch.from_numpy(read_images(paths, crop_and_resize))


def evaluate_images(
    classifier: Classifier,
    images: EvalSet,
    logits: Tensor,
    per_class: bool = False,
    confusion: bool = False,
    coarse: Tensor | None = None,
    listed: int | None = None,
) -> dict[str, Any]:
    """What `eval --json` holds of the logits (N, classes) of the images.

    That is accuracies where labels are known, also over the superclasses where `coarse` gives the one of each class
    (`data.coarse`); else the top classes of each image, or of the first `listed`.
    """
    report: dict[str, Any] = {
        "dataset": images.name,
        "images": len(logits),
        "tta": classifier.recipe.views,
        "accuracy": None,
    }
    if images.labels is None:
        report["predictions"] = predictions(classifier.classes, images.image_names[:listed], logits[:listed])
        return report
    report |= measures(classifier.classes, logits, images.labels, per_class, confusion)
    if coarse is not None:
        grouped, labels = predict.group_logits(logits, coarse), coarse[images.labels]
        report["coarse"] = {"classes": COARSE_NAMES, **measures(COARSE_NAMES, grouped, labels, per_class, confusion)}
    return report


def measures(
    classes: Sequence[str], logits: Tensor, labels: Tensor, per_class: bool, confusion: bool
) -> dict[str, Any]:
    """Accuracy, and where asked for that of each class and the confusion matrix, of logits (N, classes)."""
    found: dict[str, Any] = {"accuracy": predict.accuracy(logits, labels)}
    if per_class:
        found["per_class"] = dict(zip(classes, predict.per_class(logits, labels), strict=True))
    if confusion:
        found["confusion"] = predict.confusion(logits, labels)
    return found


def predictions(classes: list[str], names: list[str], logits: Tensor) -> list[dict[str, Any]]:
    """The likeliest classes of each image with their probabilities, likeliest first."""
    best = logits.softmax(1).topk(min(TOP, len(classes)))
    rows = zip(names, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        {
            "file": name,
            "classes": [
                {"class": classes[index], "probability": value} for index, value in zip(indices, values, strict=True)
            ],
        }
        for name, indices, values in rows
    ]


def predictions_csv(classes: list[str], images: EvalSet, logits: Tensor) -> str:
    """A table with a row an image: its file or row number, its likeliest class, the probability of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", *classes])
    probabilities = logits.softmax(1)
    rows = zip(images.image_names, probabilities.argmax(1).tolist(), probabilities.tolist(), strict=True)
    writer.writerows([name, classes[best], *(f"{value:.6f}" for value in row)] for name, best, row in rows)
    return text.getvalue()
