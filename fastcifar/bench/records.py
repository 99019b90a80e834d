"""What is known of one run, and what the runs in a file share: recipes, images, code and machine.

Plain data that loads without torch. Format 1 kept the length of a run in its name (`good@0.5`); it is still read.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from fastcifar.errors import DataError
from fastcifar.recipes.parse import recipe_to_dict, stored_recipe
from fastcifar.recipes.schema import Recipe

KIND, FORMAT = "fastcifar bench", 2
FORMATS = (1, FORMAT)  # that are read
SHARES = ("accuracy", "accuracy_no_tta")  # of one
NUMBERS = ("train_s", "epochs_s", "eval_s", "wall_s", "at", "peak_memory", "flops", "other_load")
OPTIONAL = ("accuracy_no_tta", "epochs_s", "eval_s", "peak_memory", "flops", "other_load")  # may be null
MOST, LATEST = 1e18, 1e11  # more than any number in a results file, and than any time, seconds since 1970
MAX_OTHER_LOAD = 0.1  # share of the processors; a run beside which others used more is left out of the times


class Task(NamedTuple):
    """A run to be made: a recipe by its name in the results file, a seed, and the fraction of the recipe's length."""

    name: str
    seed: int
    fraction: float = 1.0


@dataclass(frozen=True)
class Machine:
    """What times depend on besides recipe and engine; `threads` is None where a GPU trains."""

    device: str
    threads: int | None
    torch: str

    def __str__(self) -> str:
        return f"{self.device}, torch {self.torch}" if self.torch else self.device


@dataclass(frozen=True)
class RunRecord:
    """One finished run; accuracies are fractions of one, times seconds, memory bytes."""

    name: str  # of the recipe in its results file
    recipe: str  # the recipe's own name
    seed: int
    accuracy: float | None  # None for a run that diverged or failed
    train_s: float | None
    at: float = 0.0  # when it ended, seconds since 1970
    fraction: float = 1.0  # of the recipe's epochs
    diverged: bool = False  # or failed: it has no accuracy
    accuracy_no_tta: float | None = None
    epochs_s: float | None = None
    eval_s: float | None = None
    peak_memory: int | None = None
    flops: int | None = None  # of training and the final evaluation
    accuracy_on: str | None = None
    wall_s: float = 0.0
    other_load: float | None = None  # share of the machine's processors that others used meanwhile; None: unknown
    error: str | None = None  # why it failed, where it did not diverge
    engine: str | None = None  # that ran, which is not the header's where that did not agree with the eager one
    machine: Machine | None = None  # known from the header of its file

    @property
    def task(self) -> Task:
        """What was to be made."""
        return Task(self.name, self.seed, self.fraction)

    @property
    def undisturbed(self) -> bool:
        """Whether its train time counts: others hardly used the processors beside it, as far as is known."""
        return self.train_s is not None and (self.other_load is None or self.other_load <= MAX_OTHER_LOAD)

    def line(self) -> dict[str, Any]:
        """The run as a line of a results file."""
        return {key: value for key, value in self.document().items() if key != "machine"}

    def document(self) -> dict[str, Any]:
        """The run as JSON documents hold it."""
        return {key: value for key, value in asdict(self).items() if value is not None or key != "error"}

    @classmethod
    def from_line(cls, line: Mapping[str, Any], header: Header) -> Self:
        """The run of a line; raises ValueError with what is wrong with it. Unknown keys are left out."""
        if problem := line_problem(line):
            raise ValueError(problem)
        name, at, fraction = line["name"].partition("@")  # format 1; no name has an @ of its own
        if name not in header.recipes:
            raise ValueError(f"its recipe '{name}' is not among those of the first line")
        length = {"fraction": float(fraction)} if at else {}
        known = {field.name for field in dataclasses.fields(cls)} - {"machine"}
        values = {"engine": header.engine.get(name)} | {key: value for key, value in line.items() if key in known}
        values |= {"name": name, "diverged": line["accuracy"] is None, **length}
        return cls(**values, machine=header.machine)


