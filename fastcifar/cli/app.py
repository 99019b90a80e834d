"""The command line: the subcommands, and how exceptions become exit codes.

Torch is imported inside commands only.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcifar import errors
from fastcifar.cli import signals
from fastcifar.cli.bench import bench
from fastcifar.cli.display.encoding import prepare_outputs
from fastcifar.cli.doctor import doctor
from fastcifar.cli.download import download
from fastcifar.cli.evaluate import evaluate
from fastcifar.cli.options import GroupedHelp, usage_hint
from fastcifar.cli.profile import profile
from fastcifar.cli.recipes import recipes
from fastcifar.cli.report import report
from fastcifar.cli.search import search
from fastcifar.cli.train import train
from fastcifar.errors import FastcifarError, FastcifarWarning
from fastcifar.version import __version__

COMMANDS: dict[str, Callable[..., Any]] = {
    "download": download,
    "recipes": recipes,
    "train": train,
    "eval": evaluate,
    "profile": profile,
    "bench": bench,
    "search": search,
    "report": report,
    "doctor": doctor,
}
FORMAT_WARNING = warnings.formatwarning  # Python's own
ISSUES = "https://github.com/fastcifar/fastcifar/issues"

app = typer.Typer(
    name="fastcifar",
    help="Train on CIFAR-10 in seconds, and see where the time goes.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich doubles the time that help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)


def with_full_paths(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with `~` and `~user` replaced in its paths: shells leave those in `--out=~/x`, and unknown users."""

    @functools.wraps(command)
    def call(**arguments: Any) -> Any:
        from fastcifar.system.files import expand_user

        for name, value in arguments.items():
            if isinstance(value, Path):
                arguments[name] = expand_user(value)
            elif isinstance(value, list):
                arguments[name] = [expand_user(each) if isinstance(each, Path) else each for each in value]
        return command(**arguments)

    return call


for name, command in COMMANDS.items():
    app.command(name, cls=GroupedHelp)(with_full_paths(command))


def main() -> None:
    """Run the command line and exit with its exit code; on failure print why, as JSON with `--json`."""
    signals.install()
    prepare_outputs()
    warnings.formatwarning = format_warning
    code, message = run()
    if code == errors.INTERRUPTED:
        code = signals.exit_code()
    if message:
        print_failure(code, message)
    sys.exit(code)


def run() -> tuple[int, str]:
    """Run the command that the arguments name; returns the exit code, and the message where it failed."""
    stdout = sys.stdout
    try:
        returned = app(prog_name="fastcifar", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # The reader of our output has left, as `head` does: Typer wraps stdout and exits with 1, but it is no error.
        sys.stdout = None
        return errors.OK, ""
    except (Exception, KeyboardInterrupt) as error:
        return explain(error)
    finally:
        signals.caught()
    code = returned if isinstance(returned, int) else errors.OK
    return code, "Interrupted." if code == errors.INTERRUPTED else ""  # Typer turns Ctrl-C into this code


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code for an exception, and its message; prints the traceback of a bug."""
    match error:
        case FastcifarError():
            return error.exit_code, str(error)
        case _ if isinstance(error, KeyboardInterrupt) or signals.received.number:  # what it broke may raise anything
            return errors.INTERRUPTED, "Interrupted."
        case BrokenPipeError():  # the last flush: as above, no error
            sys.stdout = None
            return errors.OK, ""
        case OSError(errno=errno.ENOSPC):
            sys.stdout = None  # what is still in its buffer cannot be written either
            return errors.DATA, "The output cannot be written: no space is left on its device."
        case OSError(errno=errno.ENAMETOOLONG):
            return errors.DATA, f"'{error.filename}' cannot be the name of a file here: it is too long."
        case _ if usage := usage_message(error):
            return errors.USAGE, f"{usage_hint(usage)} See `fastcifar --help`."
    traceback.print_exception(error)
    return errors.BUG, f"This is a bug of fastcifar; please report it with the lines above: {ISSUES}"


def usage_message(error: BaseException) -> str | None:
    """The message of one of Typer's own exceptions, about options and arguments; else None.

    Their base class is `click.ClickException` in earlier versions of Typer and private in later ones, so they are
    recognized by the method that all of them have.
    """
    return error.format_message() if hasattr(error, "format_message") else None


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """One of our own warnings as a sentence, others as Python prints them, with file and line."""
    if issubclass(category, FastcifarWarning):
        return f"Warning: {message}\n"
    return FORMAT_WARNING(message, category, filename, lineno, line)


def print_failure(code: int, message: str) -> None:
    """Print a JSON document to stdout with `--json`, else one line to stderr."""
    # torchrun restarts the ranks of a failed one, and only the last attempt may write to stdout.
    if "--json" in sys.argv[1:] and sys.stdout is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
        import json

        print(json.dumps({"error": message, "exit_code": code}), flush=True)
    else:
        print(message if code > 128 else f"Error: {message}", file=sys.stderr)  # above 128 a signal ended it


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        print(f"fastcifar {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train on CIFAR-10 in seconds, and see where the time goes."""
    if context.invoked_subcommand is None:
        print(context.get_help())
