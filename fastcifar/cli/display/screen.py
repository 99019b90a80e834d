"""Terminal output: the console, live views and number formats.

A view keeps the latest state of the work and draws it from another thread twice a second, so that a slow or blocked
terminal never delays a training. Where the output is no terminal, a view prints plain lines instead.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastcifar.errors import OK

PIPE_WIDTH = 140  # columns of a table in a pipe
PERIOD = 0.5  # seconds between two updates of a view


class PipeConsole(Console):
    """A console for which it is no error that the reader of a pipe leaves, as `head` does."""

    def on_broken_pipe(self) -> None:
        """Exit with code 0, where Rich exits with 1; in the thread of a view only that thread ends.

        Where standard error has lost its reader the work goes on without it: the result goes to standard output.
        """
        if self.stderr:
            self.quiet = True
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            return
        sys.stdout = None
        raise SystemExit(OK)


class Screen:
    """Where output goes.

    With `as_json` all text goes to standard error, and standard output gets one JSON document. With `quiet` only
    results and warnings are printed.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        stream = sys.stderr if as_json else sys.stdout
        piped = stream is None or not stream.isatty()
        width = PIPE_WIDTH if piped and "COLUMNS" not in os.environ else None
        self.console = PipeConsole(
            stderr=as_json,
            highlight=False,
            soft_wrap=piped,
            width=width,
            markup=False,  # names of classes, files and recipes may have brackets and colons
            emoji=False,
        )
        # Rich takes a pipe for a terminal where FORCE_COLOR is set: colours are wanted there, moving the cursor is not.
        self.animated = not piped and self.console.is_terminal and not self.console.is_dumb_terminal

    def note(self, text: str) -> None:
        """Print a line about progress, unless quiet."""
        if not self.quiet:
            self.console.print(text)

    def warn(self, text: str) -> None:
        """Print a warning to standard error, even if quiet: the result, or its times, may not be what they seem."""
        console = PipeConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        console.print(Text(f"Warning: {text}", style="yellow"))

    def advise(self, text: str) -> None:
        """Print to standard error, unless quiet, a warning that changes nothing about the result."""
        if not self.quiet:
            self.warn(text)

    def result(self, renderable: RenderableType, document: dict[str, Any] | list[Any]) -> None:
        """Print the result of a command: the document as JSON, or the renderable."""
        if self.as_json:
            print(json_text(document, indent=2), flush=True)
        elif isinstance(renderable, str):
            self.console.print(renderable, soft_wrap=True)  # may go to a file: no line is broken
        else:
            self.console.print(renderable)


def json_text(document: Any, **form: Any) -> str:
    """The document as JSON, which has no NaN and no infinity: null stands in their place. `form` is of `json.dumps`."""
    try:
        return json.dumps(document, allow_nan=False, **form)
    except ValueError:
        return json.dumps(finite(document), allow_nan=False, **form)


def finite(value: Any) -> Any:
    """The value with None in place of every number in it that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    """Seconds in the units that fit: 0.87 s, 42 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def percent(fraction: float | None) -> str:
    """A fraction of one in percent with two digits; nothing for None."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


class View:
    """Draws the state of the work while a `with` block does it.

    In a terminal Rich's own thread draws `draw()`; elsewhere a thread prints `lines()`. Quiet screens show nothing.
    """

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.console = screen.console
        self.ended = False  # whether the block is over: what is drawn then stays, and may be longer than the window
        self._live: Live | None = None
        self._printer = threading.Thread(target=self._print_lines, daemon=True)
        self._stop = threading.Event()

    def draw(self) -> RenderableType:
        """The current state, for a terminal."""
        raise NotImplementedError

    def lines(self) -> Iterable[str]:
        """What is new since the last call, for a pipe or a file."""
        return ()

    def __enter__(self) -> Self:
        if not self.screen.quiet:
            if self.screen.animated:
                self._live = Live(get_renderable=self.draw, console=self.console, refresh_per_second=1 / PERIOD)
                try:
                    self._live.start()
                except BaseException:  # interrupted half-way: `__exit__` will not be called
                    self.console.show_cursor(True)  # first: stopping what has half started may fail
                    self._live.stop()
                    raise
            else:
                self._printer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended = True
        if self._live is not None:
            self._live.stop()  # draws once more
        self._stop.set()
        if self._printer.is_alive():
            self._printer.join()

    def _print_lines(self) -> None:
        """Print new lines until the block ends, then those that are left."""
        stopped = False
        while not stopped:
            stopped = self._stop.wait(PERIOD)
            for line in self.lines():
                self.console.print(line)


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values, one pair in each row."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), Text(value))
    return grid
