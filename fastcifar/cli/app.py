"""The command line: the subcommands, and how exceptions become exit codes.

Torch is imported inside commands only.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated

import typer

from fastcifar import errors
from fastcifar.cli.bench import bench
from fastcifar.cli.download import download
from fastcifar.cli.evaluate import evaluate
from fastcifar.cli.profile import profile
from fastcifar.cli.recipes import recipes
from fastcifar.cli.report import report
from fastcifar.cli.search import search
from fastcifar.cli.train import train
from fastcifar.errors import FastcifarError
from fastcifar.version import __version__

app = typer.Typer(
    name="fastcifar",
    help="Train on CIFAR-10 in seconds, and see where the time goes.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is there in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)
REPORT = "https://github.com/fastcifar/fastcifar/issues"


def main() -> None:
    """Run the command line and leave with its exit code; on failure say why, as JSON where asked."""
    code, message = errors.OK, ""
    try:
        returned = app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        code = returned if isinstance(returned, int) else errors.OK
        if code == errors.INTERRUPTED:
            message = "Interrupted."
    except FastcifarError as error:
        code, message = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, message = errors.INTERRUPTED, "Interrupted."
    except BrokenPipeError:
        # Whoever read our output has left; there is nobody to tell.
        sys.stdout = None
        sys.exit(errors.OK)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            sys.stdout = None  # what is still in its buffer cannot be written either
            code, message = errors.DATA, "The output cannot be written: no space is left on its device."
        elif hasattr(error, "format_message"):  # Typer's own errors about options and arguments
            code, message = errors.USAGE, f"{error.format_message()} See `fastcifar --help`."
        else:
            traceback.print_exc()
            code = errors.BUG
            message = f"This is a bug of fastcifar; please report it with the lines above: {REPORT}"
    if message:
        # Torchrun starts ranks anew where one died: standard output is for the one that comes to the end.
        if "--json" in sys.argv[1:] and sys.stdout is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
            import json

            print(json.dumps({"error": message, "exit_code": code}), flush=True)
        else:
            print(message if code == errors.INTERRUPTED else f"Error: {message}", file=sys.stderr)
    sys.exit(code)


def show_version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        print(f"fastcifar {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train on CIFAR-10 in seconds, and see where the time goes."""
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command()(download)
app.command()(recipes)
app.command()(train)
app.command(name="eval")(evaluate)
app.command()(profile)
app.command()(bench)
app.command()(search)
app.command()(report)
