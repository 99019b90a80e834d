"""`fastcifar train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fastcifar import errors
from fastcifar.cli.options import (
    DEFAULT_RECIPE,
    AsJson,
    DatasetName,
    Device,
    EngineName,
    Quiet,
    Seed,
    Settings,
    Target,
    Threads,
    check_seed,
    check_target,
    document,
    open_session,
)
from fastcifar.errors import FastcifarError, Interrupted, UsageError


def train(
    recipe: Annotated[str | None, typer.Argument(help=DEFAULT_RECIPE)] = None,
    dataset: DatasetName = "cifar10",
    device: Device = None,
    threads: Threads = None,
    engine: EngineName = None,
    seed: Seed = 0,
    settings: Settings = None,
    target: Target = None,
    eval_every: Annotated[int, typer.Option(min=0, help="Measure the test accuracy every N epochs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/<recipe>-<seed>-<time>.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the run in --out.")] = False,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Resume the interrupted run in DIR.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Train a network and evaluate it.

    Example: fastcifar train tiny --dataset shapes
    """
    from fastcifar.bench.distributed import here
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.training import TrainView, introduction, summary
    from fastcifar.model.checkpoint import recipe_of
    from fastcifar.recipes.parse import default_recipe, load_recipe
    from fastcifar.training import run

    check_target(target)
    check_seed(seed)
    if here().size > 1:
        raise UsageError("`train` makes one run with one process: under torchrun use `fastcifar bench`.")
    screen, saved = Screen(as_json, quiet), None
    if resume is not None:
        if recipe is not None or settings or out is not None or force:
            raise UsageError("--resume continues the run as it was: it takes no recipe, --set, --out or --force.")
        folder = run.RunFolder(resume)
        saved = folder.load_state()
        device, threads, engine = device or saved["device"], threads or saved["threads"], engine or saved["engine"]
        dataset, seed = saved["dataset"]["name"], saved["seed"]
    session = open_session(screen, device, threads)
    if saved is not None:
        chosen = recipe_of(saved, folder.path)
    else:
        chosen = load_recipe(recipe or default_recipe(session.device.type), *(settings or ()))
    prepared, images = session.engine(engine), session.dataset(dataset)
    if saved is not None:
        run.check_resumable(saved, images, session.device)
    else:
        folder = run.create_run_folder(out, chosen.name, seed, force)
    flops = run.run_flops(chosen, images)
    screen.note(introduction(chosen, images, flops, session.device_name))
    view = TrainView(screen, session.device.type, eval_every > 0)
    try:
        with view:
            trained = run.train(
                chosen,
                images,
                seed=seed,
                device=session.device,
                engine=prepared,
                eval_every=eval_every,
                on_change=view.update,
                save=partial(folder.save_state, chosen, images, seed, session.device, prepared.name),
                saved=saved["loop"] if saved else None,
            )
    except BaseException as error:
        folder.remove_if_empty()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(folder.resume_hint()) from None
        raise
    record = {
        **document("train", session.device_name),
        **run.run_record(trained, flops),
        "checkpoint": str(folder.checkpoint),
    }
    shown = summary(record)
    try:
        folder.finish(trained, session.device, record)
    except FastcifarError:
        screen.console.print(shown)  # the result is shown even where it cannot be kept
        raise
    screen.result(shown, record)
    if target is not None and 100 * trained.accuracy < target:
        screen.warn(f"The accuracy of {100 * trained.accuracy:.2f} % is below the target of {target:g} %.")
        return errors.TARGET_MISSED
    return errors.OK
