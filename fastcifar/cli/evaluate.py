"""`fastcifar eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.cli.options import AsJson, Device, Quiet, Threads, document, load_or_download
from fastcifar.errors import UsageError


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or a folder; the test set by default.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Another dataset than the one trained on.")] = None,
    tta: Annotated[str, typer.Option(help="Test-time augmentation: recipe, none, flip or full.")] = "recipe",
    per_class: Annotated[bool, typer.Option("--per-class", help="The accuracy on each class.")] = False,
    confusion: Annotated[bool, typer.Option("--confusion", help="Which class was taken for which.")] = False,
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
    from fastcifar.model import classifier as inspection
    from fastcifar.model.checkpoint import load_checkpoint
    from fastcifar.system.device import device_name, pick_device, prepare_device

    screen = Screen(as_json, quiet)
    place = pick_device(device)
    prepare_device(place, threads)
    model = inspection.Classifier(load_checkpoint(checkpoint), place, tta)
    if images and dataset:
        raise UsageError("Images and --dataset exclude each other: one thing is evaluated at a time.")
    if images:
        subject = inspection.from_files(images, model)
    else:
        subject = inspection.from_dataset(load_or_download(dataset or model.dataset, screen), model)
    found = {
        **document("eval", device_name(place)),
        "checkpoint": str(checkpoint),
        **inspection.evaluate_images(model, subject, per_class, confusion),
    }
    screen.result(evaluation_report(found, model.classes), found)