def wall_clock(runs: Iterable[RunRecord]) -> float:
    """Seconds during which at least one of these runs was under way: of several ranks, what a clock on the wall shows,
    without the time in which none of them ran, such as after a kill."""
    seconds, reached = 0.0, -math.inf
    for began, end in sorted((run.at - run.wall_s, run.at) for run in runs):
        seconds += max(0.0, end - max(began, reached))
        reached = max(reached, end)
    return seconds


FAULTS = (KeyError, TypeError, AttributeError, ValueError)  # that reading a damaged record raises


def fault(error: Exception) -> str:
    """What is wrong with a record whose reading raised one of `FAULTS`, in words."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error) if isinstance(error, ValueError) else "it is wrongly nested"


def line_problem(line: Mapping[str, Any]) -> str | None:
    """What makes a line no run, such as a file edited by hand may hold; None where nothing does."""
    for key in ("name", "recipe", "seed", "accuracy", "train_s"):
        if key not in line:
            return f"it lacks '{key}'"
    for key in ("name", "recipe", "accuracy_on", "error"):
        if not isinstance(value := line.get(key, ""), str) and (value is not None or key in ("name", "recipe")):
            return f"'{key}' is {value!r}, but must be a text"
    if type(line["seed"]) is not int or line["seed"] < 0:
        return f"'seed' is {line['seed']!r}, but must be a whole number of at least 0"
    failed = line["accuracy"] is None
    if (line["train_s"] is None) != failed:
        return "one of 'accuracy' and 'train_s' is null, the other is not"
    if bool(line.get("diverged", failed)) != failed:
        return "'diverged' must be true where 'accuracy' is null, and false elsewhere"
    for key in (*SHARES, *NUMBERS):
        most = 1 if key in SHARES else LATEST if key == "at" else MOST
        may_lack = key in OPTIONAL or (failed and key in ("accuracy", "train_s"))
        value = line.get(key, 0)
        if not (value is None and may_lack) and not is_number(value, most):
            return f"'{key}' is {value!r}, but must be {'in 0..1' if most == 1 else 'a number of at least 0'}"
    fraction = line["name"].partition("@")[2] or line.get("fraction", 1)
    try:
        valid = is_number(float(fraction), 1) and float(fraction) > 0
    except (TypeError, ValueError, OverflowError):
        valid = False
    return None if valid else f"the fraction {fraction!r} must be a number above 0, at most 1"


def is_number(value: Any, most: float) -> bool:
    """Whether a value read from JSON is a number in 0..most: no text, truth value, NaN or infinity."""
    return type(value) in (int, float) and 0 <= value <= most


@dataclass(frozen=True)
class Header:
    """What all runs in a results file share; recipes, engines and precisions by the names of the runs."""

    version: str
    code: str  # digest of what results depend on
    torch: str
    device: str
    threads: int | None  # None where a GPU trains
    engine: dict[str, str]
    precision: dict[str, str]
    dataset: dict[str, Any]  # name, digest (None where unknown), published
    recipes: dict[str, Recipe]

    @property
    def machine(self) -> Machine:
        return Machine(self.device, self.threads, self.torch.partition("+")[0])

    def line(self) -> dict[str, Any]:
        """The first line of a results file."""
        recipes = {name: recipe_to_dict(recipe) for name, recipe in self.recipes.items()}
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": KIND, "format": FORMAT, **plain, "recipes": recipes}

    @classmethod
    def from_line(cls, line: Mapping[str, Any], where: str) -> Self:
        """The header in a first line of format 1 or 2; raises DataError for a damaged one, or for a recipe that this
        version of the program cannot express."""
        try:
            threads, device, dataset = line["threads"], line["device"], line["dataset"]
            stored, fractions = full_length(line["recipes"])
            recipes = {name: stored_recipe(tree, f"'{name}' of {where}") for name, tree in stored.items()}
            for name, fraction in fractions.items():
                training = recipes[name].training
                training = dataclasses.replace(training, epochs=training.epochs / fraction)
                recipes[name] = dataclasses.replace(recipes[name], training=training)
            engine = {name.partition("@")[0]: value for name, value in line["engine"].items()}
            precision = line.get("precision") or {
                name: precision_on(recipe, device, threads) for name, recipe in recipes.items()
            }
            # Format 1 does not say whether the images are the published ones; an imported one may not have their name.
            dataset = {"published": dataset["name"] in ("cifar10", "cifar100"), **dataset}
            dataset = {key: dataset[key] for key in ("name", "digest", "published")}
            header = cls(
                line["version"], line["code"], line["torch"], device, threads, engine, precision, dataset, recipes
            )
            header.check()
        except FAULTS as error:
            raise DataError(f"Line 1 of {where} is damaged ({fault(error)}): its runs cannot be used.") from None
        return header

    def check(self) -> None:
        """Raise ValueError or KeyError, with what is wrong, where values read from a file are not of their types."""
        texts = {key: getattr(self, key) for key in ("version", "code", "torch", "device")}
        texts |= {"name of the dataset": self.dataset["name"], "digest": self.dataset["digest"] or ""}
        for table in ("engine", "precision"):
            texts |= {f"{table} of '{name}'": getattr(self, table)[name] for name in self.recipes}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise ValueError(f"'{key}' is {value!r}, but must be a text")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ValueError(f"'threads' is {self.threads!r}, but must be a whole number of at least 1, or null")
        if not isinstance(self.dataset["published"], bool):
            raise ValueError("'published' must be true or false")


def full_length(recipes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Format 1 kept a search's recipes at every length (`good@0.25`): the longest of each name, and its fraction."""
    stored, fractions = dict[str, Any](), dict[str, float]()
    for key, tree in recipes.items():
        name, at, fraction = key.partition("@")
        if at and float(fraction) <= fractions.get(name, 0.0):
            continue
        stored[name] = tree
        if at:
            fractions[name] = float(fraction)
    return stored, fractions


