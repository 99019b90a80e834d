"""Exceptions for errors that the user can correct, and exit codes.

A message is one sentence that says what is wrong, where, and what to do about it. The command line prints it
without a traceback and exits with the code; any other exception is a bug of this program.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OK = 0
BUG = 1
USAGE = 2
DATA = 3
MACHINE = 4
TARGET_MISSED = 5
INTERRUPTED = 130


class FastcifarError(Exception):
    """Base of all errors with a message for the user; `exit_code` is the exit code of the process."""

    exit_code = BUG


class UsageError(FastcifarError):
    """An unknown or wrong option, recipe, key or value, or a recipe file that does not parse (exit code 2)."""

    exit_code = USAGE


class DataError(FastcifarError):
    """Data missing, damaged or unreadable, no network, disk full, output that cannot be written (exit code 3)."""

    exit_code = DATA


class MachineError(FastcifarError):
    """This machine cannot do it, or the training failed: no such device, out of memory (exit code 4)."""

    exit_code = MACHINE


class Diverged(MachineError):
    """The loss of a training is not finite (exit code 4)."""


class Interrupted(FastcifarError):
    """Ctrl-C was pressed; the message says what was kept (exit code 130)."""

    exit_code = INTERRUPTED


class FastcifarWarning(UserWarning):
    """A sentence about something that the user should know and that ends nothing."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown `word`: the closest known one, or all known ones."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(names)}."
