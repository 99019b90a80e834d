"""The folder of one run: while it trains the state to resume from, afterwards the checkpoint and the record.

All files are written atomically. A lock file keeps every other process out until the run has ended, however it ends.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from fastcifar.data.dataset import Dataset
from fastcifar.errors import DataError, UsageError
from fastcifar.model.checkpoint import CHECKPOINT, RECORD, STATE, dataset_facts, save_checkpoint
from fastcifar.recipes.parse import recipe_to_dict
from fastcifar.recipes.schema import Recipe
from fastcifar.system import files
from fastcifar.training.run import Trained

LOCK = ".lock"
STATE_KEYS = ("recipe", "dataset", "seed", "device", "threads", "engine", "loop")


@dataclass
class RunFolder:
    """A run's folder, which `create_run_folder` or `open_run_folder` has locked."""

    path: Path
    kept: bool = False  # whether it holds a state of this run, and not only of an earlier one

    @property
    def checkpoint(self) -> Path:
        """The trained weights."""
        return self.path / CHECKPOINT

    @property
    def interrupted(self) -> bool:
        """Whether it holds the state of a run that did not end."""
        return (self.path / STATE).exists()

    @property
    def resume_command(self) -> str:
        """What to type to resume the run."""
        return f"fastcifar train --resume {shlex.quote(str(self.path))}"

    def save_state(
        self, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, engine: str, loop: Any
    ) -> None:
        """Keep what a later process needs to resume; raises DataError where it cannot be written."""
        tree = {
            "recipe": recipe_to_dict(recipe),
            "dataset": dataset_facts(dataset),
            "seed": seed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "engine": engine,
            "loop": loop,
        }
        files.save_tensors(self.path / STATE, "state", tree)
        self.kept = True

    def load_state(self) -> dict[str, Any]:
        """What `save_state` kept; raises DataError where the folder holds no interrupted run."""
        if not self.interrupted:
            if self.checkpoint.exists():
                raise DataError(f"The run in {self.path} is finished: there is nothing to resume.")
            raise DataError(f"There is no interrupted run in {self.path}: it holds no {STATE}.")
        return files.load_tensors(self.path / STATE, "state", STATE_KEYS)

    def finish(self, trained: Trained, device: torch.device, record: dict[str, Any]) -> None:
        """Keep the record and the checkpoint, in place of those of an earlier run, and drop the state.

        Raises DataError where they cannot be written; an earlier run's are then still there.
        """
        # Beside the record of an earlier run, which must not stand with the checkpoint of this one, nor the reverse.
        written = self.path / (f".{RECORD}.new" if self.checkpoint.exists() else RECORD)
        document = {**record, "settings": recipe_to_dict(trained.recipe)}
        files.write_text(written, json.dumps(document, indent=2) + "\n")
        save_checkpoint(
            self.checkpoint,
            trained.recipe,
            trained.network,
            trained.dataset,
            trained.seed,
            device,
            record,
            trained.result.logits,
        )
        os.replace(written, self.path / RECORD)
        (self.path / STATE).unlink(missing_ok=True)

    def resume_hint(self) -> str:
        """One sentence after an interruption: what was kept, and how to resume."""
        if self.kept:
            return f"Interrupted; resume from the last saved epoch with: {self.resume_command}"
        return "Interrupted; nothing was kept yet (a state is kept after an epoch, on a GPU if it took 10 s)."

    def is_free(self) -> bool:
        """Whether there is nothing in it but what a run leaves that was killed before its first epoch ended."""
        return self.path.is_dir() and all(is_leftover(path) for path in self.path.iterdir())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; afterwards a folder in which nothing was kept is removed.

        Raises DataError where another process is in it, or where no lock file can be written.
        """
        try:
            with files.lock(self.path / LOCK, wait=False, advice="give another --out"):
                try:
                    yield
                finally:
                    self.remove_if_free()
        except files.Locked:
            raise DataError(
                f"Another process is training in {self.path}: wait until it has ended, or give another --out."
            ) from None

    def remove_if_free(self) -> None:
        """Remove what was not finished writing, and the folder where nothing else is in it."""
        for path in self.path.iterdir():
            if is_leftover(path) and not path.name.startswith(LOCK):
                path.unlink()
        if self.is_free():
            with suppress(OSError):  # Windows removes no file that is open
                (self.path / LOCK).unlink()
                self.path.rmdir()


def is_leftover(path: Path) -> bool:
    """Whether a file is the lock, or one of ours that a process had not finished writing when it was killed."""
    unfinished = tuple(f".{name}." for name in (CHECKPOINT, RECORD, STATE))
    return path.name == LOCK or path.name.startswith((f"{LOCK}.", *unfinished))


@contextmanager
def create_run_folder(path: Path | None, recipe: str, seed: int, force: bool) -> Iterator[RunFolder]:
    """A folder for a new run, locked in the `with` block: `path`, or `runs/<recipe>-<seed>-<time>` with -2, -3, ...
    behind it where another process has just taken that.

    One that holds something is only taken with `force`; an earlier run in it stays until the new one replaces it.
    Raises UsageError, or DataError where the folder cannot be written or another process is in it.
    """
    try:
        folder = RunFolder(new_default_folder(recipe, seed) if path is None else path)
        if folder.path.exists():
            check_replaceable(folder, force)
        else:
            folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"The run folder {path or 'in runs'} cannot be written: {error.strerror}; give another --out."
        ) from None
    with folder.locked():
        check_replaceable(folder, force)  # another process may have finished a run in it just now
        files.check_writable(folder.path / RECORD)
        yield folder


def new_default_folder(recipe: str, seed: int) -> Path:
    """A folder of a name that nobody else has, made."""
    name = f"{recipe}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # `count` does not end


def check_replaceable(folder: RunFolder, force: bool) -> None:
    """Raise UsageError where the folder holds something and may not be taken."""
    if (force and folder.path.is_dir()) or folder.is_free():
        return
    if folder.interrupted:
        raise UsageError(f"{folder.path} holds an interrupted run: {folder.resume_command}, or give another --out.")
    raise UsageError(f"{folder.path} exists; give another --out, or --force to replace the run in it.")


@contextmanager
def open_run_folder(path: Path) -> Iterator[RunFolder]:
    """The folder of an interrupted run, locked in the `with` block.

    Raises DataError where there is none, or where another process is in it.
    """
    folder = RunFolder(path, kept=True)
    if not folder.interrupted:
        folder.load_state()  # says what it holds instead
    with folder.locked():
        yield folder


def check_resumable(state: dict[str, Any], dataset: Dataset, device: torch.device) -> None:
    """Raise UsageError where a saved state cannot be resumed: on another kind of device, whose random numbers are
    others, or with other images than the run began with."""
    if torch.device(state["device"]).type != device.type:
        raise UsageError(f"This run began on {state['device']}: it cannot be resumed on {device.type}.")
    if state["dataset"]["digest"] != dataset.digest:
        raise UsageError(f"Dataset '{dataset.name}' is not what this run began with: its content has changed.")
