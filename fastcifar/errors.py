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


# Names that people know from PyTorch and other trainers, in lower case with underscores, and ours for them: dotted ones
# are keys of recipes, those with dashes options, others values.
FOREIGN = {
    "lr": "optimizer.filters.lr",
    "learning_rate": "optimizer.filters.lr",
    "momentum": "optimizer.filters.momentum",
    "weight_decay": "optimizer.filters.weight_decay",
    "wd": "optimizer.filters.weight_decay",
    "optimizer": "optimizer.filters.method",
    "optim": "optimizer.filters.method",
    "opt": "optimizer.filters.method",
    "scheduler": "optimizer.filters.schedule",
    "lr_schedule": "optimizer.filters.schedule",
    "lr_scheduler": "optimizer.filters.schedule",
    "schedule": "optimizer.filters.schedule",
    "batch_size": "training.batch_size",
    "batchsize": "training.batch_size",
    "batch": "training.batch_size",
    "bs": "training.batch_size",
    "epoch": "training.epochs",
    "num_epochs": "training.epochs",
    "n_epochs": "training.epochs",
    "max_epochs": "training.epochs",
    "smoothing": "training.label_smoothing",
    "precision": "training.precision",
    "dtype": "training.precision",
    "amp": "training.precision",
    "activation": "network.activation",
    "width": "network.widths",
    "tta": "evaluation.views",
    "resume_from": "--resume",
    "gpu": "--device cuda",
    "gpus": "--device cuda",
    "cuda": "--device cuda",
    "use_cuda": "--device cuda",
    "cpu": "--device cpu",
    "no_cuda": "--device cpu",
    "workers": "--threads",
    "num_workers": "--threads",
    "num_threads": "--threads",
    "compile": "--engine compiled",
    "out_dir": "--out",
    "output": "--out",
    "output_dir": "--out",
    "save_dir": "--out",
    "data": "--dataset",
    "data_dir": "--dataset",
    "fp16": "half",
    "float16": "half",
    "16": "half",
    "mixed": "half",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float": "float32",
    "single": "float32",
    "32": "float32",
    "nvidia": "cuda",
    "metal": "mps",
    "horizontal": "random",
}


def known_as(word: str) -> str | None:
    """Our name for a word of other programs, written in any way (`Batch-Size`); None for one that is not known."""
    return FOREIGN.get(word.strip("-").lower().replace("-", "_"))


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown `word`: the closest known one, or all known ones."""
    names = list(known)
    ours = (known_as(word) or "").removeprefix("--device ")
    close = [ours] if ours in names else difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(names)}."
