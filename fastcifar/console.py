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
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fastcifar.trainer import Epoch, Result, Status

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


class TrainView(View):
    """A bar over the finished steps with the time to go, and a row an epoch."""

    def __init__(self, screen: Screen, device: str, with_test: bool) -> None:
        super().__init__(screen)
        self.device = device
        self.with_test = with_test
        self.status: Status | None = None
        self.told = 0

    def update(self, status: Status) -> None:
        """Keep the latest state; returns at once."""
        self.status = status

    def headings(self) -> list[str]:
        return [
            "epoch",
            f"{self.device} time",
            "images/s",
            "loss",
            "accuracy",
            "lr",
            *(["test"] if self.with_test else []),
        ]

    def row(self, epoch: Epoch) -> list[str]:
        cells = [
            str(epoch.epoch),
            duration(epoch.device_s),
            f"{epoch.images_per_s:,.0f}",
            f"{epoch.train_loss:.4f}",
            percent(epoch.train_accuracy),
            f"{epoch.lr:.4f}",
        ]
        return [*cells, percent(epoch.test_accuracy)] if self.with_test else cells

    def draw(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in self.headings():
            table.add_column(heading, justify="right")
        status = self.status
        for epoch in list(status.epochs) if status else ():
            table.add_row(*self.row(epoch))
        return Group(table, self.bar(status))

    def bar(self, status: Status | None) -> RenderableType:
        """Steps finished, and the time to go."""
        done, total = (status.steps_done, status.total_steps) if status else (0, 1)
        grid = Table.grid(padding=(0, 1))
        left = status.seconds_left() if status else None
        stage = status.stage if status else "starting"
        to_go = f"{duration(left)} to go" if left is not None and stage == "training" else ""
        loss = f"loss {status.loss:.3f}" if status and status.loss is not None and stage == "training" else ""
        grid.add_row(
            stage, ProgressBar(total, done, width=20), f"step {done} of {total if status else '?'}", loss, to_go
        )
        return grid

    def lines(self) -> Iterable[str]:
        status = self.status
        finished = list(status.epochs) if status else []
        if self.with_test and finished and finished[-1].test_accuracy is None and status and status.stage == "training":
            finished.pop()  # its test accuracy is still to come
        for epoch in finished[self.told :]:
            cells = zip(self.headings(), self.row(epoch), strict=True)
            yield ", ".join(f"{heading} {cell}" for heading, cell in cells if cell)
        self.told = max(self.told, len(finished))


class ProgressView(View):
    """Bars for stretches of work that say how far they are, such as a download."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.state: dict[str, tuple[int, int | None]] = {}
        self.told: set[str] = set()
        self.tasks: dict[str, TaskID] = {}
        byte_columns = (DownloadColumn(), TransferSpeedColumn())
        text = TextColumn("{task.description}")
        self.bytes = Progress(text, BarColumn(28), *byte_columns, console=self.console, auto_refresh=False)
        self.items = Progress(text, BarColumn(28), MofNCompleteColumn(), console=self.console, auto_refresh=False)

    def update(self, what: str, done: int, total: int | None) -> None:
        """Keep the latest state of one stretch of work; returns at once."""
        self.state[what] = (done, total)

    def draw(self) -> RenderableType:
        for what, (done, total) in list(self.state.items()):
            bars = self.bytes if what == "downloading" else self.items
            if what not in self.tasks:
                self.tasks[what] = bars.add_task(what, total=total)
            bars.update(self.tasks[what], completed=done, total=total)
        return Group(*(bars for bars in (self.bytes, self.items) if bars.tasks))

    def lines(self) -> Iterable[str]:
        for what in list(self.state):
            if what not in self.told:
                self.told.add(what)
                yield f"{what} …"


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one a line."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), Text(value))
    return grid


def summary(result: Result, document: dict[str, Any], where: str) -> Table:
    """What a run reached, what it cost, and how to get it again."""
    plain, parts = percent(result.accuracy_no_tta), (duration(result.epochs_s), duration(result.eval_s))
    versions = f"fastcifar {document['version']}, torch {document['torch']}"
    return facts(
        [
            ("accuracy", f"{percent(result.accuracy)}  ({plain} without test-time augmentation)"),
            ("train time", f"{duration(result.train_s)}  (epochs {parts[0]}, evaluation {parts[1]})"),
            ("setup, wall time", f"{duration(result.setup_s)}, {duration(result.wall_s)}"),
            ("speed", f"{document['tflops_per_s']:.3g} TFLOP/s over {document['flops']:.3g} operations"),
            ("peak memory", size(result.peak_memory)),
            ("run", f"{document['recipe']}, {document['dataset']}, seed {document['seed']}"),
            ("made on", f"{document['device']}; {versions}"),
            ("kept in", where),
        ]
    )


def evaluation_report(found: dict[str, Any], classes: list[str]) -> RenderableType:
    """The accuracy, and what else was asked for."""
    parts: list[RenderableType] = []
    if found["accuracy"] is not None:
        views = f"test-time augmentation: {found['tta']}"
        parts.append(facts([("accuracy", f"{percent(found['accuracy'])} of {found['images']:,} images ({views})")]))
    if "per_class" in found:
        parts.append(facts((name, percent(value)) for name, value in found["per_class"].items()))
    if "confusion" in found:
        parts.append(confusion_table(found["confusion"], classes))
    for prediction in found.get("predictions", ()):
        likely = ", ".join(f"{item['class']} {100 * item['probability']:.1f} %" for item in prediction["classes"])
        parts.append(Text(f"{prediction['file']}: {likely}"))
    return Group(*parts)


def confusion_table(matrix: list[list[int]], classes: list[str]) -> Table:
    """True classes down, taken for across; columns are numbered where names would not fit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("true class")
    for i in range(len(classes)):
        table.add_column(str(i), justify="right")
    for i, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        table.add_row(f"{i} {name}", *(str(count) if count else "·" for count in row))
    return table
