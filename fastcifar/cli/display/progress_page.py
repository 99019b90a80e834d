"""The parts of a run's page that show how it went: loss and accuracy, learning rates and image size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from markupsafe import Markup

from fastcifar.cli.display.chart import WIDTH, Plot, Point, draw
from fastcifar.cli.display.html import Part, inline, legend
from fastcifar.cli.display.screen import duration, percent
from fastcifar.recipes.schedule import Points, value_at
from fastcifar.recipes.schema import Recipe

HEIGHT, ABOVE = 300, 12  # pixels of a picture, and of room for the seconds above it
MOST_POINTS = 100  # epochs that get a point each, with their figures
SECONDS_LABELS = 5
SAMPLES = 400  # of the image size over a run
OVER = "epochs (above: seconds of training)"


@dataclass(frozen=True)
class Series:
    """A curve over the epochs: its name in the legend, its points, and how a value reads."""

    name: str
    points: Sequence[Point]
    unit: str


def epoch_ends(record: Mapping[str, Any], recipe: Recipe | None) -> list[tuple[float, float, Mapping[str, Any]]]:
    """Of each epoch where it ended, in epochs and in seconds of training, and its record; the last may be cut short."""
    epochs = record["epochs"]
    length = recipe.training.epochs if recipe else float(len(epochs))
    seconds = accumulate(epoch["device_s"] for epoch in epochs)
    return [(min(float(epoch["epoch"]), length), at, epoch) for at, epoch in zip(seconds, epochs, strict=True)]


def loss_part(record: Mapping[str, Any], recipe: Recipe | None) -> Part:
    """The training loss over epochs and seconds."""
    ends = epoch_ends(record, recipe)
    losses = [(at, epoch["train_loss"]) for at, _, epoch in ends]
    first, last = losses[0][1], losses[-1][1]
    after = f"{len(ends)} epochs, {duration(record['epochs_s'])}"
    title = f"The loss went from {first:.4f} to {last:.4f} in {after}" if len(ends) > 1 else f"A loss of {last:.4f}"
    if lost := [epoch["epoch"] for _, _, epoch in ends if not math.isfinite(epoch["train_loss"])]:
        title = f"The training diverged: its loss is not finite in epoch {lost[0]}"
    smoothing = f" with label smoothing of {recipe.training.label_smoothing:g}" if recipe else ""
    note = (
        f"The mean cross-entropy{smoothing} of each epoch's training images, each as it was when its batch "
        "came; it stands at the end of the epoch."
    )
    return Part(title, epoch_plot("training loss", "loss", [Series("training", losses, "")], ends), note)


def accuracy_part(record: Mapping[str, Any], recipe: Recipe | None) -> Part:
    """The accuracy over epochs and seconds, and that at the end."""
    ends = epoch_ends(record, recipe)
    on = record["accuracy_on"]
    training = [(at, 100 * epoch["train_accuracy"]) for at, _, epoch in ends]
    measured = [(at, 100 * epoch["test_accuracy"]) for at, _, epoch in ends if epoch["test_accuracy"] is not None]
    last = ends[-1][0]
    series = [
        Series("training images, augmented, during the epoch", training, " %"),
        *([Series(f"{on}, without test-time augmentation", measured, " %")] if measured else []),
        Series(f"{on}, at the end, without test-time augmentation", [(last, 100 * record["accuracy_no_tta"])], " %"),
        Series(f"{on}, at the end, with test-time augmentation", [(last, 100 * record["accuracy"])], " %"),
    ]
    title = f"{percent(record['accuracy'])} of {on} are recognised in the end"
    note = f"Without test-time augmentation {percent(record['accuracy_no_tta'])}."
    if not measured:
        note += " `train --eval-every 1` measures the accuracy after every epoch."
    return Part(title, epoch_plot("accuracy", "accuracy, %", series, ends), note)


def epoch_plot(
    words: str, y: str, series: Sequence[Series], ends: Sequence[tuple[float, float, Mapping[str, Any]]]
) -> Markup:
    """Curves over the epochs, with the seconds of training above."""
    values = [value for each in series for _, value in each.points]
    seconds = {at: past for at, past, _ in ends}
    plot = Plot(words, (OVER, [0.0, ends[-1][0]]), (y, list(filter(math.isfinite, values))), HEIGHT)
    seconds_above(plot, ends)
    for number, each in enumerate(series):
        group, points = plot.group(number), [point for point in each.points if math.isfinite(point[1])]
        if points:
            plot.line(group, points)
        for at, value in points if len(points) <= MOST_POINTS else ():
            tip = f"{each.name}: {value:.4g}{each.unit} after {at:g} epochs, {duration(seconds[at])}"
            plot.point(group, (at, value), tip, "point" if len(points) > 1 else "mean")
    return (legend([each.name for each in series]) if len(series) > 1 else Markup("")) + inline(plot.svg)


def seconds_above(plot: Plot, ends: Sequence[tuple[float, float, Mapping[str, Any]]]) -> None:
    """The seconds of training above some of the epochs' ends; a zoom takes them away with the ticks."""
    ticks = plot.svg.find("g")
    assert ticks is not None
    plot.svg.set("viewBox", f"0 {-ABOVE} {WIDTH} {HEIGHT + ABOVE}")
    every = -(-len(ends) // SECONDS_LABELS)
    for at, seconds, _ in ends[::-1][::every]:
        place: dict[str, str | float] = {"x": plot.x.place(at), "y": plot.box[1] - 2, "text-anchor": "middle"}
        draw(ticks, "text", {"class": "faint", **place}, duration(seconds))


def whole_run(points: Points) -> list[Point]:
    """The corners of a schedule from the start of the run to its end."""
    return [(0.0, value_at(points, 0.0)), *(point for point in points if 0 < point[0] < 1), (1.0, end_value(points))]


def end_value(points: Points) -> float:
    """The value that a schedule comes to at its end; a jump there comes too late."""
    last = [value for at, value in points if at == 1.0]
    return last[0] if last else points[-1][1]


def rates_part(recipe: Recipe) -> Part:
    """The learning rates over the run, as shares of their peaks; groups of the same schedule are one curve."""
    if recipe.optimizer.factory:
        return Part("The learning rates are those of the recipe's own optimizer", Markup(""))
    curves: dict[tuple[Point, ...], list[str]] = {}
    frozen = []
    epochs = recipe.training.epochs
    for name, group in recipe.optimizer.sections().items():
        corners = whole_run(group.schedule)
        peak = max(value for _, value in corners)
        if group.lr * peak == 0:
            continue
        stop = min((at for at, value in corners if not any(later for x, later in corners if x >= at)), default=1.0)
        frozen += [f"{name} for {epochs * stop:.3g}"] if stop < 1 else []
        shares = tuple((epochs * at, 100 * value / peak) for at, value in corners)
        curves.setdefault(shares, []).append(f"{name} (peak {group.lr * peak:.4g})")
    groups = enumerate(recipe.optimizer.freeze, start=1)
    frozen += [f"group{number} for {epochs * share:.3g}" for number, share in groups if share < 1]
    if not curves:
        return Part("All learning rates are zero: nothing is trained", Markup(""))
    plot = Plot("learning rates", ("epochs", [0.0, epochs]), ("share of the peak, %", [0.0, 100.0]), HEIGHT)
    names = [", ".join(groups) for groups in curves.values()]
    for number, (points, name) in enumerate(zip(curves, names, strict=True)):
        plot.line(plot.group(number), points, name)
    schedules = "one schedule" if len(curves) == 1 else f"{len(curves)} schedules"
    title = f"The learning rates follow {schedules} over {epochs:g} epochs"
    if frozen:
        title = f"Not all is trained to the end: {', '.join(frozen)} of {epochs:g} epochs"
    note = "From the schedules of the recipe: each learning rate as a share of its peak, which the legend gives."
    if recipe.optimizer.freeze:
        note += " A conv group that is frozen before the end runs through them in its own time."
    return Part(title, legend(names) + inline(plot.svg), note)


def sides_part(recipe: Recipe) -> Part:
    """The side of the training images over the run; a picture only where it changes."""
    points, epochs = recipe.data.resolution, recipe.training.epochs
    sides = [(epochs * i / SAMPLES, float(round(value_at(points, i / SAMPLES)))) for i in range(SAMPLES + 1)]
    values = sorted({side for _, side in sides})
    if len(values) == 1:
        return Part(f"All training images have {values[0]:g}×{values[0]:g} pixels", Markup(""))
    plot = Plot("image size", ("epochs", [0.0, epochs]), ("side, pixels", values), HEIGHT)
    plot.line(plot.group(0), sides, "side of the training images")
    title = f"Training images have {values[0]:g}×{values[0]:g} to {values[-1]:g}×{values[-1]:g} pixels"
    return Part(title, inline(plot.svg), "The side of the training images, from the recipe; small ones cost less.")
