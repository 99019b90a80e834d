"""Pictures as SVG that need nothing else: they open in a browser and in an image viewer."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from fastcifar.bench.report import label
from fastcifar.cli.display.chart import Axis, axis, draw

if TYPE_CHECKING:
    from fastcifar.bench.records import RunRecord
    from fastcifar.bench.report import Report, Summary


def picture(width: int, height: int, letters: int) -> ElementTree.Element:
    """An empty picture on white, in pixels at its full size; it shrinks with the window. `letters` are pixels too."""
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "style": "max-width:100%;height:auto",
            "font-family": "DejaVu Sans, Verdana, sans-serif",
            "font-size": str(letters),
        },
    )
    draw(svg, "rect", {"width": width, "height": height, "fill": "white"})
    return svg


SCATTER = (900, 560)  # pixels
FRAME = (70, 40, 30, 60)  # left, top, right, bottom of the plot, pixels
SERIES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")


def scatter(runs: list[RunRecord], report: Report) -> str:
    """Accuracy against train time as SVG: every run a point, the means with their intervals, the target a line."""
    width, height = SCATTER
    svg = picture(width, height, 12)
    x, y = scatter_axes(runs, report)
    draw_grid(svg, x, y)
    if report.target is not None:
        draw_target(svg, y, report.target)
    across = FRAME[0] + 400.0  # of the legend
    for i, summary in enumerate(report.recipes):
        color = SERIES[i % len(SERIES)]
        name = label(summary.name, summary.fraction)
        for run in runs:
            if (run.name, run.fraction) == (summary.name, summary.fraction):
                draw_run(svg, x, y, run, color)
        draw(svg, "rect", {"x": across, "y": 13, "width": 12, "height": 12, "fill": color})
        draw(svg, "text", {"x": across + 17, "y": 23}, name)
        across += 34 + 7.5 * len(name)
        draw_mean(svg, x, y, summary, color)
    ElementTree.indent(svg, "")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def scatter_axes(runs: list[RunRecord], report: Report) -> tuple[Axis, Axis]:
    """Axes of train times in seconds and of accuracies in percent that hold all runs, intervals and the target."""
    times = [run.train_s for run in runs if run.train_s is not None]
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    for summary in report.recipes:
        times += summary.train_s.ci95 or () if summary.train_s else ()
        accuracies += summary.accuracy.ci95 or () if summary.accuracy else ()
    percents = [100 * accuracy for accuracy in accuracies] + ([] if report.target is None else [report.target])
    width, height = SCATTER
    return axis(times, FRAME[0], width - FRAME[2]), axis(percents, height - FRAME[3], FRAME[1])


def draw_grid(svg: ElementTree.Element, x: Axis, y: Axis) -> None:
    """The ticks, the names of the axes and the title."""
    width, height = SCATTER
    for value in x.ticks():
        at, bottom = x.place(value), height - FRAME[3]
        draw(svg, "line", {"x1": at, "x2": at, "y1": FRAME[1], "y2": bottom, "stroke": "#eee"})
        draw(svg, "text", {"x": at, "y": bottom + 18, "text-anchor": "middle"}, f"{value:.6g}")
    for value in y.ticks():
        at = y.place(value)
        draw(svg, "line", {"x1": FRAME[0], "x2": width - FRAME[2], "y1": at, "y2": at, "stroke": "#eee"})
        draw(svg, "text", {"x": FRAME[0] - 8, "y": at + 4, "text-anchor": "end"}, f"{value:.6g}")
    middle = FRAME[1] + (height - FRAME[1] - FRAME[3]) / 2
    draw(svg, "text", {"x": width / 2, "y": height - 16, "text-anchor": "middle"}, "train time, s")
    upright = {"transform": f"translate(18 {middle}) rotate(-90)", "text-anchor": "middle"}
    draw(svg, "text", {**upright}, "accuracy, %")
    title = "every run a point; means with their 95 % intervals"
    draw(svg, "text", {"x": FRAME[0], "y": 24, "font-size": 14}, title)


def draw_target(svg: ElementTree.Element, y: Axis, target: float) -> None:
    """The target as a dashed line; `target` in percent."""
    at, right = y.place(target), SCATTER[0] - FRAME[2]
    draw(svg, "line", {"x1": FRAME[0], "x2": right, "y1": at, "y2": at, "stroke": "#555", "stroke-dasharray": "6 4"})
    draw(svg, "text", {"x": right - 4, "y": at - 5, "text-anchor": "end"}, f"{target:g} %")


def draw_run(svg: ElementTree.Element, x: Axis, y: Axis, run: RunRecord, color: str) -> None:
    """A finished run as a point with its figures as the tooltip."""
    if run.accuracy is None or run.train_s is None:
        return
    center = {"cx": x.place(run.train_s), "cy": y.place(100 * run.accuracy)}
    point = draw(svg, "circle", {**center, "r": 3, "fill": color, "fill-opacity": "0.45"})
    words = f"{label(run.name, run.fraction)}, seed {run.seed}: {100 * run.accuracy:.2f} % in {run.train_s:.3g} s"
    draw(point, "title", text=words)


def draw_mean(svg: ElementTree.Element, x: Axis, y: Axis, summary: Summary, color: str) -> None:
    """The means of a recipe with their intervals as a cross; nothing where its times are of several machines."""
    if summary.accuracy is None or summary.train_s is None:
        return
    low, high = summary.accuracy.ci95 or (summary.accuracy.mean, summary.accuracy.mean)
    fast, slow = summary.train_s.ci95 or (summary.train_s.mean, summary.train_s.mean)
    across, down = x.place(summary.train_s.mean), y.place(100 * summary.accuracy.mean)
    stroke = {"stroke": color, "stroke-width": "2.5"}
    draw(svg, "line", {"x1": x.place(fast), "y1": down, "x2": x.place(slow), "y2": down, **stroke})
    draw(svg, "line", {"x1": across, "y1": y.place(100 * low), "x2": across, "y2": y.place(100 * high), **stroke})
    draw(svg, "circle", {"cx": across, "cy": down, "r": 5, "fill": color, "stroke": "white"})
