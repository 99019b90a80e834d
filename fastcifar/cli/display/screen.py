"""What a person sees: live views, tables and lines, drawn at their own pace beside the work.

A view is handed the latest state and draws it from a thread of its own twice a second, so that a slow or blocked
terminal never holds up a training. Where the output is no terminal, finished things become plain lines.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 140  # characters of a table in a pipe
PERIOD = 0.5  # seconds between two looks at the state


class Screen:
    """Where output goes: all for people to standard error with `as_json`, which keeps standard output for one
    document; nothing but results with `quiet`."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        stream = sys.stderr if as_json else sys.stdout
        piped = stream is None or not stream.isatty()
        width = PIPE_WIDTH if piped and "COLUMNS" not in os.environ else None
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=piped, width=width)

    def note(self, text: str) -> None:
        """A line about what goes on."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that a person should not miss; goes to standard error always."""
        console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        console.print(Text(f"Warning: {text}", style="yellow"))

    def result(self, renderable: RenderableType, document: dict[str, Any] | list[Any]) -> None:
        """What the command was called for: as JSON on standard output, or drawn."""
        if self.as_json:
            print(json.dumps(document, indent=2), flush=True)
        elif isinstance(renderable, str):
            self.console.print(renderable, markup=False, soft_wrap=True)  # for files: no line is broken
        else:
            self.console.print(renderable)


def duration(seconds: float) -> str:
    """Seconds in words as long as needed: 0.87 s, 42 s, 3 min 20 s, 1 h 05 min."""
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
    """Draws something from a thread of its own while a `with` block works."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.console = screen.console
        self.live: Live | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def draw(self) -> RenderableType:
        """The view as it is now, for a terminal."""
        raise NotImplementedError

    def lines(self) -> Iterable[str]:
        """What came up since the last call, for a pipe or a file."""
        return ()

    def __enter__(self) -> Self:
        if not self.screen.quiet:
            if self.console.is_terminal:
                self.live = Live(get_renderable=self.draw, console=self.console, auto_refresh=False)
                self.live.start()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._show()
        if self.live is not None:
            self.live.stop()

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD):
            self._show()

    def _show(self) -> None:
        if self.live is not None:
            self.live.refresh()
        else:
            for line in self.lines():
                self.console.print(line, markup=False)


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one a line."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), Text(value))
    return grid
