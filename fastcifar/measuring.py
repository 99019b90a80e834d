"""The subcommands that measure: profile, bench, search. Torch is imported inside commands only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fastcifar import errors
from fastcifar.errors import Interrupted, UsageError
from fastcifar.options import (
    DEFAULT_RECIPE,
    AsJson,
    DatasetName,
    Device,
    Engine,
    Engines,
    Quiet,
    Settings,
    Threads,
    document,
    obtain,
)


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
    engine: Engines = None,
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
    from fastcifar import files, machine, picture, views
    from fastcifar.console import Screen

    screen = Screen(as_json, quiet)
    views.check(by, sort)
    if versus is not None and (trace is not None or svg is not None or checkpoint is not None):
        raise UsageError("--vs shows tables of two recipes: it goes with none of --trace, --svg and --checkpoint.")
    for path in (trace, svg):
        if path is not None:
            files.check_writable(path)
    from fastcifar import profiler, study

    place = machine.pick_device(device)
    machine.prepare(place, threads)
    asked = study.Study(recipe, versus, checkpoint, settings or [], dataset, place, batch, engine or [])
    if busy := machine.others_at_work(place):
        screen.warn(busy)
    screen.note(asked.introduction())
    profiles = asked.measure(steps, whole_run)
    where = machine.describe(place)
    common = {**document("profile", where), "dataset": asked.dataset.name}
    shared = (where, asked.dataset.name, screen.console.width)
    first = profiles[0]
    if versus is not None:
        second, found = profiles[1], profiler.comparison(*profiles)
        sides = {"a": first.document(), "b": second.document(), "comparison": dataclasses.asdict(found)}
        screen.result(views.comparison_report(first, second, found, *shared, top), {**common, **sides})
        return
    if trace is not None:
        import json

        files.write_text(trace, json.dumps({"traceEvents": first.events}))
    if svg is not None:
        files.write_text(svg, picture.icicle(first, where))
    screen.result(views.report(first, *shared, by, sort, depth, top), {**common, **first.document()})


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
    from fastcifar import bench as benches
    from fastcifar import bench_view, files, machine, ranks
    from fastcifar import engine as engines
    from fastcifar import report as reports
    from fastcifar import run as single
    from fastcifar.console import Screen

    single.check_target(target)
    single.check_seed(seed + runs)
    if svg is not None:
        files.check_writable(svg)
    us = ranks.here()
    screen = Screen(as_json and us.first, quiet or not us.first)
    if report:
        header, made = benches.reported([Path(file) for file in recipes])
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
                made = benches.make(plan, path, us, view.update)
        except KeyboardInterrupt:
            kept = view.progress.runs if view.progress else []
            if kept:
                screen.console.print(bench_view.screen_report(plan.report(kept)))
            raise Interrupted(f"Interrupted; {len(kept)} runs are kept in {path}: the same command goes on.") from None
        if not us.first:
            return errors.OK
        found = plan.report(made)
    if svg is not None:
        from fastcifar import picture

        files.write_text(svg, picture.scatter(made, found))
    shown = bench_view.markdown(found) if as_markdown else bench_view.screen_report(found)
    screen.result(shown, {**document("bench", where), "runs": made, **found.document()})
    return errors.TARGET_MISSED if found.missed else errors.OK


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
    from fastcifar import bench, machine, ranks, search_view
    from fastcifar import engine as engines
    from fastcifar import recipe as recipe_files
    from fastcifar import run as single
    from fastcifar import search as searches
    from fastcifar.console import Screen

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
    screen.note(search_view.introduction(asked, where, out))
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
