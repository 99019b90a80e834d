"""`fastcifar train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcifar import errors
from fastcifar.cli.options import (
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
from fastcifar.errors import FastcifarError, Interrupted, UsageError


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
    from fastcifar.bench.distributed import here
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.training import TrainView, summary
    from fastcifar.model.checkpoint import recipe_of
    from fastcifar.recipes.parse import default_recipe, read_recipe
    from fastcifar.system.device import busy_warning, device_name, pick_device, prepare_device
    from fastcifar.training.engine import choose_engine
    from fastcifar.training.run import (
        Run,
        check_same_dataset,
        check_same_kind,
        check_seed,
        check_target,
        create_run_folder,
        saved_state,
    )

    screen = Screen(as_json, quiet)
    check_target(target)
    check_seed(seed)
    if here().size > 1:
        raise UsageError("`train` makes one run with one process: under torchrun use `fastcifar bench`.")
    if resume is not None:
        if recipe is not None or settings or out is not None or force:
            raise UsageError("--resume goes on with the run as it was: it takes no recipe, --set, --out or --force.")
        saved = saved_state(resume)
        place = pick_device(device or saved["device"])
        check_same_kind(saved, place)
        prepare_device(place, threads or saved["threads"])
        chosen, note = choose_engine(engine or saved["engine"], place)
        images = obtain(saved["dataset"]["name"], screen)
        check_same_dataset(saved, images)
        run = Run(recipe_of(saved, resume), images, place, saved["seed"], resume, chosen, saved["loop"])
    else:
        place = pick_device(device)
        found = read_recipe(recipe or default_recipe(place.type), settings or ())
        prepare_device(place, threads)
        chosen, note = choose_engine(engine or "auto", place)
        images = obtain(dataset, screen)
        run = Run(found, images, place, seed, create_run_folder(out, found.name, seed, force), chosen)
    if note:
        screen.warn(note)
    if busy := busy_warning(place):
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
    record = {**document("train", device_name(place)), **run.document(result)}
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
