"""Many runs of several recipes with the same seeds, by turns, so that drift of the machine hits all alike.

What remains to be done is what no results file holds yet: a bench that was killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastcifar import engine, machine, recipe, report, store, trainer
from fastcifar.data import Dataset, hold_out
from fastcifar.errors import Diverged, UsageError
from fastcifar.ranks import Ranks, earlier_files, together
from fastcifar.recipe import Recipe
from fastcifar.report import Report
from fastcifar.results import Record, Results, code_digest, differences, load
from fastcifar.step import Training
from fastcifar.trainer import Status


@dataclass(frozen=True)
class Plan:
    """What a bench is to do: recipes by name, the first the one that the others are held against."""

    recipes: dict[str, Recipe]
    dataset: Dataset
    device: torch.device
    seeds: range
    target: float | None = None  # percent
    until_clear: bool = False
    margin: float = 0.1  # percentage points
    engines: Mapping[str, str] = field(default_factory=dict)  # by the name of the recipe; eager where none is given

    def header(self) -> Record:
        """What all runs in a results file share."""
        return {
            "version": store.versions()["fastcifar"],
            "code": code_digest(),
            "torch": str(torch.__version__),
            "device": machine.describe(self.device),
            "engine": {name: self.engine(name) for name in self.recipes},
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "dataset": {"name": self.dataset.name, "digest": self.dataset.digest},
            "recipes": {name: recipe.to_dict(each) for name, each in self.recipes.items()},
        }

    def engine(self, name: str) -> str:
        """How the steps of a recipe are executed."""
        return self.engines.get(name, "eager")

    def images(self, name: str) -> Dataset:
        """The dataset as a recipe sees it."""
        return hold_out(self.dataset, self.recipes[name].data.holdout)

    def report(self, runs: list[Record]) -> Report:
        """What the runs so far say."""
        return report.summarize(runs, list(self.recipes), self.target, self.margin if self.until_clear else None)


@dataclass
class Progress:
    """Where a bench stands: changed in place, read by whoever draws it."""

    total: int
    runs: list[Record]
    now: str = ""  # the recipe in flight
    seed: int = 0
    status: Status | None = None  # of the run in flight
    began: float = field(default_factory=time.monotonic)
    before: int = 0  # runs that an earlier process made

    def seconds_left(self) -> float | None:
        """Time to go at the pace so far; None before the first run is finished."""
        made = len(self.runs) - self.before
        return (self.total - len(self.runs)) * (time.monotonic() - self.began) / made if made else None


def named(
    arguments: Iterable[str], settings: Iterable[str], engines: Iterable[str] = ()
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """The recipes and engines of a command line: `air94`, `mine.toml` or `wide=air94`, with settings and engines bound
    to names or for all.

    Raises UsageError for a name given twice, and for two names of one and the same recipe on the same engine.
    """
    files: dict[str, str] = {}
    for argument in arguments:
        name, equals, file = argument.rpartition("=")
        name = name if equals else recipe.title(file)
        if name in files:
            raise UsageError(f"'{name}' is there twice: name the second one, for example other={file}.")
        check_name(name, argument)
        files[name] = file
    bound = recipe.bind(settings, list(files))
    found = {name: recipe.load(file, bound[name]) for name, file in files.items()}
    asked = engine.bind(engines, list(files), "auto")
    for i, (name, each) in enumerate(found.items()):
        for other in list(found)[:i]:
            if same(each, found[other]) and asked[name] == asked[other]:
                raise UsageError(f"'{other}' and '{name}' are the same recipe with the same settings.")
    return found, asked


def check_name(name: str, where: str) -> None:
    """Raise UsageError for a name of a recipe that is none."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"'{name}' in '{where}' is no name: use letters, digits, dots and dashes.")


def same(a: Recipe, b: Recipe) -> bool:
    """Whether two recipes differ in nothing but their names and summaries."""
    return dataclasses.replace(a, name="", summary="") == dataclasses.replace(b, name="", summary="")


def remaining(plan: Plan, runs: list[Record], rank: int = 0, ranks: int = 1) -> list[tuple[str, int]]:
    """The runs still to be made by one of several ranks, in order: seed by seed, the recipes by turns.

    All recipes of a seed fall to one rank, so that what is compared was made on the same device.
    """
    done = {(run["name"], run["seed"]) for run in runs}
    open_seeds = [seed for seed in plan.seeds if any((name, seed) not in done for name in plan.recipes)]
    tasks = []
    for seed in open_seeds[rank::ranks]:
        order = list(plan.recipes) if seed % 2 == 0 else list(reversed(plan.recipes))
        tasks += [(name, seed) for name in order if (name, seed) not in done]
    return tasks


