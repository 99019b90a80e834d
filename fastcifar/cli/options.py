"""What the subcommands share: options, the keys of every JSON document, and the session that they set up."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from fastcifar.cli.completion import complete_dataset, complete_recipe, complete_setting
from fastcifar.errors import UsageError, known_as
from fastcifar.version import __version__

if TYPE_CHECKING:
    import torch

    from fastcifar.cli.display.screen import Screen
    from fastcifar.data.dataset import Dataset
    from fastcifar.training.engine import Engine

# Groups of options in `--help`; options of a command alone stand under "Options".
OUTPUT, MACHINE = "Output", "Machine"

AsJson = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=OUTPUT, help="Print one JSON document to stdout, everything else to stderr."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print only the result.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", rich_help_panel=OUTPUT, help="Write a page to look into, one HTML file."),
]
Device = Annotated[
    str | None,
    typer.Option(rich_help_panel=MACHINE, help="cpu, cuda, cuda:1 or mps; by default the first GPU, else the CPU."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=4096, rich_help_panel=MACHINE, help="CPU threads; by default one per core.")
]
EngineChoice = Literal["eager", "compiled", "graph", "auto"]
EngineName = Annotated[
    EngineChoice | None,
    typer.Option("--engine", rich_help_panel=MACHINE, help="How training steps are executed; by default auto."),
]
EngineNames = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="[NAME:]ENGINE",
        rich_help_panel=MACHINE,
        help="How training steps are executed: eager, compiled, graph or auto; repeatable.",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Argument(
        help="A recipe or a TOML file; by default fast94 on a GPU, else quick90; for cifar100 fast100 and quick100.",
        autocompletion=complete_recipe,
    ),
]
DatasetName = Annotated[
    str,
    typer.Option(
        help="cifar10, cifar100, shapes (needs no download), or an imported dataset.", autocompletion=complete_dataset
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Target = Annotated[float | None, typer.Option(help="Exit with code 5 if the accuracy is below this, in percent.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one value of the recipe; repeatable.",
        autocompletion=complete_setting,
    ),
]


class GroupedHelp(TyperCommand):
    """A command whose plain help lists its options in their groups (`rich_help_panel`).

    Typer does so with Rich alone, which makes help twice as slow to appear.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group, in the order of the command's parameters."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            title = "Arguments" if param.param_type_name == "argument" else "Options"
            if record := param.get_help_record(ctx):
                sections.setdefault(getattr(param, "rich_help_panel", None) or title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def check_page(page: Path | None, *others: Path | None) -> None:
    """Make sure, before any work, that `--html` can be written: DataError where it cannot, UsageError where the page
    would replace one of the files that the command reads or writes."""
    from fastcifar.system.files import check_writable

    if page is None:
        return
    if realpath(page) in (realpath(other) for other in others if other is not None):
        raise UsageError(f"--html {page} would replace a file that this command uses: give another name.")
    check_writable(page)


def document(command: str, device: str | None = None) -> dict[str, Any]:
    """The keys that every JSON document has; `device` is the name of the device, where one was used."""
    from importlib.metadata import version

    return {"command": command, "version": __version__, "torch": version("torch"), "device": device}


@dataclass(frozen=True)
class Session:
    """What every command that uses a device sets up: the screen and the device."""

    screen: Screen
    device: torch.device

    @property
    def device_name(self) -> str:
        """The name of the device, for people and JSON documents."""
        from fastcifar.system.device import device_name

        return device_name(self.device)

    def engines(self, names: dict[str, str]) -> dict[str, Engine]:
        """The engines of these names, by the same keys; says, once each, where `auto` cannot take its first choice."""
        from fastcifar.training.engine import choose_engine

        engines = {key: choose_engine(name, self.device) for key, name in names.items()}
        for note in dict.fromkeys(engine.note for engine in engines.values() if engine.note):
            self.screen.advise(note)
        return engines

    def engine(self, name: str | None) -> Engine:
        """The engine of that name; None means `auto`."""
        return self.engines({"": name or "auto"})[""]

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name; a published one that is not on this machine is downloaded."""
        return load_or_download(name, self.screen)


def open_session(screen: Screen, device: str | None, threads: int | None) -> Session:
    """Pick and prepare the device; warn if other processes keep it busy. Raises UsageError or MachineError."""
    from fastcifar.system.device import busy_warning, pick_device, prepare_device

    chosen = pick_device(device)
    if chosen.type == "mps" and device is None:
        chosen = checked_apple_gpu(chosen, screen)
    prepare_device(chosen, threads)
    if warning := busy_warning(chosen):
        screen.warn(warning)
    return Session(screen, chosen)


def checked_apple_gpu(device: torch.device, screen: Screen) -> torch.device:
    """The Apple GPU that would be the default, if it trains as the CPU does; else the CPU, with a sentence."""
    import torch

    from fastcifar.training.self_check import check_device

    try:
        found = check_device(device)
    except (RuntimeError, NotImplementedError) as error:  # an operator that this release has no kernel for
        reason = str(error).splitlines()[0].rstrip(".")
    else:
        if found.agrees:
            return device
        reason = found.complaint()
    screen.advise(f"The CPU is used in place of the Apple GPU: {reason}.")
    return torch.device("cpu")


def load_or_download(name: str, screen: Screen) -> Dataset:
    """The dataset of that name; a published one that is not on this machine is downloaded."""
    from fastcifar.cli.display.training import ProgressView
    from fastcifar.data.dataset import PUBLISHED
    from fastcifar.data.store import MissingDataset, download_dataset, load_dataset

    try:
        return load_dataset(name, screen.note)
    except MissingDataset:
        if name not in PUBLISHED:
            raise
    screen.note(f"{name} is not on this machine yet.")
    with ProgressView(screen) as view:
        return download_dataset(name, None, view.update, screen.note)


WITH_SETTINGS = ("train", "bench", "search", "profile", "recipes")  # the commands that take --set


def usage_hint(message: str, arguments: Sequence[str] | None = None) -> str:
    """A message of Typer's as a sentence, which says what an unknown option is called here, where that is known.

    `message` is such as "No such option: --epochs", `arguments` are the command line's.
    """
    from fastcifar.recipes.parse import key_elsewhere

    sentence = message if message.endswith((".", "?", "!")) else f"{message}."
    found = re.match(r"No such option:? '?(-[\w-]+)", message)
    if found is None:
        return sentence
    words, option = list(sys.argv[1:] if arguments is None else arguments), found[1]
    ours = known_as(option) or ""
    if (key := key_elsewhere(option)) and words and words[0] in WITH_SETTINGS:
        ours = f"--set {key}={shlex.quote(setting_value(key, value_after(option, words)))}"
    return f"No such option: {option}; use {ours}." if ours.startswith("--") else sentence


def value_after(option: str, words: Sequence[str]) -> str:
    """What follows an option on the command line, as in `--lr 0.1` or `--lr=0.1`; empty where nothing does."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        name, equals, value = word.partition("=")
        if name == option and (equals or not following.startswith("-")):
            return value if equals else following
    return ""


def setting_value(key: str, value: str) -> str:
    """The value, or our name for it, where the key of a recipe takes it; else VALUE."""
    from fastcifar.recipes.parse import load_recipe
    from fastcifar.recipes.schema import Recipe

    for candidate in (value, known_as(value) or value):
        try:
            load_recipe(Recipe(), f"{key}={candidate}")
        except UsageError:
            continue
        return candidate
    return "VALUE"


def check_seed(seed: int) -> None:
    """Raise UsageError unless the seed is one that PyTorch accepts: 0 to 2^63 - 1."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed} must lie in 0..{2**63 - 1}.")


def check_target(target: float | None) -> None:
    """Raise UsageError unless the target is in percent; 0.94 is taken for a mistake for 94."""
    if target is None or 1 < target <= 100:
        return
    if 0 < target <= 1:
        raise UsageError(f"--target {target:g} is in percent: {100 * target:g} is meant?")
    raise UsageError(f"--target {target:g} must be a percentage between 1 and 100.")
