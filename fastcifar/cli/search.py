"""`fastcifar search`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fastcifar.cli.options import (
    AsJson,
    DatasetName,
    Device,
    EngineName,
    Quiet,
    Settings,
    Threads,
    check_seed,
    document,
    load_or_download,
)
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
    engine: EngineName = None,
    settings: Settings = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search among candidate settings: short runs for all, longer runs for the best, on held-out training images.

    Example: fastcifar search hive94 candidates.toml --minutes 20
    """
    from fastcifar.bench import search as searches
    from fastcifar.bench.distributed import here
    from fastcifar.bench.plan import Plan
    from fastcifar.cli.display.bench import SearchView, remark, report, search_introduction
    from fastcifar.cli.display.screen import Screen
    from fastcifar.recipes.parse import load_recipe
    from fastcifar.system.device import busy_warning, device_name, pick_device, prepare_device
    from fastcifar.training.engine import choose_engine

    screen = Screen(as_json, quiet)
    check_seed(seed)
    if here().size > 1:
        raise UsageError("`search` is one process: under torchrun use `fastcifar bench`.")
    chosen = searches.candidates(candidates, load_recipe(recipe, *settings or ()))
    place = pick_device(device)
    prepare_device(place, threads)
    running = choose_engine(engine or "auto", place)
    for line in (running.note, busy_warning(place)):
        if line:
            screen.warn(line)
    plan = Plan({}, load_or_download(dataset, screen), place, range(seed, 2**63))
    asked = searches.prepare(chosen, plan, running, minutes)
    where = device_name(place)
    screen.note(search_introduction(asked, where, out))
    view = SearchView(screen, asked)
    try:
        with view:
            made = searches.run(asked, out, view.update)
    except KeyboardInterrupt:
        kept = view.progress.runs if view.progress else []
        if kept:
            screen.console.print(report(asked, kept))
        raise Interrupted(f"Interrupted; {len(kept)} runs are kept in {out}: the same command goes on.") from None
    found = {
        "runs": made,
        "rungs": [dataclasses.asdict(each) for each in asked.rungs(made)],
        "remark": remark(asked, made),
    }
    screen.result(report(asked, made), {**document("search", where), **found})
