"""`fastcifar train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcifar import errors
from fastcifar.cli.options import (
    AsJson,
    DatasetName,
    Device,
    EngineName,
    Quiet,
    RecipeName,
    Seed,
    Session,
    Settings,
    Target,
    Threads,
    check_seed,
    check_target,
    document,
    open_session,
)
from fastcifar.errors import FastcifarError, Interrupted, UsageError

if TYPE_CHECKING:
    from fastcifar.cli.display.screen import Screen
    from fastcifar.data.dataset import Dataset
    from fastcifar.recipes.schema import Recipe
    from fastcifar.training.engine import Engine
    from fastcifar.training.run import Trained
    from fastcifar.training.run_folder import RunFolder


def train(
    recipe: RecipeName = None,
    dataset: DatasetName = "cifar10",
    device: Device = None,
    threads: Threads = None,
    engine: EngineName = None,
    seed: Seed = 0,
    settings: Settings = None,
    target: Target = None,
    eval_every: Annotated[int, typer.Option(min=0, help="Measure the test accuracy every N epochs; 0: never.")] = 0,
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
    from fastcifar.bench.rates import leave_rate
    from fastcifar.cli.display.screen import Screen
    from fastcifar.cli.display.training import introduction, summary_from_document
    from fastcifar.training.run import run_flops, run_record

    check_target(target)
    check_seed(seed)
    if here().size > 1:
        raise UsageError("`train` makes one run in one process: under torchrun or srun use `fastcifar bench`.")
    screen = Screen(as_json, quiet)
    if resume is None:
        prepared = new_job(open_session(screen, device, threads), recipe, settings, dataset, seed, engine, out, force)
    elif recipe is not None or settings or out is not None or force:
        raise UsageError("--resume continues the run as it was: it takes no recipe, --set, --out or --force.")
    else:
        prepared = resumed_job(screen, resume, device, threads, engine)
    with prepared as job:
        with resumable(job.folder):
            flops = run_flops(job.recipe, job.dataset)
            screen.note(introduction(job.recipe, job.dataset, flops, job.session.device_name))
            trained = carry_out(job, eval_every)
        record = {
            **document("train", job.session.device_name),
            **run_record(trained, flops),
            "checkpoint": str(job.folder.checkpoint),
        }
        summary = summary_from_document(record)
        try:
            job.folder.finish(trained, job.session.device, record)
            leave_rate(record)
        except FastcifarError:
            screen.console.print(summary)  # the result is shown even if it cannot be kept
            raise
    screen.result(summary, record)
    if target is not None and 100 * trained.accuracy < target:
        screen.warn(f"The accuracy of {100 * trained.accuracy:.2f} % is below the target of {target:g} %.")
        return errors.TARGET_MISSED
    return errors.OK


@dataclass(frozen=True)
class Job:
    """A run to carry out: a new one, or an interrupted one with the state of its loop."""

    session: Session
    recipe: Recipe
    dataset: Dataset
    seed: int
    engine: Engine
    folder: RunFolder
    saved: dict[str, Any] | None = None


@contextmanager
def new_job(
    session: Session,
    recipe: str | None,
    settings: list[str] | None,
    dataset: str,
    seed: int,
    engine: str | None,
    out: Path | None,
    force: bool,
) -> Iterator[Job]:
    """A new run, its folder made and locked. Raises UsageError or DataError."""
    from fastcifar.recipes.parse import default_recipe, load_recipe
    from fastcifar.training.run_folder import create_run_folder

    loaded = load_recipe(recipe or default_recipe(session.device.type, dataset), *(settings or ()))
    prepared, images = session.engine(engine), session.dataset(dataset)
    with create_run_folder(out, loaded.name, seed, force) as folder:
        yield Job(session, loaded, images, seed, prepared, folder)


@contextmanager
def resumed_job(
    screen: Screen, path: Path, device: str | None, threads: int | None, engine: str | None
) -> Iterator[Job]:
    """The interrupted run in the folder `path`, on the same device with the same threads and engine unless others are
    given. Raises DataError where there is none, UsageError where it cannot be resumed here."""
    from fastcifar.model.checkpoint import recipe_of
    from fastcifar.training.run_folder import check_resumable, open_run_folder

    with open_run_folder(path) as folder:
        state = folder.load_state()
        session = open_session(screen, device or state["device"], threads or state["threads"])
        recipe = recipe_of(state, path)
        prepared, images = session.engine(engine or state["engine"]), session.dataset(state["dataset"]["name"])
        check_resumable(state, images, session.device)
        yield Job(session, recipe, images, state["seed"], prepared, folder, state["loop"])


@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """On Ctrl-C raise Interrupted, which says how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(folder.resume_hint()) from None


def carry_out(job: Job, eval_every: int) -> Trained:
    """Train with a live view."""
    from fastcifar.cli.display.training import TrainView
    from fastcifar.training import run

    session, folder = job.session, job.folder
    with TrainView(session.screen, session.device.type, eval_every > 0) as view:
        return run.train(
            job.recipe,
            job.dataset,
            seed=job.seed,
            device=session.device,
            engine=job.engine,
            eval_every=eval_every,
            on_change=view.update,
            save=partial(folder.save_state, job.recipe, job.dataset, job.seed, session.device, job.engine.name),
            saved=job.saved,
        )
