"""Results files (JSON Lines): a header that says what all runs share, then one line a finished run.

A line is on disk before the next run begins, so that a kill at any moment loses at most the run in flight. A file is
locked while a bench adds to it, and all its runs are of one machine. Runs of several files and run folders are pooled
by `merge`.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastcifar.bench.records import (
    FAULTS,
    FORMATS,
    KIND,
    Header,
    RunRecord,
    Task,
    fault,
    recipe_differences,
    run_folder_header,
)
from fastcifar.errors import DataError, UsageError
from fastcifar.recipes.schema import Recipe
from fastcifar.system.text import to_utf8

RECORD = "run.json"  # of a training, in its run folder


class ResultsFile:
    """A results file that runs are added to, in a `with` block; `runs` holds what is in it."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.runs: list[RunRecord] = []
        self.file: FileIO | None = None
        self.resources = ExitStack()

    def __enter__(self) -> Self:
        """Lock, open and read the file, and cut off a line that a kill broke.

        Raises DataError where it cannot be written, is damaged, or another bench adds to it; UsageError where its runs
        cannot be compared with the ones to come.
        """
        if self.path.exists() and not self.path.is_file():
            raise DataError(f"Results file {self.path} cannot be written: it is no regular file; give another --out.")
        with self.resources:
            self.open()
            content = self.path.read_bytes()
            text = to_utf8(content, self.path)
            if not content.endswith(text):
                raise DataError(f"{self.path} is in UTF-16: save it as UTF-8 before runs are added to it.")
            header, self.runs, whole = parse(self.path, text)
            self.truncate(len(content) - len(text) + whole)
            if whole and not text[:whole].endswith(b"\n"):  # as editors leave it
                self.append(b"\n")
            if header is None:
                self.write(self.header.line())
            elif different := differences(header, self.header):
                raise UsageError(
                    f"{self.path} holds runs of another bench ({'; '.join(different)}): give another --out, or the "
                    "same recipes and settings on the same machine."
                )
            self.resources = self.resources.pop_all()
        return self

    def open(self) -> None:
        """Lock the file, and open it for appending."""
        from fastcifar.system.files import Locked, lock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            held = lock(self.path.with_name(f".{self.path.name}.lock"), wait=False, advice="give another --out")
            self.resources.enter_context(held)
            self.file = self.resources.enter_context(open(self.path, "ab", buffering=0))  # noqa: SIM115
        except Locked:
            raise DataError(
                f"Results file {self.path} is open in another bench: wait for it, or give another --out."
            ) from None
        except OSError as error:
            raise DataError(
                f"Results file {self.path} cannot be written: {error.strerror}; give another --out."
            ) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resources.close()

    def add(self, run: RunRecord) -> None:
        """Write one finished run; it is on disk when this returns. Raises DataError where there is no room."""
        self.write(run.line())
        self.runs.append(run)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self.append(json.dumps(line).encode() + b"\n")

    def append(self, content: bytes) -> None:
        """Append bytes, completely or not at all."""
        assert self.file is not None
        before = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file.fileno())
        except OSError as error:
            self.truncate(before)
            raise DataError(f"Results file {self.path} cannot be written: {error.strerror}; make room.") from None

    def truncate(self, length: int) -> None:
        """Cut the file to its first bytes, where it is longer."""
        if self.path.stat().st_size > length:
            os.truncate(self.path, length)


@dataclass(frozen=True)
class Results:
    """Runs and what is known of them, from one file or several."""

    where: Path
    header: Header
    runs: list[RunRecord]


