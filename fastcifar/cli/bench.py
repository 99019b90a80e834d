"""`fastcifar bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcifar import errors
from fastcifar.cli.completion import complete_recipe, complete_setting
from fastcifar.cli.options import (
    AsJson,
    DatasetName,
    Device,
    EngineNames,
    Html,
    Quiet,
    Threads,
    check_page,
    check_seed,
    check_target,
    open_session,
)
from fastcifar.cli.report import AsMarkdown, BenchTarget, Forms, Margin, Svg, UntilClear, report_runs, show_runs
from fastcifar.errors import Interrupted, UsageError


def bench(
    recipes: Annotated[
        list[str],
        typer.Argument(
            help="Recipes, TOML files or NAME=RECIPE; with --report, results files.", autocompletion=complete_recipe
        ),
    ],
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Runs of each recipe.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the first run; the others count on from it.")] = 0,
    target: BenchTarget = None,
    until_clear: UntilClear = False,
    margin: Margin = 0.1,
    out: Annotated[Path | None, typer.Option(help="Results file (JSON Lines); an existing file is resumed.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing, as `fastcifar report` does.")] = False,
    as_markdown: AsMarkdown = False,
    svg: Svg = None,
    html: Html = None,
    dataset: DatasetName = "cifar10",
    device: Device = None,
    threads: Threads = None,
    engine: EngineNames = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[NAME:]SECTION.KEY=VALUE",
            help="Override one value of all recipes, or of one; repeatable.",
            autocompletion=complete_setting,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Train recipes many times with the same seeds, interleaved, and compare their accuracies and times.
    The processes of torchrun or srun share the seeds: torchrun --nproc-per-node 8 -m fastcifar bench ... --out FILE

    Example: fastcifar bench air94 slow=air94 --set slow:optimizer.filters.lr=0.2 --runs 50 --out lr.jsonl
    """
    from fastcifar.cli.display.screen import Screen

    check_target(target)
    check_seed(seed + runs)
    forms = Forms(as_markdown, svg, html, margin)
    if report:
        paths = [Path(file) for file in recipes]
        check_page(html, svg, *paths)
        return report_runs(paths, Screen(as_json, quiet), target, margin if until_clear else None, forms)
    from fastcifar.bench.distributed import here
    from fastcifar.bench.plan import BenchPlan, default_path, parse_contenders
    from fastcifar.bench.runner import run_bench
    from fastcifar.cli.display.bench import BenchView, introduction, screen_report
    from fastcifar.system.files import check_writable

    ranks = here()
    if ranks.size > 1 and (out is None or until_clear):
        raise UsageError("As several ranks a bench needs --out, which all share, and --until-clear cannot be.")
    if svg is not None:
        check_writable(svg)
    check_page(html if ranks.first else None, out, svg)
    screen = Screen(as_json and ranks.first, quiet or not ranks.first)
    contenders, engine_names = parse_contenders(recipes, settings or [], engine or [])
    session = open_session(screen, device or ranks.device(), threads or ranks.threads())
    engines, images = session.engines(engine_names), session.dataset(dataset)
    seeds = range(seed, seed + runs)
    plan = BenchPlan(contenders, engines, images, session.device, seeds, target, until_clear, margin)
    path = out or default_path(contenders)
    screen.note(introduction(plan, session.device_name, path))
    view = BenchView(screen, plan)
    try:
        with view:
            finished = run_bench(plan, path, ranks, view.update)
    except KeyboardInterrupt:
        kept = view.progress.runs if view.progress else []
        if kept:
            screen.console.print(screen_report(plan.report(kept)))
        raise Interrupted(f"Interrupted; {len(kept)} runs are kept in {path}: the same command resumes.") from None
    if not ranks.first:
        return errors.OK
    return show_runs(screen, finished, list(plan.recipes), plan.report(finished), session.device_name, forms)