def precision_on(recipe: Recipe, device: str, threads: int | None) -> str:
    """The precision of a run on the device of that name: the recipe's on CUDA, float32 elsewhere."""
    return "float32" if threads is not None or device == "Apple GPU" else recipe.training.precision


def run_folder_header(document: Mapping[str, Any], where: str) -> Header:
    """The header that a training's record (`run.json`) amounts to.

    Raises KeyError, TypeError, AttributeError or ValueError for a damaged one, DataError for a recipe that this
    version of the program cannot express.
    """
    processor = re.search(r", \d+ threads?$", str(document["device"])) is not None
    threads = document["threads"] if processor else None
    name, recipe = document["recipe"], stored_recipe(document["settings"], where)
    dataset = {
        "name": document["dataset"],
        "digest": document.get("dataset_digest"),
        "published": document["published_dataset"],
    }
    header = Header(
        document["version"],
        "",
        document["torch"],
        document["device"],
        threads,
        {name: document["engine"]},
        {name: precision_on(recipe, document["device"], threads)},
        dataset,
        {name: recipe},
    )
    header.check()
    return header


def same_recipe(a: Recipe, b: Recipe) -> bool:
    """Whether two recipes differ in nothing but their names and summaries."""
    return dataclasses.replace(a, name="", summary="") == dataclasses.replace(b, name="", summary="")


def recipe_differences(a: Recipe, b: Recipe) -> list[str]:
    """The keys in which two recipes differ, but for name and summary."""
    first, second = flatten(recipe_to_dict(a)), flatten(recipe_to_dict(b))
    return [key for key in first if first[key] != second[key] and key not in ("name", "summary")]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
