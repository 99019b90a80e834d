"""What the subcommands share: options that several have, the keys of every document, and the session they set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastcifar.errors import UsageError
from fastcifar.version import __version__

if TYPE_CHECKING:
    import torch

    from fastcifar.cli.display.screen import Screen
    from fastcifar.data.dataset import Dataset
    from fastcifar.training.engine import Engine

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to standard output, all else to standard error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default the first GPU, else the CPU.")]
DEFAULT_RECIPE = "A recipe or a TOML file; by default fast94 on a GPU and quick90 elsewhere."
Threads = Annotated[int | None, typer.Option(min=1, max=4096, help="CPU threads; by default one a core.")]
DatasetName = Annotated[str, typer.Option(help="cifar10, cifar100, shapes (needs no download), or an imported one.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Target = Annotated[float | None, typer.Option(help="Exit with code 5 where the accuracy is below this, in percent.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the recipe; repeatable."),
]
EngineChoice = Literal["eager", "compiled", "graph", "auto"]
EngineName = Annotated[EngineChoice | None, typer.Option("--engine", help="How steps are executed; auto by default.")]
EngineNames = Annotated[
    list[str] | None,
    typer.Option("--engine", metavar="[NAME:]ENGINE", help="How steps are executed: eager, compiled, graph or auto."),
]


def document(command: str, device: str | None = None) -> dict[str, Any]:
    """The keys that every JSON document has."""
    from importlib.metadata import version

    return {"command": command, "version": __version__, "torch": version("torch"), "device": device}


@dataclass(frozen=True)
class Session:
    """What the commands that use a device set up alike: where output goes, and the device."""

    screen: Screen
    device: torch.device

    @property
    def device_name(self) -> str:
        """The device in words, as documents hold it."""
        from fastcifar.system.device import device_name

        return device_name(self.device)

    def engines(self, names: dict[str, str]) -> dict[str, Engine]:
        """The engines of these names, by the same keys; where `auto` is not what it prefers, says why, once."""
        from fastcifar.training.engine import choose_engine

        engines = {key: choose_engine(name, self.device) for key, name in names.items()}
        for note in dict.fromkeys(engine.note for engine in engines.values() if engine.note):
            self.screen.warn(note)
        return engines

    def engine(self, name: str | None) -> Engine:
        """One engine; `auto` where none is named."""
        return self.engines({"": name or "auto"})[""]

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name; a published one that is not on this machine is downloaded."""
        return load_or_download(name, self.screen)


def open_session(screen: Screen, device: str | None, threads: int | None) -> Session:
    """Pick and prepare the device; warns where others keep it busy. Raises UsageError or MachineError."""
    from fastcifar.system.device import busy_warning, pick_device, prepare_device

    chosen = pick_device(device)
    prepare_device(chosen, threads)
    if warning := busy_warning(chosen):
        screen.warn(warning)
    return Session(screen, chosen)


def load_or_download(name: str, screen: Screen) -> Dataset:
    """The dataset of that name; a published one that is not on this machine is downloaded."""
    from fastcifar.cli.display.training import ProgressView
    from fastcifar.data.dataset import PUBLISHED
    from fastcifar.data.store import MissingDataset, download_dataset, load_dataset

    try:
        return load_dataset(name)
    except MissingDataset:
        if name not in PUBLISHED:
            raise
    screen.note(f"{name} is not on this machine yet.")
    with ProgressView(screen) as view:
        return download_dataset(name, None, view.update, screen.note)


def check_seed(seed: int) -> None:
    """Raise UsageError unless PyTorch takes the seed: 0 to 2^63 - 1."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed} must lie in 0..{2**63 - 1}.")


def check_target(target: float | None) -> None:
    """Raise UsageError unless a target is in percent; 0.94 is somebody who means 94."""
    if target is None or 1 < target <= 100:
        return
    if 0 < target <= 1:
        raise UsageError(f"--target {target:g} is in percent: {100 * target:g} is meant?")
    raise UsageError(f"--target {target:g} must be a percentage between 1 and 100.")
