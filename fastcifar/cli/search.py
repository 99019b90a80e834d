"""`fastcifar search`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fastcifar.cli.options import AsJson, DatasetName, Device, Engine, Quiet, Settings, Threads, document, obtain
from fastcifar.errors import Interrupted, UsageError


def search(
    recipe: Annotated[str, typer.Argument(help="The recipe to beat, or a TOML file.")],
    candidates: Annotated[Path, typer.Argument(help="A TOML file: a table [name] each, with what differs.")],
    minutes: Annotated[
        float, typer.Option(min=0.01, max=1e6, help="The time it may take, earlier runs in the file included.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="The first seed; others are left to confirm with.")] = 1000,
    out: Annotated[Path, typer.Option(help="The results file; a search goes on where its file ends.")] = Path(
        "search.jsonl"
    ),
    dataset: DatasetName = "cifar10",
    device: Device = None,
    threads: Threads = None,
    engine: Engine = None,
    settings: Settings = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search among candidate settings: short runs for all, longer runs for the best, on held-out training images.

    Example: fastcifar search hive94 candidates.toml --minutes 20
    """
    from fastcifar.bench import distributed as ranks
    from fastcifar.bench import plan as bench
    from fastcifar.bench import search as searches
    from fastcifar.cli.display import bench as search_view
    from fastcifar.cli.display.screen import Screen
    from fastcifar.recipes import parse as recipe_files
    from fastcifar.system import device as machine
    from fastcifar.training import engine as engines
    from fastcifar.training import run as single

    screen = Screen(as_json, quiet)
    single.check_seed(seed)
    if ranks.here().size > 1:
        raise UsageError("`search` is one process: under torchrun use `fastcifar bench`.")
    chosen = searches.candidates(candidates, recipe_files.load(recipe, settings or ()))
    place = machine.pick_device(device)
    machine.prepare(place, threads)
    running, note = engines.choose(engine or "auto", place)
    for line in (note, machine.others_at_work(place)):
        if line:
            screen.warn(line)
    plan = bench.Plan({}, obtain(dataset, screen), place, range(seed, 2**63))
    asked = searches.prepare(chosen, plan, running, minutes)
    where = machine.describe(place)
    screen.note(search_view.search_introduction(asked, where, out))
    view = search_view.SearchView(screen, asked)
    try:
        with view:
            made = searches.run(asked, out, view.update)
    except KeyboardInterrupt:
        kept = view.progress.runs if view.progress else []
        if kept:
            screen.console.print(search_view.report(asked, kept))
        raise Interrupted(f"Interrupted; {len(kept)} runs are kept in {out}: the same command goes on.") from None
    found = {
        "runs": made,
        "rungs": [dataclasses.asdict(each) for each in asked.rungs(made)],
        "remark": search_view.remark(asked, made),
    }
    screen.result(search_view.report(asked, made), {**document("search", where), **found})
