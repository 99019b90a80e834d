"""Atomic writes, locks between processes, tensor files that are read without running code, and FASTCIFAR_HOME.

Torch is imported by the functions that need it: results files are locked without it.
"""

from __future__ import annotations

import errno
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from fastcifar.errors import DataError

FORMAT = 1
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of file systems without locks


class Locked(DataError):
    """Another process holds the lock."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`; on failure `path` is unchanged.

    Raises DataError where the file cannot be written; whatever else `write` raises passes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be written: {reason}; make room or choose another place.") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically; raises DataError where it cannot be written."""
    write_atomically(path, lambda file: file.write(text.encode()))


def check_writable(path: Path) -> None:
    """Raise DataError where a file at `path` could not be written: to be called before long work, not after it."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} cannot be written: it is no regular file; choose another place.")
    trial = path.with_name(f".{path.name}.trial")
    write_atomically(trial, lambda file: file.write(b"trial"))
    trial.unlink()


def save_tensors(path: Path, kind: str, tree: dict[str, Any]) -> None:
    """Write a tree of tensors and plain values, with its kind and format; raises DataError where it cannot."""
    write_atomically(path, lambda file: torch_save({"kind": kind, "format": FORMAT, **tree}, file))


def torch_save(tree: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, raising what stopped it: an OSError for a full disk, KeyboardInterrupt for Ctrl-C.

    Where writing is cut short by an exception, PyTorch's writer raises a RuntimeError of its own ("unexpected pos") on
    top of it. Any other RuntimeError is a bug and passes.
    """
    import torch

    handled = sys.exception()  # of the caller, who may save because of one
    try:
        torch.save(tree, file)
    except RuntimeError as error:
        if error.__context__ in (None, handled):
            raise
        raise error.__context__ from None


def load_tensors(path: Path, kind: str, keys: tuple[str, ...] = (), mmap: bool = False) -> dict[str, Any]:
    """Read a tree that `save_tensors` wrote as this kind with these keys, to the CPU; no code in the file is run.

    With `mmap` the tensors stay on disk until they are read. Raises DataError where the file is missing, damaged, of
    another kind or of another format.
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
def lock(path: Path, wait: bool, advice: str = "choose another place") -> Iterator[None]:
    """Hold the lock file `path`, which one process (or thread) has at a time; the system frees it of a dead process.

    With `wait`, wait for whoever holds it; else raise Locked. Raises DataError, with the advice at its end, where the
    lock file cannot be written. The empty file may stay: removing it could let two in.
    """
    try:
        held = acquire_lock(path, timeout=-1 if wait else 0)
    except Timeout:
        raise Locked(f"{path} is locked by another process.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}; {advice}.") from None
    try:
        yield
    finally:
        held.release()


def acquire_lock(path: Path, timeout: float) -> BaseFileLock:
    """A lock on the file `path`; where the file system has no flock, the existence of `<path>.soft` is the lock.

    Raises filelock's Timeout after so many seconds (negative: never), OSError where no file can be written.
    """
    if not path.parent.is_dir():  # filelock would make the folder
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        # Filelock's own fallback knows ENOSYS alone, and prints a warning.
        held: BaseFileLock = FileLock(path, fallback_to_soft=False)
        held.acquire(timeout)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        held = SoftFileLock(path.with_name(f"{path.name}.soft"))
        held.acquire(timeout)
    return held


def home() -> Path:
    """The folder of datasets and caches, private to the user: FASTCIFAR_HOME, or one in the user's cache folder.

    Made where it is missing; raises DataError where it cannot be.
    """
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


def home_lock(name: str) -> AbstractContextManager[None]:
    """One of the locks in `home()`, waited for; raises DataError where it cannot be written."""
    return lock(home() / name, wait=True, advice="set FASTCIFAR_HOME to a folder of yours")
