"""`fastcifar bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcifar import errors
from fastcifar.cli.options import AsJson, DatasetName, Device, Engines, Quiet, Threads, document, obtain
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
    engine: Engines = None,
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
    from fastcifar.bench import distributed as ranks
    from fastcifar.bench import plan as benches
    from fastcifar.bench import report as reports
    from fastcifar.bench import results, runner
    from fastcifar.cli.display import bench as bench_view
    from fastcifar.cli.display.screen import Screen
    from fastcifar.system import device as machine
    from fastcifar.system import files
    from fastcifar.training import engine as engines
    from fastcifar.training import run as single

    single.check_target(target)
    single.check_seed(seed + runs)
    if svg is not None:
        files.check_writable(svg)
    us = ranks.here()
    screen = Screen(as_json and us.first, quiet or not us.first)
    if report:
        header, made = results.reported([Path(file) for file in recipes])
        found = reports.summarize(made, list(header["recipes"]), target, margin if until_clear else None)
        where = header["device"]
    else:
        if us.size > 1 and (out is None or until_clear):
            raise UsageError("Under torchrun a bench needs --out, which all ranks share, and --until-clear cannot be.")
        chosen, asked = benches.named(recipes, settings or [], engine or [])
        place = machine.pick_device(device or us.device())
        machine.prepare(place, threads or us.threads())
        if busy := machine.others_at_work(place):
            screen.warn(busy)
        found_engines = {name: engines.choose(each, place) for name, each in asked.items()}
        for note in {note for _, note in found_engines.values() if note}:
            screen.warn(note)
        running = {name: each for name, (each, _) in found_engines.items()}
        seeds = range(seed, seed + runs)
        plan = benches.Plan(chosen, obtain(dataset, screen), place, seeds, target, until_clear, margin, running)
        path = out or benches.default_path(chosen)
        where = machine.describe(place)
        if us.first:
            screen.note(bench_view.introduction(plan, where, path))
        view = bench_view.BenchView(screen, plan)
        try:
            with view:
                made = runner.make(plan, path, us, view.update)
        except KeyboardInterrupt:
            kept = view.progress.runs if view.progress else []
            if kept:
                screen.console.print(bench_view.screen_report(plan.report(kept)))
            raise Interrupted(f"Interrupted; {len(kept)} runs are kept in {path}: the same command goes on.") from None
        if not us.first:
            return errors.OK
        found = plan.report(made)
    if svg is not None:
        from fastcifar.cli.display import svg as picture

        files.write_text(svg, picture.scatter(made, found))
    shown = bench_view.markdown(found) if as_markdown else bench_view.screen_report(found)
    screen.result(shown, {**document("bench", where), "runs": made, **found.document()})
    return errors.TARGET_MISSED if found.missed else errors.OK