def make(
    plan: Plan, path: Path, ranks: Ranks, on_change: Callable[[Progress], None] = lambda progress: None
) -> list[Record]:
    """Make all runs that no results file holds yet, this rank's part of them, and return everybody's.

    Raises UsageError where the file, or another rank, is about something else.
    """
    with together(ranks), Results(ranks.file(path), plan.header()) as results:
        earlier = [load(file) for file in earlier_files(path, ranks)]
        for header, _ in earlier:
            check_same(results.header, header, "an earlier results file")
        others = [run for _, runs in earlier for run in runs]
        told = ranks.gather((results.header, asked(plan), results.runs + others))
        for rank, (header, arguments, _) in enumerate(told):
            check_same(told[0][0], header, f"rank {rank}")
            if arguments != told[0][1]:
                raise UsageError(f"Rank {rank} was started with other arguments than rank 0: start all alike.")
        done = [run for _, _, runs in told for run in runs]
        run_all(plan, results, remaining(plan, done, ranks.rank, ranks.size), on_change)
        return sorted((run for runs in ranks.gather(results.runs + others) for run in runs), key=lambda run: run["at"])


def asked(plan: Plan) -> tuple[Any, ...]:
    """What a plan asks for besides what its header says."""
    return list(plan.seeds), plan.target, plan.until_clear, plan.margin


def check_same(expected: Record, found: Record, where: str) -> None:
    """Raise UsageError where runs cannot be put together."""
    if different := differences(found, expected):
        raise UsageError(f"The runs of {where} are of another bench ({'; '.join(different)}).")


def run_all(
    plan: Plan,
    results: Results,
    tasks: list[tuple[str, int]],
    on_change: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Make the runs, each written to disk before the next; with `until_clear`, stop when all comparisons are."""
    total = len(results.runs) + len(tasks)
    progress = Progress(total, results.runs, before=len(results.runs))
    on_change(progress)
    warm: set[str] = set()
    for position, (name, seed) in enumerate(tasks):
        progress.now, progress.seed, progress.status = name, seed, None
        results.add(run_timed(plan, name, seed, warm, progress))
        on_change(progress)
        seed_done = position + 1 == len(tasks) or tasks[position + 1][1] != seed
        if plan.until_clear and seed_done and plan.report(results.runs).clear:
            break


def run_timed(plan: Plan, name: str, seed: int, warm: set[str], progress: Progress) -> Record:
    """One training as a line of the results file, with the seconds that passed meanwhile. The first of all is
    rehearsed, on CUDA the first of every recipe.

    `warm` holds the recipes that were, `progress` takes up where the run stands.
    """
    began = time.monotonic()
    if not warm or (name not in warm and plan.device.type == "cuda"):
        with machine.memory_errors(plan.device, plan.recipes[name].training.batch_size):
            trainer.rehearse(plan.recipes[name], plan.images(name), plan.device, plan.engine(name))
    warm.add(name)

    def watch(status: Status) -> None:
        progress.status = status

    return {**run_once(plan, name, seed, watch), "wall_s": time.monotonic() - began}


def run_once(plan: Plan, name: str, seed: int, on_change: Callable[[Status], None]) -> Record:
    """One training as a line of the results file; one that diverges is a line too."""
    chosen = plan.recipes[name]
    with machine.memory_errors(plan.device, chosen.training.batch_size):
        images = plan.images(name)
        training = Training(chosen, images, plan.device, seed)
        try:
            result = trainer.train(training, images, engine=plan.engine(name), on_change=on_change)
        except Diverged:
            return failed(plan, name, seed)
    keys = ("accuracy", "accuracy_no_tta", "train_s", "epochs_s", "eval_s", "peak_memory")
    found = {key: getattr(result, key) for key in keys}
    return {**failed(plan, name, seed), "diverged": False, **found, "accuracy_on": recipe.judged_on(chosen)}


def failed(plan: Plan, name: str, seed: int) -> Record:
    """The line of a run that came to no end."""
    line = {"name": name, "recipe": plan.recipes[name].name, "seed": seed}
    return {**line, "diverged": True, "accuracy": None, "train_s": None, "at": time.time()}


def default_path(recipes: Iterable[str]) -> Path:
    """Where results go when nothing else is asked."""
    return Path("bench") / f"{'-'.join(recipes)}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"


def reported(paths: list[Path]) -> tuple[Record, list[Record]]:
    """A header with all recipes, and the runs, of several results files.

    Raises UsageError where they do not belong together: one name for two recipes, a seed twice, other images.
    """
    loaded = [load(path) for path in paths]
    header = {**loaded[0][0], "recipes": {}}
    runs: dict[tuple[str, int], Record] = {}
    for path, (other, lines) in zip(paths, loaded, strict=True):
        for key in ("dataset", "device", "torch"):
            if other[key] != header[key]:
                raise UsageError(f"{path} and {paths[0]} hold runs of different kinds: {key} differs.")
        for name, each in other["recipes"].items():
            if header["recipes"].setdefault(name, each) != each:
                raise UsageError(f"Recipe '{name}' in {path} is not the one of the same name in another file.")
        for run in lines:
            if (run["name"], run["seed"]) in runs:
                raise UsageError(f"Seed {run['seed']} of '{run['name']}' in {path} is in another file too.")
            runs[run["name"], run["seed"]] = run
    made = {name for name, _ in runs}
    header["recipes"] = {name: each for name, each in header["recipes"].items() if name in made} or header["recipes"]
    return header, sorted(runs.values(), key=lambda run: float(run["at"]))