def load(path: Path) -> Results:
    """The runs in a results file, or the run in a run folder or its `run.json`.

    Raises DataError where it is missing, empty, damaged or something else.
    """
    file = path / RECORD if path.is_dir() else path
    try:
        content = to_utf8(file.read_bytes(), file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    if (document := decode(content)) and document.get("command") == "train":
        return load_run(file, document)
    header, runs, _ = parse(file, content)
    if header is None:
        raise DataError(f"{file} holds no runs of `fastcifar bench`.")
    return Results(file, header, runs)


def load_run(path: Path, document: dict[str, Any]) -> Results:
    """The one run of a training's record; raises DataError for a damaged one."""
    try:
        header = run_folder_header(document, str(path))
        run = RunRecord.from_line({"name": document["recipe"], **document}, header)
    except FAULTS as error:
        raise DataError(f"{path} is damaged: {fault(error)}.") from None
    return Results(path, header, [run])


def parse(path: Path, content: bytes) -> tuple[Header | None, list[RunRecord], int]:
    """Header, runs and length of the complete lines; an unfinished last line is left out, any other is refused.

    Raises DataError that names the file and the line.
    """
    raw = content.splitlines(keepends=True)
    if raw and not raw[-1].endswith(b"\n") and decode(raw[-1]) is None:  # a whole one is what an editor left
        raw.pop()
    if len(raw) > 1 and decode(raw[-1]) is None and raw[-1].strip():  # a power cut may leave an end without a middle
        raw.pop()
    lines = {number: line for number, line in enumerate(raw, 1) if line.strip()}
    if not lines and (not content.strip() or content.startswith(b'{"kind"')):
        return None, [], 0
    first = decode(raw[0]) if raw else None
    if first is None or first.get("kind") != KIND:
        raise DataError(f"{path} is no results file of `fastcifar bench`.")
    if first.get("format") not in FORMATS:
        raise DataError(f"{path} was written by another version of fastcifar (format {first.get('format')}).")
    header = Header.from_line(first, str(path))
    runs = [parse_run(line, header, f"Line {number} of {path}") for number, line in lines.items() if number > 1]
    return header, runs, len(b"".join(raw))


def parse_run(line: bytes, header: Header, where: str) -> RunRecord:
    """The run in a line; raises DataError, which begins with where it is."""
    document = decode(line)
    if document is None:
        problem = "it is no JSON object in UTF-8"
    else:
        try:
            return RunRecord.from_line(document, header)
        except ValueError as error:
            problem = str(error)
    raise DataError(f"{where} is broken ({problem}): mend or remove it, its run will be made again.")


def decode(content: bytes) -> dict[str, Any] | None:
    """A JSON object in UTF-8; None for anything else."""
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def differences(old: Header, new: Header) -> list[str]:
    """What two headers do not share, in words: their runs cannot stand in one file, nor be made by one bench."""
    found = []
    for key in ("code", "dataset", "device", "engine", "precision", "threads", "torch", "version"):
        before, now = getattr(old, key), getattr(new, key)
        if before != now:
            found.append(f"{key} was {before}, is {now}")
    found += [f"recipe '{name}' is not in it" for name in new.recipes if name not in old.recipes]
    found += [f"recipe '{name}' is missing" for name in old.recipes if name not in new.recipes]
    for name, recipe in new.recipes.items():
        keys = recipe_differences(old.recipes[name], recipe) if name in old.recipes else []
        found += [f"recipe '{name}' differs in {key}" for key in keys]
    return found


@dataclass(frozen=True)
class Pool:
    """Runs that can be put together: their recipes by name, in the order of the files, and the runs by time."""

    recipes: dict[str, Recipe]
    runs: list[RunRecord]

    @property
    def device(self) -> str | None:
        """The device, where all runs are of the same one."""
        devices = {run.machine.device for run in self.runs if run.machine}
        return devices.pop() if len(devices) == 1 else None


def merge(parts: list[Results]) -> Pool:
    """Pool the runs of several files, whatever their machines.

    Raises UsageError where they cannot be pooled: other images, one name for two recipes or precisions, a seed twice.
    """
    first = parts[0]
    recipes: dict[str, tuple[Recipe, str, Path]] = {}
    runs: dict[Task, RunRecord] = {}
    for part in parts:
        if not same_images(part.header.dataset, first.header.dataset):
            raise UsageError(f"{part.where} and {first.where} hold runs on different images: report on them apart.")
        for name, recipe in part.header.recipes.items():
            precision = part.header.precision[name]
            other, other_precision, where = recipes.setdefault(name, (recipe, precision, part.where))
            different = recipe_differences(other, recipe) + ["precision"] * (precision != other_precision)
            if different:
                raise UsageError(
                    f"Recipe '{name}' of {part.where} is not the one of the same name in {where}: they differ in "
                    f"{', '.join(different)}."
                )
        for run in part.runs:
            if run.task in runs:
                raise UsageError(f"Seed {run.seed} of '{run.name}' in {part.where} is in another file too.")
            runs[run.task] = run
    names = {task.name for task in runs}
    kept = {name: recipe for name, (recipe, _, _) in recipes.items() if name in names or not names}
    return Pool(kept, sorted(runs.values(), key=lambda run: run.at))


def same_images(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two datasets are the same, by digest; by name where a record has no digest, as of trainings before."""
    if a["digest"] is None or b["digest"] is None:
        return bool(a["name"] == b["name"])
    return bool(a["digest"] == b["digest"])
