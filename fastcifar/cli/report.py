"""`fastcifar report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcifar import errors
from fastcifar.cli.options import AsJson, Html, Quiet, check_page, check_target, document
from fastcifar.cli.profile import By, Depth, Sort, Top
from fastcifar.cli.search import show_search
from fastcifar.cli.stored import check_document
from fastcifar.errors import DataError

if TYPE_CHECKING:
    from fastcifar.bench.records import RunRecord
    from fastcifar.bench.report import Report
    from fastcifar.cli.display.screen import Screen

BenchTarget = Annotated[
    float | None, typer.Option(help="Exit with code 5 where a mean accuracy is below this, in percent.")
]
UntilClear = Annotated[
    bool,
    typer.Option("--until-clear", help="Stop when the confidence sequence excludes zero or lies within the margin."),
]
Margin = Annotated[float, typer.Option(min=0.001, help="Equivalence margin in percentage points.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the report as Markdown.")]
Svg = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a scatter plot of all runs.")]


@dataclass(frozen=True)
class Forms:
    """What is made of a report of runs besides the terminal's: Markdown in its place, a picture, a page."""

    markdown: bool = False
    svg: Path | None = None
    html: Path | None = None
    margin: float = 0.1  # of equivalence, percentage points


def report(
    paths: Annotated[
        list[Path], typer.Argument(help="Results files and run folders, pooled; or one file of `profile --json`.")
    ],
    target: BenchTarget = None,
    until_clear: Annotated[
        bool, typer.Option("--until-clear", help="Judge accuracies by the anytime-valid confidence sequence.")
    ] = False,
    margin: Margin = 0.1,
    as_markdown: AsMarkdown = False,
    svg: Svg = None,
    html: Html = None,
    by: By = "layer",
    sort: Sort = "network",
    top: Top = 0,
    depth: Depth = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Show again what results files, run folders or a profile's JSON hold; nothing is trained.

    Example: fastcifar report runs.jsonl more.jsonl --markdown
    """
    from fastcifar.bench.results import RECORD
    from fastcifar.cli.display.screen import Screen

    check_target(target)
    screen = Screen(as_json, quiet)
    check_page(html, svg, *paths, *(path / RECORD for path in paths))
    stored = stored_document(paths[0]) if len(paths) == 1 and not as_markdown and svg is None else None
    if stored is None:
        forms = Forms(as_markdown, svg, html, margin)
        return report_runs(paths, screen, target, margin if until_clear else None, forms)
    if stored["command"] == "profile":
        from fastcifar.cli.display.profile import report_from_document

        shown: Any = report_from_document(stored, screen.console.width, by, sort, depth, top)
    else:
        from fastcifar.cli.display.training import summary_from_document

        shown = summary_from_document(stored)
    if html is not None:
        write_stored_page(html, paths[0], stored)
    screen.result(shown, stored)
    missed = target is not None and stored["command"] == "train" and 100 * stored["accuracy"] < target
    return errors.TARGET_MISSED if missed else errors.OK


def write_stored_page(html: Path, path: Path, stored: dict[str, Any]) -> None:
    """Write the page of a stored document, or of the run folder that it stands in."""
    from fastcifar.cli.display.html import write_page

    if stored["command"] == "profile":
        from fastcifar.cli.display.profile_page import profile_page

        write_page(html, profile_page(stored))
    else:
        from fastcifar.cli.display.run_page import run_page

        write_page(html, run_page(path))


def report_runs(paths: list[Path], screen: Screen, target: float | None, margin: float | None, forms: Forms) -> int:
    """Report on the runs of results files and run folders; returns the exit code.

    With a `margin` (percentage points) accuracies are judged by the anytime-valid confidence sequence. The results file
    of a search is shown as `search` shows it, unless something is asked for that only a bench has.
    """
    from fastcifar.bench.report import summarize
    from fastcifar.bench.results import load, merge
    from fastcifar.bench.rungs import recorded_ladder

    parts = [load(path) for path in paths]
    as_bench = len(parts) > 1 or forms.markdown or forms.svg is not None or target is not None or margin is not None
    if not as_bench and (ladder := recorded_ladder(parts[0].header, parts[0].runs)):
        show_search(screen, ladder, parts[0].runs, parts[0].header.device, forms.html)
        return errors.OK
    pool = merge(parts)
    names = list(pool.recipes)
    return show_runs(screen, pool.runs, names, summarize(pool.runs, names, target, margin), pool.device, forms)


def show_runs(
    screen: Screen, runs: list[RunRecord], names: list[str], summarized: Report, device: str | None, forms: Forms
) -> int:
    """Show the report of a bench of the recipes of these names; returns the exit code."""
    from fastcifar.cli.display.bench import markdown, screen_report

    result = {**document("bench", device), "runs": [run.document() for run in runs], **summarized.document()}
    if forms.svg is not None:
        from fastcifar.cli.display.svg import scatter
        from fastcifar.system.files import write_text

        write_text(forms.svg, scatter(runs, summarized))
    if forms.html is not None:
        from fastcifar.cli.display.bench_page import bench_page
        from fastcifar.cli.display.html import write_page

        write_page(forms.html, bench_page(runs, names, summarized, forms.margin, result))
    screen.result(markdown(summarized) if forms.markdown else screen_report(summarized), result)
    return errors.TARGET_MISSED if summarized.missed else errors.OK


def stored_document(path: Path) -> dict[str, Any] | None:
    """The JSON document of `train` (as in a run folder) or `profile` at this path; None for a results file.

    Raises DataError for a file that cannot be read, a damaged document, and one of another command.
    """
    from fastcifar.bench.results import RECORD, decode, load_run
    from fastcifar.system.text import to_utf8

    file = path / RECORD if path.is_dir() else path
    try:
        stored = decode(to_utf8(file.read_bytes(), file))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    if stored is None or "command" not in stored:
        return None
    if stored["command"] not in ("train", "profile"):
        raise DataError(f"{file} is a document of `{stored['command']}`: `report` shows its results file.")
    check_document(stored, file)
    if stored["command"] == "train":
        load_run(file, stored)  # raises where its recipe, or what it says of its machine, is damaged
    return stored
