"""The command line: a function a subcommand that parses, calls and shows; those that measure are in `measuring`.

Torch is imported inside commands only.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

import fastcifar
from fastcifar import errors, measuring
from fastcifar.errors import FastcifarError, Interrupted, UsageError
from fastcifar.options import (
    DEFAULT_RECIPE,
    AsJson,
    DatasetName,
    Device,
    Engine,
    Quiet,
    Settings,
    Threads,
    document,
    obtain,
)

app = typer.Typer(
    name="fastcifar",
    help="Train on CIFAR-10 in seconds, and see where the time goes.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is there in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)
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
            import json

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


for command in (measuring.profile, measuring.bench, measuring.search):
    app.command()(command)
