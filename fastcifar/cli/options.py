"""What the subcommands share: the options that several have, the keys of every document, the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcifar.version import __version__

if TYPE_CHECKING:
    from fastcifar.cli.display.screen import Screen
    from fastcifar.data.dataset import Dataset

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output; the rest to standard error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the result.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the first GPU where there is one.")]
DEFAULT_RECIPE = "A recipe or a TOML file; by default fast94 on a GPU and quick90 elsewhere."
Threads = Annotated[int | None, typer.Option(min=1, max=4096, help="Threads on the CPU; all cores by default.")]
DatasetName = Annotated[str, typer.Option(help="cifar10, cifar100, shapes (needs no download), or one imported.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe; may be given again."),
]
Engine = Annotated[
    str | None, typer.Option(help="How a step is executed: eager, compiled, graph, or auto, which is the default.")
]
Engines = Annotated[
    list[str] | None,
    typer.Option("--engine", metavar="[NAME:]ENGINE", help="How steps are executed: eager, compiled, graph or auto."),
]


def document(command: str, device: str | None = None) -> dict[str, Any]:
    """The keys that every JSON document has."""
    from importlib.metadata import version

    return {"command": command, "version": __version__, "torch": version("torch"), "device": device}


def obtain(name: str, screen: Screen) -> Dataset:
    """The dataset of that name; a published one that is not here is downloaded."""
    from fastcifar.cli.display.training import ProgressView
    from fastcifar.data.dataset import PUBLISHED
    from fastcifar.data.store import MissingDataset, download_dataset, read_dataset

    try:
        return read_dataset(name)
    except MissingDataset:
        if name not in PUBLISHED:
            raise
    screen.note(f"{name} is not on this machine yet.")
    with ProgressView(screen) as view:
        return download_dataset(name, None, view.update)
