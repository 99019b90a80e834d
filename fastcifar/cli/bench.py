"""`fastcifar bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcifar import errors
from fastcifar.cli.options import (
    AsJson,
    DatasetName,
    Device,
    EngineNames,
    Quiet,
    Threads,
    check_seed,
    check_target,
    document,
    load_or_download,
)
from fastcifar.errors import Interrupted, UsageError


def bench(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, TOML files, or NAME=RECIPE; with --report, files.")],
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Runs of each recipe.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The first seed; the others follow it.")] = 0,
    target: Annotated[
        float | None, typer.Option(help="Leave with exit code 5 where a mean accuracy is below, in percent.")
    ] = None,
    until_clear: Annotated[
        bool, typer.Option("--until-clear", help="Stop as soon as the accuracies are told apart, or alike.")
    ] = False,
    margin: Annotated[float, typer.Option(min=0.001, help="Alike within so many points.")] = 0.1,
    out: Annotated[Path | None, typer.Option(help="The results file; a bench goes on where its file ends.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing: report on results files.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The report as Markdown.")] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture of all runs.")] = None,
    dataset: DatasetName = "cifar10",
    device: Device = None,
    threads: Threads = None,
    engine: EngineNames = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[NAME:]SECTION.KEY=VALUE", help="Change a value of all recipes, or of one."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Train recipes many times, by turns with the same seeds, and say what the difference is worth.

    Example: fastcifar bench air94 slow=air94 --set slow:optimizer.filters.lr=0.2 --runs 50 --out lr.jsonl
    """
    from fastcifar.bench.distributed import here
    from fastcifar.bench.plan import Plan, default_path, named
    from fastcifar.bench.report import summarize
    from fastcifar.bench.results import reported
    from fastcifar.bench.runner import make
    from fastcifar.cli.display.bench import BenchView, introduction, markdown, screen_report
    from fastcifar.cli.display.screen import Screen
    from fastcifar.system import files
    from fastcifar.system.device import busy_warning, device_name, pick_device, prepare_device
    from fastcifar.training.engine import choose_engine

    check_target(target)
    check_seed(seed + runs)
    if svg is not None:
        files.check_writable(svg)
    us = here()
    screen = Screen(as_json and us.first, quiet or not us.first)
    if report:
        header, made = reported([Path(file) for file in recipes])
        found = summarize(made, list(header["recipes"]), target, margin if until_clear else None)
        where = header["device"]
    else:
        if us.size > 1 and (out is None or until_clear):
            raise UsageError("Under torchrun a bench needs --out, which all ranks share, and --until-clear cannot be.")
        chosen, asked = named(recipes, settings or [], engine or [])
        place = pick_device(device or us.device())
        prepare_device(place, threads or us.threads())
        if busy := busy_warning(place):
            screen.warn(busy)
        found_engines = {name: choose_engine(each, place) for name, each in asked.items()}
        for note in {each.note for each in found_engines.values() if each.note}:
            screen.warn(note)
        running = found_engines
        seeds = range(seed, seed + runs)
        plan = Plan(chosen, load_or_download(dataset, screen), place, seeds, target, until_clear, margin, running)
        path = out or default_path(chosen)
        where = device_name(place)
        if us.first:
            screen.note(introduction(plan, where, path))
        view = BenchView(screen, plan)
        try:
            with view:
                made = make(plan, path, us, view.update)
        except KeyboardInterrupt:
            kept = view.progress.runs if view.progress else []
            if kept:
                screen.console.print(screen_report(plan.report(kept)))
            raise Interrupted(f"Interrupted; {len(kept)} runs are kept in {path}: the same command goes on.") from None
        if not us.first:
            return errors.OK
        found = plan.report(made)
    if svg is not None:
        from fastcifar.cli.display.svg import scatter

        files.write_text(svg, scatter(made, found))
    shown = markdown(found) if as_markdown else screen_report(found)
    screen.result(shown, {**document("bench", where), "runs": made, **found.document()})
    return errors.TARGET_MISSED if found.missed else errors.OK
