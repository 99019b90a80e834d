"""`fastcifar download`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcifar.cli.completion import complete_dataset
from fastcifar.cli.options import AsJson, Quiet, document
from fastcifar.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from fastcifar.cli.display.screen import Screen
    from fastcifar.data.dataset import Dataset


def download(
    dataset: Annotated[str, typer.Option(help="cifar10 or cifar100.", autocompletion=complete_dataset)] = "cifar10",
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PATH", help="Import an archive, an image folder, arrays, CSV or parquet files."
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Download from a mirror; the checksum is verified.")] = None,
    name: Annotated[str | None, typer.Option(help="With --from: name of a dataset of your own.")] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="With --from: convert images of any size and kind to RGB of 32x32 pixels.")
    ] = False,
    test_share: Annotated[
        float | None, typer.Option(help="With --from: share of each class to set aside where there are no test images.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the dataset from disk.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Download a dataset, or import one from files.

    Example: fastcifar download --from ~/data/cifar-10-python.tar.gz
    """
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.training import ProgressView
    from fastcifar.data.store import dataset_path, download_dataset, import_dataset, verify_dataset

    if url is not None and source is not None:
        raise UsageError("--url and --from exclude each other: a dataset comes from one place.")
    if source is None and (resize or test_share is not None):
        raise UsageError("--resize and --test-share belong to --from PATH: a published dataset is taken as it is.")
    screen = Screen(as_json, quiet)
    notes: list[str] = []
    if remove:
        show_removal(name or dataset, screen)
        return
    try:
        with ProgressView(screen) as view:
            if source is not None:
                result = import_dataset(
                    source, dataset, name, view.update, notes.append, resize=resize, test_share=test_share
                )
            elif dataset_path(dataset).exists() and url is None:
                result = verify_dataset(dataset, view.update, notes.append)
                notes.append(f"{dataset} is on this machine already; its content was verified.")
            else:
                result = download_dataset(dataset, url, view.update, screen.note)
    except KeyboardInterrupt:
        raise Interrupted("Interrupted; the same command goes on, a download from where it stopped.") from None
    for note in notes:
        screen.note(note)
    show_dataset(result, notes, screen)


def show_removal(name: str, screen: Screen) -> None:
    """Remove a dataset and say which files were deleted."""
    from fastcifar.data.store import remove_dataset

    removed = [str(path) for path in remove_dataset(name)]
    text = "\n".join(f"Removed {path}." for path in removed) or f"There is nothing of '{name}' to remove."
    screen.result(text, {**document("download"), "dataset": name, "removed": removed})


def show_dataset(dataset: Dataset, notes: list[str], screen: Screen) -> None:
    """Say what a dataset holds and where it is kept."""
    from fastcifar.cli.display.screen import facts
    from fastcifar.data.store import dataset_path

    if not dataset.published:
        screen.note(f"'{dataset.name}' is not a published dataset: its results cannot be compared with others'.")
    path = str(dataset_path(dataset.name))
    train, test = len(dataset.train.images), len(dataset.test.images)
    content = "the published dataset" if dataset.published else "your own"
    rows = [
        ("dataset", f"{dataset.name}: {len(dataset.classes)} classes"),
        ("images", f"{train:,} train, {test:,} test"),
        ("content", f"{content}, SHA-256 {dataset.digest[:16]}…"),
        ("path", path),
    ]
    result: dict[str, Any] = {
        **document("download"),
        "dataset": dataset.name,
        "path": path,
        "images": train + test,
        "classes": list(dataset.classes),
        "source": dataset.source,
        "verified": dataset.published,
        "notes": notes,
    }
    screen.result(facts(rows), result)
