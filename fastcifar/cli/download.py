"""`fastcifar download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.cli.options import AsJson, Quiet, document
from fastcifar.errors import UsageError


def download(
    dataset: Annotated[str, typer.Option(help="cifar10 or cifar100.")] = "cifar10",
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="Import an archive, a batch folder or an image folder instead."),
    ] = None,
    url: Annotated[str | None, typer.Option(help="A mirror of the archive; the checksum still decides.")] = None,
    name: Annotated[str | None, typer.Option(help="With --from: keep a dataset of your own under this name.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the dataset and free its space.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Get a dataset: over the network, or from files you have.

    Example: fastcifar download --from ~/data/cifar-10-python.tar.gz
    """
    from fastcifar.cli.display.screen import Screen, facts
    from fastcifar.cli.display.training import ProgressView
    from fastcifar.data.store import dataset_path, download_dataset, import_dataset, remove_dataset, verify_dataset

    screen = Screen(as_json, quiet)
    if url is not None and source is not None:
        raise UsageError("--url and --from exclude each other: a dataset comes from one place.")
    if remove:
        gone = remove_dataset(name or dataset)
        screen.result(
            "\n".join(f"Removed {path}." for path in gone) or f"There is nothing of '{name or dataset}' to remove.",
            {**document("download"), "dataset": name or dataset, "removed": [str(path) for path in gone]},
        )
        return
    with ProgressView(screen) as view:
        if source is not None:
            found = import_dataset(source, dataset, name, view.update)
        elif dataset_path(dataset).exists() and url is None:
            found = verify_dataset(dataset, view.update)
            screen.note(f"{dataset} is here already; its content was hashed again and is right.")
        else:
            found = download_dataset(dataset, url, view.update)
    if not found.published:
        screen.note(f"'{found.name}' is not a published dataset: results on it compare with nobody else's.")
    images = len(found.train.images) + len(found.test.images)
    path = str(dataset_path(found.name))
    screen.result(
        facts(
            [
                ("dataset", f"{found.name}: {len(found.classes)} classes"),
                ("images", f"{len(found.train.images):,} train, {len(found.test.images):,} test"),
                (
                    "content",
                    f"{'the published dataset' if found.published else 'your own'}, SHA-256 {found.digest[:16]}…",
                ),
                ("kept in", path),
            ]
        ),
        {
            **document("download"),
            "dataset": found.name,
            "path": path,
            "images": images,
            "classes": list(found.classes),
            "source": found.source,
            "verified": found.published,
        },
    )
