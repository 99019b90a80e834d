"""Terminal output of train, eval and download: live views, the summary of a run, the report on an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
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
from rich.table import Table
from rich.text import Text

from fastcifar.cli.display.confusion import MOST_CLASSES
from fastcifar.cli.display.screen import Screen, View, duration, facts, percent, size
from fastcifar.cli.display.shades import ShadedConfusion, sparkline

if TYPE_CHECKING:
    from fastcifar.data.dataset import Dataset
    from fastcifar.recipes.schema import Recipe
    from fastcifar.training.trainer import Epoch, Status


CURVE, BESIDE_CURVE = 40, 19  # characters of the curve of the loss, at most, and of the figures beside it
text_column = partial(TextColumn, markup=False)
ROWS_BESIDE = 7  # rows of a window that the heading, the bar, the curve and what surrounds them take beside the epochs


class TrainView(View):
    """A row for each epoch, a progress bar over the steps with the time left, and the curve of the loss."""

    def __init__(self, screen: Screen, device: str, with_test: bool) -> None:
        super().__init__(screen)
        self.device = "GPU" if device == "cuda" else device.upper()
        self.with_test = with_test
        self.status: Status | None = None
        self.printed = 0
        texts = (text_column("{task.fields[loss]}"), text_column("{task.fields[left]}"))
        steps = (BarColumn(20), text_column("step"), MofNCompleteColumn(" of "))
        self.bar = Progress(text_column("{task.description}"), *steps, *texts, console=self.console, auto_refresh=False)
        self.task = self.bar.add_task("starting", total=None, loss="", left="")

    def update(self, status: Status) -> None:
        """Keep the latest state; returns at once."""
        self.status = status

    def headings(self) -> list[str]:
        """The columns of the table of epochs."""
        always = ["epoch", f"{self.device} time", "images/s", "loss", "accuracy", "lr"]
        return [*always, "test"] if self.with_test else always

    def row(self, epoch: Epoch) -> list[str]:
        """One epoch in these columns."""
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
        if (status := self.status) is not None:
            fitting = 0 if self.ended else max(1, self.console.height - ROWS_BESIDE)
            for epoch in list(status.epochs)[-fitting:]:
                table.add_row(*self.row(epoch))
            training, left = status.stage == "training", status.seconds_left()
            self.bar.update(
                self.task,
                description=status.stage,
                completed=status.steps_done,
                total=status.total_steps,
                loss=f"loss {status.loss:.3f}" if training and status.loss is not None else "",
                left=f"{duration(left)} left" if training and left is not None else "",
            )
        return Group(table, self.bar, *self.curve())

    def curve(self) -> Iterable[Text]:
        """The loss over the run so far, as a sparkline between its first and its latest value."""
        losses = list(self.status.losses) if self.status else []
        if len(losses) > 1:
            room = max(1, min(CURVE, self.console.width - BESIDE_CURVE))
            line = sparkline(losses, room, self.console.options.ascii_only)
            yield Text(f"loss {losses[0]:.3f} {line} {losses[-1]:.3f}", no_wrap=True)

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
    """A progress bar for each task that reports its progress, such as a download."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.state: dict[str, tuple[int, int | None]] = {}
        self.printed: set[str] = set()
        self.tasks: dict[str, TaskID] = {}
        byte_columns = (DownloadColumn(), TransferSpeedColumn())
        text = text_column("{task.description}")
        self.bytes = Progress(text, BarColumn(28), *byte_columns, console=self.console, auto_refresh=False)
        self.items = Progress(text, BarColumn(28), MofNCompleteColumn(), console=self.console, auto_refresh=False)

    def update(self, what: str, done: int, total: int | None) -> None:
        """Keep the latest state of one task; returns at once."""
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
        where = f" (evaluated on {recipe.data.holdout:,} held-out training images)"
    return f"{recipe.name} on {dataset.name}{where}: {flops:.3g} FLOPs on {device}"


def summary_from_document(document: dict[str, Any]) -> Table:
    """The summary of a run, from the document of `train --json` or the `run.json` of a run folder."""
    accuracy = (
        f"{percent(document['accuracy'])}  ({percent(document['accuracy_no_tta'])} without test-time augmentation)"
    )
    parts = f"(epochs {duration(document['epochs_s'])}, evaluation {duration(document['eval_s'])})"
    run = f"{document['recipe']}, {document['dataset']}, seed {document['seed']}, {document['engine']} engine"
    limit = f", limited by {document['threads_limited_by']}" if document.get("threads_limited_by") else ""
    rows = [
        ("accuracy", accuracy),
        ("evaluated on", document["accuracy_on"]),
        ("train time", f"{duration(document['train_s'])}  {parts}"),
        ("setup, wall time", f"{duration(document['setup_s'])}, {duration(document['wall_s'])}"),
        ("speed", f"{document['tflops_per_s']:.3g} TFLOP/s over {document['flops']:.3g} FLOPs"),
        ("peak memory", size(document["peak_memory"])),
        ("run", run),
        ("machine", f"{document['device']}{limit}; fastcifar {document['version']}, torch {document['torch']}"),
        ("run folder", str(Path(document["checkpoint"]).parent)),
    ]
    return facts(rows)


def evaluation_report(found: dict[str, Any], classes: list[str]) -> RenderableType:
    """The accuracy, and the parts that the document of `eval --json` has besides: of the superclasses, where it has
    those, in place of the classes."""
    parts: list[RenderableType] = []
    if found["accuracy"] is not None:
        views = f"test-time augmentation: {found['tta']}"
        rows = [("accuracy", f"{percent(found['accuracy'])} of {found['images']:,} images ({views})")]
        if "coarse" in found:
            rows.append(("superclass", f"{percent(found['coarse']['accuracy'])}, that of the likeliest class"))
        parts.append(facts(rows))
    shown = found.get("coarse", {"classes": classes, **found})
    if "per_class" in shown:
        parts.append(facts(per_class_rows(shown["per_class"])))
    if "confusion" in shown:
        parts.append(ShadedConfusion(shown["confusion"], shown["classes"]))
    for prediction in found.get("predictions", ()):
        likely = ", ".join(f"{item['class']} {100 * item['probability']:.1f} %" for item in prediction["classes"])
        parts.append(Text(f"{prediction['file']}: {likely}"))
    if more := found["images"] - len(found.get("predictions", ())) if found["accuracy"] is None else 0:
        parts.append(Text(f"and {more:,} more images: --csv FILE writes a row for each."))
    return Group(*parts)


def per_class_rows(accuracies: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """The accuracy of each class; of many classes, of those with images, that of the worst and the best alone."""
    if len(accuracies) <= MOST_CLASSES:
        return [(name, percent(value) or "no images") for name, value in accuracies.items()]
    ranked = sorted((value, name) for name, value in accuracies.items() if value is not None)
    rows = [(name, percent(value)) for value, name in ranked]
    if (left_out := len(rows) - MOST_CLASSES) > 0:
        rows[MOST_CLASSES // 2 : -MOST_CLASSES // 2] = [("…", f"{left_out} more, which --json has")]
    return rows
