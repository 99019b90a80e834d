"""`fastcifar eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fastcifar.cli.completion import complete_dataset
from fastcifar.cli.options import AsJson, Device, Quiet, Threads, document, load_or_download
from fastcifar.errors import UsageError
from fastcifar.recipes.schema import Views

Tta = Literal["recipe", Views]


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or a folder of images or of class folders; by default the test set."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Evaluate on the test set of this dataset.", autocompletion=complete_dataset)
    ] = None,
    tta: Annotated[Tta, typer.Option(help="Test-time augmentation.")] = "recipe",
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the accuracy of each class.")] = False,
    confusion: Annotated[bool, typer.Option("--confusion", help="Show the confusion matrix.")] = False,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint: on the test set, on an image folder, or on single images.

    Example: fastcifar eval runs/tiny-0-20261124-120000 --per-class
    """
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.training import evaluation_report
    from fastcifar.model.checkpoint import load_checkpoint
    from fastcifar.model.classifier import EvalSet, build_classifier, evaluate_images
    from fastcifar.system.device import device_name, pick_device, prepare_device

    if images and dataset:
        raise UsageError("Images and --dataset exclude each other: one thing is evaluated at a time.")
    screen = Screen(as_json, quiet)
    chosen_device = pick_device(device)
    prepare_device(chosen_device, threads)
    classifier = build_classifier(load_checkpoint(checkpoint), chosen_device, None if tta == "recipe" else tta)
    if images:
        eval_set = EvalSet.from_files(images, classifier.classes)
    else:
        test_images = load_or_download(dataset or classifier.dataset, screen)
        eval_set = EvalSet.from_dataset(test_images, classifier.classes)
    result = {
        **document("eval", device_name(chosen_device)),
        "checkpoint": str(checkpoint),
        **evaluate_images(classifier, eval_set, per_class, confusion),
    }
    screen.result(evaluation_report(result, classifier.classes), result)
