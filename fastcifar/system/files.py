"""Files written so that a reader sees the old one or the whole new one, and read without running what is in them."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastcifar.errors import DataError

FORMAT = 1


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place; on failure nothing is left of it.

    Raises DataError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        raise DataError(f"{path} cannot be written: {reason}; make room or choose another place.") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """A text in UTF-8; raises DataError where it cannot be written."""
    write_atomically(path, lambda file: file.write(text.encode()))


def check_writable(path: Path) -> None:
    """Raise DataError where a file at `path` could not be written, before the work that would be lost."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} cannot be written: it is no regular file; choose another place.")
    write_atomically(path.with_name(f".{path.name}.trial"), lambda file: file.write(b"trial"))
    path.with_name(f".{path.name}.trial").unlink()


def save_tensors(path: Path, kind: str, tree: dict[str, Any]) -> None:
    """A tree of tensors and plain values that says what it is; raises DataError where it cannot be written."""
    import torch

    write_atomically(path, lambda file: torch.save({"kind": kind, "format": FORMAT, **tree}, file))


def load_tensors(path: Path, kind: str, keys: tuple[str, ...] = (), mmap: bool = False) -> dict[str, Any]:
    """A tree that `save_tensors` wrote as this kind with these keys, on the CPU; nothing in the file is executed.

    With `mmap` the tensors stay on disk until they are read. Raises DataError where the file is missing, damaged,
    something else, or of another version.
    """
    import torch

    if path.is_dir():
        raise DataError(f"{path} is a folder where a {kind} of fastcifar should be.")
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except PermissionError:
        raise DataError(f"{path} cannot be read: you have no permission.") from None
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError):
        raise DataError(f"{path} is damaged, or no {kind} that fastcifar wrote; nothing in it was run.") from None
    if not isinstance(tree, dict) or tree.get("kind") != kind:
        raise DataError(f"{path} is no {kind} that fastcifar wrote.")
    if tree.get("format") != FORMAT:
        raise DataError(f"{path} has format {tree.get('format')}, this fastcifar reads {FORMAT}: update fastcifar.")
    if missing := [key for key in keys if key not in tree]:
        raise DataError(f"{path} is damaged: it lacks '{missing[0]}'.")
    return tree


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; whoever comes second waits."""
    with open(path, "wb") as file:
        try:
            import fcntl
        except ImportError:  # Windows: the atomic writes alone keep files whole
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def home() -> Path:
    """The folder of datasets and caches, private to the user: FASTCIFAR_HOME, or one in the user's cache folder."""
    if chosen := os.environ.get("FASTCIFAR_HOME"):
        folder = Path(chosen).expanduser()
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches" / "fastcifar"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "fastcifar"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcifar"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be used: {error.strerror}; set FASTCIFAR_HOME to a folder of yours."
        ) from None
    return folder


def dataset_files() -> list[Path]:
    """The files of the datasets in `home()`, named after them; without torch, for shell completion."""
    return sorted(path for path in home().glob("[!.]*.pt") if path.is_file())


@contextmanager
def home_lock(lock: str) -> Iterator[None]:
    """One process at a time in here; raises DataError where home cannot be written."""
    path = home() / lock
    with ExitStack() as held:
        try:
            held.enter_context(locked(path))
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror}; set FASTCIFAR_HOME to a folder of yours."
            ) from None
        yield
