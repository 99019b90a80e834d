"""`fastcifar search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastcifar.cli.completion import complete_recipe
from fastcifar.cli.options import (
    AsJson,
    DatasetName,
    Device,
    EngineName,
    Html,
    Quiet,
    Settings,
    Threads,
    check_page,
    check_seed,
    document,
    open_session,
)
from fastcifar.errors import Interrupted

if TYPE_CHECKING:
    from fastcifar.bench.records import RunRecord
    from fastcifar.bench.rungs import Ladder
    from fastcifar.cli.display.screen import Screen


def search(
    recipe: Annotated[
        str, typer.Argument(help="The recipe to improve on, or a TOML file.", autocompletion=complete_recipe)
    ],
    candidates: Annotated[Path, typer.Argument(help="TOML file with a table [name] for each candidate's changes.")],
    minutes: Annotated[
        float, typer.Option(min=0.01, max=1e6, help="Time on the clock, that of earlier runs in the file included.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the first run; lower ones confirm a result.")] = 1000,
    out: Annotated[Path, typer.Option(help="Results file (JSON Lines); an existing file is resumed.")] = Path(
        "search.jsonl"
    ),
    dataset: DatasetName = "cifar10",
    device: Device = None,
    threads: Threads = None,
    engine: EngineName = None,
    settings: Settings = None,
    html: Html = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search among candidate settings: short runs for all, longer runs for the best, on held-out training images.
    The processes of torchrun or srun share the runs: torchrun --nproc-per-node 8 -m fastcifar search ...

    Example: fastcifar search hive94 candidates.toml --minutes 20
    """
    from fastcifar.bench.distributed import here
    from fastcifar.bench.search import load_candidates, plan_search
    from fastcifar.bench.search_runner import run_search
    from fastcifar.cli.display.bench import SearchView, search_introduction, search_report
    from fastcifar.cli.display.screen import Screen
    from fastcifar.recipes.parse import load_recipe

    check_seed(seed)
    ranks = here()
    check_page(html if ranks.first else None, out, candidates)
    screen = Screen(as_json and ranks.first, quiet or not ranks.first)
    recipes = load_candidates(candidates, load_recipe(recipe, *settings or ()))
    session = open_session(screen, device or ranks.device(), threads or ranks.threads())
    images, device_engine = session.dataset(dataset), session.engine(engine)
    plan = plan_search(recipes, images, session.device, device_engine, minutes, seed, ranks.size)
    screen.note(search_introduction(plan, session.device_name, out))
    view = SearchView(screen, plan)
    try:
        with view:
            finished = run_search(plan, out, ranks, view.update)
    except KeyboardInterrupt:
        kept = view.progress.runs if view.progress else []
        if kept and ranks.first:
            screen.console.print(search_report(plan, kept))
        raise Interrupted(f"Interrupted; {len(kept)} runs are kept in {out}: the same command resumes.") from None
    if ranks.first:
        show_search(screen, plan, finished, session.device_name, html)


def show_search(screen: Screen, ladder: Ladder, runs: list[RunRecord], device: str, html: Path | None) -> None:
    """Show what the runs of a search say, on the screen and on a page."""
    from fastcifar.cli.display.bench import remark, search_report

    result = {
        **document("search", device),
        "runs": [run.document() for run in runs],
        "rungs": [rung.document() for rung in ladder.rungs(runs)],
        "remark": remark(ladder, runs),
    }
    if html is not None:
        from fastcifar.cli.display.html import write_page
        from fastcifar.cli.display.search_page import search_page

        write_page(html, search_page(ladder, runs, device, result))
    screen.result(search_report(ladder, runs), result)
