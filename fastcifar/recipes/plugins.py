"""User-supplied code, named in a recipe by its import path, such as `network.factory = "mine:Net"`.

An exception that such code causes is the user's to mend: it becomes a UsageError that names file and line. An exception
in code of ours that theirs calls passes as it is.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from fastcifar.errors import FastcifarError, UsageError

OURS = str(Path(__file__).parents[1])
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
INSTALLED = {"site-packages", "dist-packages"}  # where other installations keep theirs
MOST_TEXT = 300  # characters of an exception's message that are shown


def import_object(path: str) -> Callable[..., Any]:
    """Import the class or function `module:name`; the working folder is searched too.

    Raises UsageError where there is no such module or name, where its import fails, or where it cannot be called.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise UsageError(f"'{path}' names no code: the form is module:name, for example mine:Net.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        raise UsageError(f"'{path}' cannot be imported: {import_problem(error)}.") from error
    finally:
        sys.path.remove(here)
    if found is None:
        raise UsageError(f"'{path}' cannot be imported: module '{module}' has no '{name}'.")
    if not callable(found):
        raise UsageError(f"'{path}' is no class or function.")
    return found  # type: ignore[no-any-return]


def import_problem(error: BaseException) -> str:
    """Why a module could not be imported, with file and line where it is the module's own code that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{short_path(error.filename)}, line {error.lineno}: {error.msg}"
    problem = describe(error)
    if isinstance(error, ModuleNotFoundError):
        problem = f"there is no module '{error.name}' here"
    where = user_line(traceback.extract_tb(error.__traceback__))
    return f"{where}: {problem}" if where else problem


class UserCode(AbstractContextManager[None]):
    """Around calls of the code at `path`, and of nothing else: what it raises becomes a UsageError.

    `contract` is a clause on what the code is given and has to give, which the error tells too. Without a path nothing
    is changed. It may be entered again and again.
    """

    def __init__(self, path: str, contract: str) -> None:
        self.path = path
        self.contract = contract

    def fault(self, problem: str) -> UsageError:
        """The error that says what is wrong with what the code gave."""
        return UsageError(f"'{self.path}' ({definition_line(self.path)}) {problem}; {self.contract}.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise UsageError for an exception of the user's code."""
        # What is meant for people passes, and so does what the caller explains: that memory did not suffice.
        if not self.path or not isinstance(error, Exception) or isinstance(error, FastcifarError) or is_oom(error):
            return
        frames = traceback.extract_tb(trace)[1:]  # without the one that called
        inner = next((i for i, frame in enumerate(frames) if not is_ours(frame.filename)), len(frames))
        below = frames[inner:]
        deepest = next((frame for frame in reversed(below) if not is_library(frame.filename)), None)
        if (deepest and is_ours(deepest.filename)) or (frames and not below):
            return
        where = user_line(below) or definition_line(self.path)
        raise UsageError(f"'{self.path}' failed in {where}: {describe(error)}; {self.contract}.") from error


def is_oom(error: Exception) -> bool:
    """Whether memory did not suffice; torch is loaded where such code has been called."""
    from fastcifar.system.device import is_oom

    return is_oom(error)


def user_line(frames: list[traceback.FrameSummary]) -> str | None:
    """File, line and function of the innermost frame that is neither ours nor of a library, where there is one."""
    for frame in reversed(frames):
        if not is_ours(frame.filename) and not is_library(frame.filename):
            inside = "" if frame.name.startswith("<") else f" ({frame.name})"
            return f"{short_path(frame.filename)}, line {frame.lineno}{inside}"
    return None


def definition_line(path: str) -> str:
    """File and line where the class or function `module:name` is defined."""
    defined = inspect.unwrap(import_object(path))
    try:
        return f"{short_path(inspect.getfile(defined))}, line {inspect.getsourcelines(defined)[1]}"
    except (OSError, TypeError):  # it has no source, such as a functools.partial
        return f"module {path.partition(':')[0]}"


def is_ours(file: str) -> bool:
    """Whether a file is one of fastcifar."""
    return Path(OURS) in Path(file).parents


def is_library(file: str) -> bool:
    """Whether a file is of Python or of an installed package other than fastcifar."""
    if is_ours(file):
        return False
    return file.startswith(("<frozen ", "<string>", *LIBRARIES)) or not INSTALLED.isdisjoint(Path(file).parts)


def short_path(file: str) -> str:
    """The path as seen from the working folder, where it lies in it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."
    return f"{type(error).__name__}: {text.rstrip('.')}" if text else type(error).__name__
