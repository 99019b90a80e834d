"""`fastcifar eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fastcifar.cli.completion import complete_dataset
from fastcifar.cli.options import AsJson, Device, Html, Quiet, Threads, check_page, document, load_or_download
from fastcifar.errors import UsageError
from fastcifar.recipes.schema import Views

Tta = Literal["recipe", Views]
LISTED = 50  # images without labels that are listed on the screen


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, a folder of them, or arrays (.npz, .npy); by default the test set."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Evaluate on the test set of this dataset.", autocompletion=complete_dataset)
    ] = None,
    tta: Annotated[Tta, typer.Option(help="Test-time augmentation.")] = "recipe",
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the accuracy of each class.")] = False,
    confusion: Annotated[bool, typer.Option("--confusion", help="Show the confusion matrix.")] = False,
    coarse: Annotated[
        bool,
        typer.Option(
            "--coarse",
            help="Of CIFAR-100: also the accuracy over its 20 superclasses, by that of the likeliest class.",
        ),
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the probabilities of every image to this file.")] = None,
    html: Html = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint: on the test set, on an image folder or arrays, or on single images.

    Example: fastcifar eval runs/tiny-0-20261124-120000 --per-class
    """
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.training import evaluation_report
    from fastcifar.data.coarse import coarse_labels
    from fastcifar.model.checkpoint import load_checkpoint
    from fastcifar.model.classifier import EvalSet, build_classifier, evaluate_images, predictions_csv
    from fastcifar.system.device import device_name, pick_device, prepare_device
    from fastcifar.system.files import check_writable, write_text

    if images and dataset:
        raise UsageError("Images and --dataset exclude each other: one thing is evaluated at a time.")
    if csv is not None:
        check_writable(csv)
    check_page(html, checkpoint, csv, *(images or ()))
    screen = Screen(as_json, quiet)
    chosen_device = pick_device(device)
    prepare_device(chosen_device, threads)
    tree = load_checkpoint(checkpoint)
    classifier = build_classifier(tree, chosen_device, None if tta == "recipe" else tta)
    superclasses = coarse_labels(classifier.classes) if coarse else None
    if images:
        eval_set = EvalSet.from_files(images, classifier.classes, screen.note)
    else:
        test_images = load_or_download(dataset or classifier.dataset, screen)
        eval_set = EvalSet.from_dataset(test_images, classifier.classes)
    logits = classifier.logits(eval_set.images)
    if csv is not None:
        write_text(csv, predictions_csv(classifier.classes, eval_set, logits))
        screen.note(f"{len(logits):,} rows were written to {csv}.")
    listed = None if as_json else LISTED
    result = {
        **document("eval", device_name(chosen_device)),
        "checkpoint": str(checkpoint),
        **evaluate_images(classifier, eval_set, logits, per_class, confusion, superclasses, listed),
    }
    if html is not None:
        from fastcifar.cli.display.evaluation_page import Evaluated
        from fastcifar.cli.display.html import write_page
        from fastcifar.cli.display.run_page import eval_page

        shown = Evaluated(classifier.classes, logits, eval_set.labels, eval_set.images, eval_set.files)
        write_page(html, eval_page(result, tree, shown))
        screen.note(f"The page is in {html}.")
    screen.result(evaluation_report(result, classifier.classes), result)
