"""`fastcifar profile`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fastcifar.cli.completion import complete_dataset, complete_recipe, complete_setting
from fastcifar.cli.options import (
    AsJson,
    Device,
    EngineNames,
    Html,
    Quiet,
    RecipeName,
    Threads,
    check_page,
    document,
    open_session,
)
from fastcifar.errors import UsageError

ByChoice = Literal["layer", "kernel", "op", "phase"]
SortChoice = Literal[
    "network", "total", "forward", "backward", "optimizer", "flops", "bytes", "kernels", "memory", "roofline"
]
By = Annotated[ByChoice, typer.Option(help="What the rows of the table are.")]
Sort = Annotated[SortChoice, typer.Option(help="Order of the layers: the network's, or by a column, largest first.")]
Top = Annotated[int, typer.Option(min=0, help="Show at most N rows.")]
Depth = Annotated[int | None, typer.Option(min=1, help="Collapse layers deeper than N.")]


def profile(
    recipe: RecipeName = None,
    versus: Annotated[
        str | None,
        typer.Option(
            "--vs", metavar="RECIPE", help="Compare with another recipe, interleaved.", autocompletion=complete_recipe
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Profile the network of a checkpoint.")] = None,
    by: By = "layer",
    sort: Sort = "network",
    top: Top = 0,
    depth: Depth = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step; on a CPU at most 128 by default.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Recorded steps; by default 10 on a GPU, else 5.")
    ] = None,
    whole_run: Annotated[
        bool,
        typer.Option("--whole-run", help="Mean step of a run: every kind of step, weighted by how often it occurs."),
    ] = False,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a step as a trace for Perfetto.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an icicle plot of the step.")] = None,
    html: Html = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Dataset; by default cifar10 where it is on this machine, else shapes.",
            autocompletion=complete_dataset,
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    engine: EngineNames = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[a:|b:]SECTION.KEY=VALUE",
            help="Override one value of the recipe, with --vs of side a or b; repeatable.",
            autocompletion=complete_setting,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show where the time and the memory of a training step go, layer by layer, forward and backward.

    Example: fastcifar profile hlb --vs hlb --set b:network.whiten.kernel=3
    """
    if versus is not None and (trace is not None or svg is not None or checkpoint is not None):
        raise UsageError(
            "--vs compares two recipes: it cannot be combined with --trace, --svg or --checkpoint; --html draws both."
        )
    if checkpoint is not None and (recipe is not None or settings):
        raise UsageError("--checkpoint brings its recipe along: it takes no other recipe and no --set.")
    from fastcifar.cli.display.html import write_page
    from fastcifar.cli.display.icicle import icicle
    from fastcifar.cli.display.profile import report_from_document
    from fastcifar.cli.display.profile_page import profile_page
    from fastcifar.cli.display.screen import Screen
    from fastcifar.system.files import check_writable, write_text

    for path in (trace, svg):
        if path is not None:
            check_writable(path)
    check_page(html, trace, svg, checkpoint)
    from fastcifar.profiling.plan import SIDES, plan_checkpoint, plan_recipes
    from fastcifar.profiling.result import compare, summarize
    from fastcifar.training.engine import bind_engines

    screen = Screen(as_json, quiet)
    session = open_session(screen, device, threads)
    names = [recipe] if versus is None else [recipe, versus]
    engines = list(session.engines(bind_engines(engine or (), SIDES[: len(names)], "eager")).values())
    if checkpoint is not None:
        plan = plan_checkpoint(checkpoint, dataset, session.device, engines[0], batch)
    else:
        plan = plan_recipes(names, settings or (), dataset, session.device, engines, batch)
    screen.note(plan.introduction())
    recordings = plan.measure(steps, whole_run)
    profiles = [summarize(recording) for recording in recordings]
    result: dict[str, Any] = {**document("profile", session.device_name), "dataset": plan.dataset.name}
    if versus is None:
        result |= profiles[0].document()
    else:
        sides = {side: each.document() for side, each in zip(SIDES, profiles, strict=True)}
        result |= {**sides, "comparison": dataclasses.asdict(compare(*profiles))}
    if trace is not None:
        write_text(trace, json.dumps({"traceEvents": recordings[0].annotated_events()}))
    if svg is not None:
        write_text(svg, icicle(result))
    if html is not None:
        write_page(html, profile_page(result))
    screen.result(report_from_document(result, screen.console.width, by, sort, depth, top), result)
