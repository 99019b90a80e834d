"""The command line: a function a subcommand that parses, calls and shows. Torch is imported inside commands only."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fastcifar
from fastcifar import errors
from fastcifar.errors import FastcifarError, Interrupted, UsageError

if TYPE_CHECKING:
    from fastcifar.console import Screen
    from fastcifar.data import Dataset

app = typer.Typer(
    name="fastcifar",
    help="Train on CIFAR-10 in seconds, and see where the time goes.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is there in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output; the rest to standard error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the result.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the first GPU where there is one.")]
DEFAULT_RECIPE = "A recipe or a TOML file; by default fast94 on a GPU and quick90 elsewhere."
Threads = Annotated[int | None, typer.Option(min=1, max=4096, help="Threads on the CPU; all cores by default.")]
DatasetName = Annotated[str, typer.Option(help="cifar10, cifar100, shapes (needs no download), or one imported.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe; may be given again."),
]
Engine = Annotated[
    str | None, typer.Option(help="How a step is executed: eager, compiled, graph, or auto, which is the default.")
]
Engines = Annotated[
    list[str] | None,
    typer.Option("--engine", metavar="[NAME:]ENGINE", help="How steps are executed: eager, compiled, graph or auto."),
]
REPORT = "https://github.com/fastcifar/fastcifar/issues"


def main() -> None:
    """Run the command line and leave with its exit code; on failure say why, as JSON where asked."""
    code, message = errors.OK, ""
    try:
        returned = app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        code = returned if isinstance(returned, int) else errors.OK
        if code == errors.INTERRUPTED:
            message = "Interrupted."
    except FastcifarError as error:
        code, message = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, message = errors.INTERRUPTED, "Interrupted."
    except BrokenPipeError:
        # Whoever read our output has left; there is nobody to tell.
        sys.stdout = None
        sys.exit(errors.OK)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            sys.stdout = None  # what is still in its buffer cannot be written either
            code, message = errors.DATA, "The output cannot be written: no space is left on its device."
        elif hasattr(error, "format_message"):  # Typer's own errors about options and arguments
            code, message = errors.USAGE, f"{error.format_message()} See `fastcifar --help`."
        else:
            traceback.print_exc()
            code = errors.BUG
            message = f"This is a bug of fastcifar; please report it with the lines above: {REPORT}"
    if message:
        # Torchrun starts ranks anew where one died: standard output is for the one that comes to the end.
        if "--json" in sys.argv[1:] and sys.stdout is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
            print(json.dumps({"error": message, "exit_code": code}), flush=True)
        else:
            print(message if code == errors.INTERRUPTED else f"Error: {message}", file=sys.stderr)
    sys.exit(code)


def show_version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        print(f"fastcifar {fastcifar.__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train on CIFAR-10 in seconds, and see where the time goes."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def document(command: str, device: str | None = None) -> dict[str, Any]:
    """The keys that every JSON document has."""
    from importlib.metadata import version

    return {"command": command, "version": fastcifar.__version__, "torch": version("torch"), "device": device}


@app.command()
def download(
    dataset: Annotated[str, typer.Option(help="cifar10 or cifar100.")] = "cifar10",
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="Import an archive, a batch folder or an image folder instead."),
    ] = None,
    url: Annotated[str | None, typer.Option(help="A mirror of the archive; the checksum still decides.")] = None,
    name: Annotated[str | None, typer.Option(help="With --from: keep a dataset of your own under this name.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the dataset and free its space.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Get a dataset: over the network, or from files you have.

    Example: fastcifar download --from ~/data/cifar-10-python.tar.gz
    """
    from fastcifar import data
    from fastcifar.console import ProgressView, Screen, facts

    screen = Screen(as_json, quiet)
    if url is not None and source is not None:
        raise UsageError("--url and --from exclude each other: a dataset comes from one place.")
    if remove:
        gone = data.remove(name or dataset)
        screen.result(
            "\n".join(f"Removed {path}." for path in gone) or f"There is nothing of '{name or dataset}' to remove.",
            {**document("download"), "dataset": name or dataset, "removed": [str(path) for path in gone]},
        )
        return
    with ProgressView(screen) as view:
        if source is not None:
            found = data.import_from(source, dataset, name, view.update)
        elif data.path_of(dataset).exists() and url is None:
            found = data.verify(dataset, view.update)
            screen.note(f"{dataset} is here already; its content was hashed again and is right.")
        else:
            found = data.download(dataset, url, view.update)
    if not found.published:
        screen.note(f"'{found.name}' is not a published dataset: results on it compare with nobody else's.")
    images = len(found.train.images) + len(found.test.images)
    path = str(data.path_of(found.name))
    screen.result(
        facts(
            [
                ("dataset", f"{found.name}: {len(found.classes)} classes"),
                ("images", f"{len(found.train.images):,} train, {len(found.test.images):,} test"),
                (
                    "content",
                    f"{'the published dataset' if found.published else 'your own'}, SHA-256 {found.digest[:16]}…",
                ),
                ("kept in", path),
            ]
        ),
        {
            **document("download"),
            "dataset": found.name,
            "path": path,
            "images": images,
            "classes": list(found.classes),
            "source": found.source,
            "verified": found.published,
        },
    )


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, or the path of a TOML file.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the recipes, or print one in full as TOML.

    Example: fastcifar recipes air94 > mine.toml
    """
    from fastcifar import recipe
    from fastcifar.console import Screen, facts

    screen = Screen(as_json, quiet)
    if name is None:
        listed = [recipe.load(known) for known in recipe.names()]
        rows = [(item.name, item.summary) for item in listed]
        screen.result(facts(rows), [{"name": item, "summary": summary} for item, summary in rows])
        return
    from fastcifar import operations

    found = recipe.load(name, settings or ())
    counted, updates = operations.count(found), operations.count_optimizer(found)
    screen.result(
        f"# {counted.total:.4g} operations on CIFAR-10, {updates:.3g} more in the optimizer; "
        f"{counted.parameters:,} trained parameters.\n{recipe.to_toml(found)}".rstrip(),
        {
            **document("recipes"),
            "name": found.name,
            "summary": found.summary,
            "recipe": recipe.to_dict(found),
            "flops": counted.total,
            "optimizer_flops": updates,
            "parameters": counted.parameters,
        },
    )


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help=DEFAULT_RECIPE)] = None,
    dataset: DatasetName = "cifar10",
    device: Device = None,
    threads: Threads = None,
    engine: Engine = None,
    seed: Annotated[int, typer.Option(help="Where all random numbers come from.")] = 0,
    settings: Settings = None,
    target: Annotated[
        float | None, typer.Option(help="Leave with exit code 5 below this accuracy, in percent.")
    ] = None,
    eval_every: Annotated[int, typer.Option(min=0, help="Take the test accuracy every so many epochs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<recipe>-<seed>-<time> by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a run that is in --out.")] = False,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with an interrupted run.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Train a network and evaluate it.

    Example: fastcifar train tiny --dataset shapes
    """
    from fastcifar import engine as engines
    from fastcifar import machine, ranks, store
    from fastcifar import recipe as recipe_files
    from fastcifar import run as runs
    from fastcifar.console import Screen, TrainView, summary

    screen = Screen(as_json, quiet)
    runs.check_target(target)
    runs.check_seed(seed)
    if ranks.here().size > 1:
        raise UsageError("`train` makes one run with one process: under torchrun use `fastcifar bench`.")
    if resume is not None:
        if recipe is not None or settings or out is not None or force:
            raise UsageError("--resume goes on with the run as it was: it takes no recipe, --set, --out or --force.")
        saved = runs.saved_state(resume)
        place = machine.pick_device(device or saved["device"])
        runs.check_same_kind(saved, place)
        machine.prepare(place, threads or saved["threads"])
        chosen, note = engines.choose(engine or saved["engine"], place)
        images = obtain(saved["dataset"]["name"], screen)
        runs.check_same_dataset(saved, images)
        run = runs.Run(store.recipe_of(saved, resume), images, place, saved["seed"], resume, chosen, saved["loop"])
    else:
        place = machine.pick_device(device)
        found = recipe_files.load(recipe or recipe_files.default(place.type), settings or ())
        machine.prepare(place, threads)
        chosen, note = engines.choose(engine or "auto", place)
        images = obtain(dataset, screen)
        run = runs.Run(found, images, place, seed, store.create_run_folder(out, found.name, seed, force), chosen)
    if note:
        screen.warn(note)
    if busy := machine.others_at_work(place):
        screen.warn(busy)
    view = TrainView(screen, "GPU" if place.type == "cuda" else place.type.upper(), eval_every > 0)
    try:
        screen.note(run.introduction())  # its rehearsal wakes the device up, which must not count as train time
        with view:
            result = run.train(eval_every, view.update)
    except BaseException as error:
        run.leave()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(run.way_on()) from None
        raise
    record = {**document("train", machine.describe(place)), **run.document(result)}
    shown = summary(result, record, str(run.folder))
    try:
        run.keep(record)
    except FastcifarError:
        screen.console.print(shown)  # what was reached is not lost with the disk
        raise
    screen.result(shown, record)
    if target is not None and 100 * result.accuracy < target:
        screen.warn(f"The accuracy of {100 * result.accuracy:.2f} % is below the target of {target:g} %.")
        return errors.TARGET_MISSED
    return errors.OK


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or a folder; the test set by default.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Another dataset than the one trained on.")] = None,
    tta: Annotated[str, typer.Option(help="Test-time augmentation: recipe, none, flip or full.")] = "recipe",
    per_class: Annotated[bool, typer.Option("--per-class", help="The accuracy on each class.")] = False,
    confusion: Annotated[bool, typer.Option("--confusion", help="Which class was taken for which.")] = False,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint: on the test set, on an image folder, or on single images.

    Example: fastcifar eval runs/tiny-0-20261124-120000 --per-class
    """
    from fastcifar import inspection, machine, store
    from fastcifar.console import Screen, evaluation_report

    screen = Screen(as_json, quiet)
    place = machine.pick_device(device)
    machine.prepare(place, threads)
    model = inspection.Model(store.load_checkpoint(checkpoint), place, tta)
    if images and dataset:
        raise UsageError("Images and --dataset exclude each other: one thing is evaluated at a time.")
    if images:
        subject = inspection.from_files(images, model)
    else:
        subject = inspection.from_dataset(obtain(dataset or model.dataset, screen), model)
    found = {
        **document("eval", machine.describe(place)),
        "checkpoint": str(checkpoint),
        **inspection.judge(model, subject, per_class, confusion),
    }
    screen.result(evaluation_report(found, model.classes), found)


@app.command()
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
        files.write_text(trace, json.dumps({"traceEvents": first.events}))
    if svg is not None:
        files.write_text(svg, picture.icicle(first, where))
    screen.result(views.report(first, *shared, by, sort, depth, top), {**common, **first.document()})


@app.command()
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


def obtain(name: str, screen: Screen) -> Dataset:
    """The dataset of that name; a published one that is not here is downloaded."""
    from fastcifar import data
    from fastcifar.console import ProgressView

    try:
        return data.load(name)
    except data.MissingDataset:
        if name not in data.PUBLISHED:
            raise
    screen.note(f"{name} is not on this machine yet.")
    with ProgressView(screen) as view:
        return data.download(name, None, view.update)
