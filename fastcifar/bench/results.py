"""The results file of a bench: a header that says what all runs share, then one line of JSON a finished run.

A line is on disk before the next run begins, so that a kill at any moment loses at most the run in flight. The file
is locked while a bench adds to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fastcifar.errors import DataError, UsageError

KIND, FORMAT = "fastcifar bench", 1
RUN_KEYS = {"name", "recipe", "seed", "accuracy", "train_s"}
Record = dict[str, Any]


class Results:
    """A results file that is being added to; what it held before is in `runs`."""

    def __init__(self, path: Path, header: Record) -> None:
        self.path = path
        self.header = {"kind": KIND, "format": FORMAT, **header}
        self.runs: list[Record] = []
        self.file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Open and lock the file; read what is in it, and cut off a line that a kill broke.

        Raises DataError where it cannot be written, is damaged, or belongs to another bench that runs; UsageError where
        its runs were made of something else.
        """
        if self.path.exists() and not self.path.is_file():
            raise DataError(f"Results file {self.path} cannot be written: it is no regular file; give another --out.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+b")
        except OSError as error:
            raise DataError(
                f"Results file {self.path} cannot be written: {error.strerror}; give another --out."
            ) from None
        try:
            lock(self.file, self.path)
            header, self.runs, whole = parse(self.path, read_all(self.file))
            self.file.truncate(whole)
            if header is None:
                self.write(self.header)
            elif different := differences(header, self.header):
                raise UsageError(
                    f"{self.path} holds runs of another bench ({'; '.join(different)}): give another --out, or the "
                    "same recipes and settings on the same machine."
                )
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.file is not None
        self.file.close()

    def add(self, run: Record) -> None:
        """Write one finished run; on disk when this returns."""
        self.write(run)
        self.runs.append(run)

    def write(self, line: Record) -> None:
        """One line, whole or not at all; raises DataError where there is no room for it."""
        assert self.file is not None
        before = os.fstat(self.file.fileno()).st_size
        try:
            self.file.write(json.dumps(line).encode() + b"\n")
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file = open(os.devnull, "wb")  # noqa: SIM115 - what is left in the old one's buffer cannot be written
            os.truncate(self.path, before)
            raise DataError(f"Results file {self.path} cannot be written: {error.strerror}; make room.") from None


def lock(file: BinaryIO, path: Path) -> None:
    """Take the file for this process alone; raises DataError where another has it."""
    try:
        import fcntl
    except ImportError:  # Windows: two benches into one file are not kept apart
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DataError(f"Results file {path} is open in another bench: wait for it, or give another --out.") from None


def read_all(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def load(path: Path) -> tuple[Record, list[Record]]:
    """The header and the runs of a results file; raises DataError where it is missing, empty or damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Results file {path} cannot be read: {error.strerror}.") from None
    header, runs, _ = parse(path, content)
    if header is None:
        raise DataError(f"{path} holds no runs of `fastcifar bench`.")
    return header, runs


def parse(path: Path, content: bytes) -> tuple[Record | None, list[Record], int]:
    """Header, runs and length of the whole lines; an unfinished last line is left out, any other is refused."""
    end = content.rfind(b"\n") + 1
    lines = [decode(line) for line in content[:end].splitlines()]
    if lines and lines[-1] is None and len(lines) > 1:  # a power cut may leave a line's end without its middle
        end -= len(content[:end].splitlines(keepends=True)[-1])
        lines.pop()
    if not lines:
        if content and not content.startswith(b'{"kind"'):
            raise DataError(f"{path} is no results file of `fastcifar bench`.")
        return None, [], 0
    header, runs = lines[0], lines[1:]
    if header is None or header.get("kind") != KIND:
        raise DataError(f"{path} is no results file of `fastcifar bench`.")
    if header.get("format") != FORMAT:
        raise DataError(f"{path} was written by another version of fastcifar (format {header.get('format')}).")
    for number, run in enumerate(runs, start=2):
        if run is None or not run.keys() >= RUN_KEYS:
            raise DataError(f"Line {number} of {path} is broken: mend or remove it, its run will be made again.")
    return header, [run for run in runs if run is not None], end


def decode(line: bytes) -> Record | None:
    """One line as a record; None where it is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def differences(old: Record, new: Record) -> list[str]:
    """What two headers do not share, in words."""
    found = []
    for key in sorted({*old, *new} - {"recipes"}):
        if old.get(key) != new.get(key):
            found.append(f"{key} was {old.get(key)}, is {new.get(key)}")
    before, now = old.get("recipes", {}), new["recipes"]
    found += [f"recipe '{name}' is not in it" for name in now if name not in before]
    found += [f"recipe '{name}' is missing" for name in before if name not in now]
    for name in now:
        if name in before:
            pairs = sorted(set(flat(before[name])) ^ set(flat(now[name])))
            found += [f"recipe '{name}' differs in {key}" for key in sorted({key for key, _ in pairs})]
    return found


def flat(tree: Record, prefix: str = "") -> Iterable[tuple[str, str]]:
    """The values of a tree by their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def code_digest() -> str:
    """What the program's own code is, shortened: results of different code are not mixed."""
    digest = sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*")):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def reported(paths: list[Path]) -> tuple[Record, list[Record]]:
    """A header with all recipes, and the runs, of several results files.

    Raises UsageError where they do not belong together: one name for two recipes, a seed twice, other images.
    """
    loaded = [load(path) for path in paths]
    header = {**loaded[0][0], "recipes": {}}
    runs: dict[tuple[str, int], Record] = {}
    for path, (other, lines) in zip(paths, loaded, strict=True):
        for key in ("dataset", "device", "torch"):
            if other[key] != header[key]:
                raise UsageError(f"{path} and {paths[0]} hold runs of different kinds: {key} differs.")
        for name, each in other["recipes"].items():
            if header["recipes"].setdefault(name, each) != each:
                raise UsageError(f"Recipe '{name}' in {path} is not the one of the same name in another file.")
        for run in lines:
            if (run["name"], run["seed"]) in runs:
                raise UsageError(f"Seed {run['seed']} of '{run['name']}' in {path} is in another file too.")
            runs[run["name"], run["seed"]] = run
    made = {name for name, _ in runs}
    header["recipes"] = {name: each for name, each in header["recipes"].items() if name in made} or header["recipes"]
    return header, sorted(runs.values(), key=lambda run: float(run["at"]))
