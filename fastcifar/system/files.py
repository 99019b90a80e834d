"""Atomic writes, locks between processes, tensor files that are read without running code, and FASTCIFAR_HOME.

Torch is imported by the functions that need it: results files are locked without it.
"""

from __future__ import annotations

import errno
import os
import pickle
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from fastcifar.errors import DataError, FastcifarWarning

FORMAT = 1
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of file systems without locks
SILENT_WAIT = 2.0  # seconds of waiting for a lock before a warning says so
CHOOSE_PLACE = "choose another place"
SET_HOME = "set FASTCIFAR_HOME to a folder of yours"


class Locked(DataError):
    """Another process holds the lock."""


def write_error(path: Path, error: OSError, advice: str = CHOOSE_PLACE) -> DataError:
    """The DataError for a file that cannot be written: the reason, and what to do about it, `advice` at the end."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f"make room, or {advice}"
    elif error.errno == errno.EFBIG:
        advice = f"raise the limit on the size of a file (`ulimit -f`), or {advice}"
    return DataError(f"{path} cannot be written: {error.strerror or error}; {advice}.")


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
        raise write_error(path, error) from None
    finally:
        with suppress(OSError):  # a name too long for a file system cannot even be looked up
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically; raises DataError where it cannot be written."""
    write_atomically(path, lambda file: file.write(text.encode()))


def writable(folder: Path) -> bool:
    """Whether this process may make files in a folder; makes none."""
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def check_writable(path: Path) -> None:
    """Raise DataError where a file at `path` could not be written: to be called before long work, not after it."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} cannot be written: it is no regular file; {CHOOSE_PLACE}.")
    except OSError as error:
        raise write_error(path, error) from None
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

    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder where a {kind} of fastcifar should be.")
    except OSError as error:  # such as a name that is too long
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
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
def lock(path: Path, wait: bool, advice: str = CHOOSE_PLACE) -> Iterator[None]:
    """Hold the lock file `path`, which one process (or thread) has at a time; the system frees it of a dead process.

    With `wait`, wait for whoever holds it; else raise Locked. Raises DataError, with the advice at its end, where the
    lock file cannot be written. The empty file may stay: removing it could let two in.
    """
    try:
        held = acquire_lock(path, wait)
    except OSError as error:
        raise write_error(path, error, advice) from None
    try:
        yield
    finally:
        held.release()


def acquire_lock(path: Path, wait: bool) -> BaseFileLock:
    """A lock on the file `path`; where the file system has no flock, the existence of `<path>.soft` is the lock.

    Raises Locked where another process has it and `wait` is false, OSError where no file can be written.
    """
    if not path.parent.is_dir():  # filelock would make the folder
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        # Filelock's own fallback knows ENOSYS alone, and prints a warning.
        return acquire(FileLock(path, fallback_to_soft=False), f"{path} is locked by another process", wait)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
    marker = path.with_name(f"{path.name}.soft")
    warn(f"The file system of {path.parent} has no locks: a file beside each lock file, {marker.name}, replaces it.")
    locked = f"{path} is locked by another process, or by one that ended without removing {marker}"
    return acquire(SoftFileLock(marker), locked, wait)


def acquire(held: BaseFileLock, locked: str, wait: bool) -> BaseFileLock:
    """Acquire a lock and return it; while another process has it, warn that it is `locked`, or raise Locked."""
    try:
        held.acquire(SILENT_WAIT if wait else 0)
    except Timeout:
        if not wait:
            raise Locked(f"{locked}.") from None
        warn(f"{locked}: waiting for it.")
        held.acquire()
    return held


@cache
def warn(sentence: str) -> None:
    """A warning to the user, shown once: Python itself forgets what it showed whenever a library adds a filter."""
    warnings.warn(sentence, FastcifarWarning, stacklevel=3)


def expand_user(path: Path) -> Path:
    """The path with a leading `~` or `~user` replaced; raises DataError where there is no such home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise DataError(f"{path} is nowhere: {path.parts[0]} is no home folder here; give the path in full.") from None


def home() -> Path:
    """The folder of datasets and caches, private to the user: FASTCIFAR_HOME, or one in the user's cache folder.

    Made where it is missing. Where the user has no home folder, or none that can be written (containers), it is a
    folder for temporary files, with a warning. Raises DataError where none can be made.
    """
    chosen = os.environ.get("FASTCIFAR_HOME")
    try:
        folder = expand_user(Path(chosen)) if chosen else cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        if chosen:
            raise DataError(f"{chosen} cannot be used: {reason}; {SET_HOME}.") from None
        folder = temporary_home()
        warn(f"There is no home folder to write to ({reason}): datasets are kept in {folder}; {SET_HOME}.")
    return folder


def cache_folder() -> Path:
    """The folder for fastcifar in the user's cache folder; raises RuntimeError where the user has no home folder."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fastcifar"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "fastcifar"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "fastcifar"  # as the standard of XDG says


def temporary_home() -> Path:
    """A private folder among the temporary files; raises DataError where it cannot be made, or is another user's.

    Everybody can write where temporary files are: a folder of this name could have been made by somebody else.
    """
    user = os.getuid() if hasattr(os, "getuid") else None
    try:
        folder = Path(tempfile.gettempdir()) / ("fastcifar" if user is None else f"fastcifar-{user}")
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise DataError(f"There is no folder for datasets: {error.strerror or error}; {SET_HOME}.") from None
    if user is not None and (not stat.S_ISDIR(facts.st_mode) or facts.st_uid != user or facts.st_mode & 0o022):
        raise DataError(f"{folder} belongs to somebody else, or others can write to it; {SET_HOME}.")
    return folder


def dataset_files() -> list[Path]:
    """The files of the datasets in `home()`, named after them; without torch, for shell completion."""
    return sorted(path for path in home().glob("[!.]*.pt") if path.is_file())


def home_lock(name: str) -> AbstractContextManager[None]:
    """One of the locks in `home()`, waited for; raises DataError where it cannot be written."""
    return lock(home() / name, wait=True, advice=SET_HOME)
