"""Terminal output of train, eval and download: live views, the summary of a run, the report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
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

from fastcifar.cli.display.screen import Screen, View, duration, facts, percent, size

if TYPE_CHECKING:
    from fastcifar.data.dataset import Dataset
    from fastcifar.recipes.schema import Recipe
    from fastcifar.training.trainer import Epoch, Status


class TrainView(View):
    """A bar over the finished steps with the time to go, and a row an epoch."""

    def __init__(self, screen: Screen, device: str, with_test: bool) -> None:
        super().__init__(screen)
        self.device = "GPU" if device == "cuda" else device.upper()
        self.with_test = with_test
        self.status: Status | None = None
        self.printed = 0

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
        for epoch in finished[self.printed :]:
            cells = zip(self.headings(), self.row(epoch), strict=True)
            yield ", ".join(f"{heading} {cell}" for heading, cell in cells if cell)
        self.printed = max(self.printed, len(finished))


class ProgressView(View):
    """Bars for stretches of work that say how far they are, such as a download."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.state: dict[str, tuple[int, int | None]] = {}
        self.printed: set[str] = set()
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
            if what not in self.printed:
                self.printed.add(what)
                yield f"{what} …"


def introduction(recipe: Recipe, dataset: Dataset, flops: int, device: str) -> str:
    """One line before a training: recipe, dataset, FLOPs of the run, device."""
    where = "" if dataset.published else " (not a published dataset)"
    if recipe.data.holdout:
        where = f" (evaluated on {recipe.data.holdout:,} training images held out)"
    return f"{recipe.name} on {dataset.name}{where}: {flops:.3g} FLOPs on {device}"


def summary(record: dict[str, Any]) -> Table:
    """What a run reached and cost, and how to repeat it, from the record of `train --json` or `run.json`."""
    parts = f"(epochs {duration(record['epochs_s'])}, evaluation {duration(record['eval_s'])})"
    versions = f"fastcifar {record['version']}, torch {record['torch']}"
    return facts(
        [
            (
                "accuracy",
                f"{percent(record['accuracy'])}  ({percent(record['accuracy_no_tta'])} without test-time augmentation)",
            ),
            ("train time", f"{duration(record['train_s'])}  {parts}"),
            ("setup, wall time", f"{duration(record['setup_s'])}, {duration(record['wall_s'])}"),
            ("speed", f"{record['tflops_per_s']:.3g} TFLOP/s over {record['flops']:.3g} FLOPs"),
            ("peak memory", size(record["peak_memory"])),
            ("run", f"{record['recipe']}, {record['dataset']}, seed {record['seed']}, {record['engine']} engine"),
            ("machine", f"{record['device']}; {versions}"),
            ("run folder", str(Path(record["checkpoint"]).parent)),
        ]
    )


def evaluation_report(found: dict[str, Any], classes: list[str]) -> RenderableType:
    """The accuracy, and what else was asked for."""
    parts: list[RenderableType] = []
    if found["accuracy"] is not None:
        views = f"test-time augmentation: {found['tta']}"
        parts.append(facts([("accuracy", f"{percent(found['accuracy'])} of {found['images']:,} images ({views})")]))
    if "per_class" in found:
        parts.append(facts((name, percent(value) or "no images") for name, value in found["per_class"].items()))
    if "confusion" in found:
        parts.append(confusion_table(found["confusion"], classes))
    for prediction in found.get("predictions", ()):
        likely = ", ".join(f"{item['class']} {100 * item['probability']:.1f} %" for item in prediction["classes"])
        parts.append(Text(f"{prediction['file']}: {likely}"))
    if more := found["images"] - len(found.get("predictions", ())) if found["accuracy"] is None else 0:
        parts.append(Text(f"and {more:,} more images: --csv FILE writes a row for each."))
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
