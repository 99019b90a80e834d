"""`fastcifar profile`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fastcifar.cli.options import DEFAULT_RECIPE, AsJson, Device, EngineNames, Quiet, Threads, document
from fastcifar.errors import UsageError


def profile(
    recipe: Annotated[str | None, typer.Argument(help=DEFAULT_RECIPE)] = None,
    versus: Annotated[
        str | None, typer.Option("--vs", metavar="RECIPE", help="Compare with another, by turns.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The network of a checkpoint, with its weights.")] = None,
    by: Annotated[str, typer.Option(help="layer, kernel, op or phase.")] = "layer",
    sort: Annotated[
        str, typer.Option(help="network, total, forward, backward, optimizer, flops, bytes, kernels or roofline.")
    ] = "network",
    top: Annotated[int, typer.Option(min=0, help="So many rows.")] = 0,
    depth: Annotated[int | None, typer.Option(min=1, help="Fold what is deeper in the tree of layers.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step; on a CPU at most 128 by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=2, max=1000, help="Recorded steps; 10 on a GPU, else 5.")] = None,
    whole_run: Annotated[
        bool, typer.Option("--whole-run", help="The mean step of a run: every kind of step as often as a run has it.")
    ] = False,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a step for Perfetto.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture of the step.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The images; cifar10 where it is here, else shapes.")] = None,
    device: Device = None,
    threads: Threads = None,
    engine: EngineNames = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[a:|b:]SECTION.KEY=VALUE", help="Change a value; with --vs, of one side."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show where the time of a training step goes, layer by layer, forward and backward.

    Example: fastcifar profile hlb --vs hlb --set b:network.whiten.kernel=3
    """
    from fastcifar.cli.display.profile import check, comparison_report, report
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.svg import icicle
    from fastcifar.system import files
    from fastcifar.system.device import busy_warning, device_name, pick_device, prepare_device

    screen = Screen(as_json, quiet)
    check(by, sort)
    if versus is not None and (trace is not None or svg is not None or checkpoint is not None):
        raise UsageError("--vs shows tables of two recipes: it goes with none of --trace, --svg and --checkpoint.")
    for path in (trace, svg):
        if path is not None:
            files.check_writable(path)
    from fastcifar.profiling.plan import Study
    from fastcifar.profiling.result import comparison

    place = pick_device(device)
    prepare_device(place, threads)
    asked = Study(recipe, versus, checkpoint, settings or [], dataset, place, batch, engine or [])
    if busy := busy_warning(place):
        screen.warn(busy)
    screen.note(asked.introduction())
    profiles = asked.measure(steps, whole_run)
    where = device_name(place)
    common = {**document("profile", where), "dataset": asked.dataset.name}
    shared = (where, asked.dataset.name, screen.console.width)
    first = profiles[0]
    if versus is not None:
        second, found = profiles[1], comparison(*profiles)
        sides = {"a": first.document(), "b": second.document(), "comparison": dataclasses.asdict(found)}
        screen.result(comparison_report(first, second, found, *shared, top), {**common, **sides})
        return
    if trace is not None:
        import json

        files.write_text(trace, json.dumps({"traceEvents": first.events}))
    if svg is not None:
        files.write_text(svg, icicle(first, where))
    screen.result(report(first, *shared, by, sort, depth, top), {**common, **first.document()})
