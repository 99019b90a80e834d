"""The page of a training run, `report --html` of its folder, and that of an evaluation, `eval --html`.

What an earlier version did not keep, or what is no longer on this machine, is left out, and the page says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from fastcifar.bench.records import flatten, recipe_differences
from fastcifar.bench.results import decode
from fastcifar.cli.display.evaluation_page import Evaluated, evaluation_parts, superclass_parts
from fastcifar.cli.display.html import Cell, Part, page, paragraphs, table
from fastcifar.cli.display.pixels import as_colours, figure, figures, image
from fastcifar.cli.display.progress_page import accuracy_part, loss_part, rates_part, sides_part
from fastcifar.cli.display.screen import duration, percent, size
from fastcifar.data.dataset import Dataset, holdout_split
from fastcifar.data.store import load_dataset
from fastcifar.errors import DataError, FastcifarError
from fastcifar.model import predict
from fastcifar.model.checkpoint import CHECKPOINT, RECORD, kept_evaluation, load_checkpoint
from fastcifar.recipes.parse import (
    extended_recipe,
    load_recipe,
    recipe_names,
    recipe_to_dict,
    recipe_to_toml,
    stored_recipe,
)
from fastcifar.recipes.schema import Recipe
from fastcifar.system.text import to_utf8
from fastcifar.training.preview import first_images

STRIP = 12  # images of the first batch
MOST_FILTERS = 256


@dataclass
class Run:
    """What is still known of a run; `missing` says, in sentences, what is not."""

    record: dict[str, Any]  # the document of `train --json`
    checkpoint: dict[str, Any] | None = None
    recipe: Recipe | None = None
    dataset: Dataset | None = None  # with held-out images in place of the test images, as the run saw it
    evaluated: Evaluated | None = None
    missing: list[str] = field(default_factory=list)


def run_page(path: Path) -> str:
    """The page of the run in a run folder, or of a `run.json` (see `cli.stored` for what it has to hold).

    Raises DataError where there is no record of a run.
    """
    run = read_run(path)
    record = run.record
    parts = [loss_part(record, run.recipe), accuracy_part(record, run.recipe)]
    if run.recipe is not None:
        parts += [rates_part(run.recipe), sides_part(run.recipe)]
    if run.evaluated is not None:
        parts += evaluation_parts(run.evaluated)
    if run.checkpoint is not None:
        parts += filters_part(run.checkpoint["weights"])
    if run.recipe is not None and run.dataset is not None:
        parts.append(augmentation_part(run.recipe, run.dataset, record["seed"]))
    if run.recipe is not None:
        parts.append(recipe_part(run.recipe))
    parts.append(machine_part(record, run.checkpoint))
    if run.missing:
        parts.append(Part("What this page lacks", paragraphs(run.missing)))
    title = f"{record['recipe']}: {percent(record['accuracy'])} in {duration(record['train_s'])}"
    where = f"{record['accuracy_on']} of {record['dataset']}"
    subtitle = (
        f"Accuracy on {where}, with test-time augmentation, and train time; seed {record['seed']}, {record['device']}."
    )
    return page(title, subtitle, parts, {**record, **by_class(run.evaluated)})


def eval_page(result: Mapping[str, Any], checkpoint: Mapping[str, Any], evaluated: Evaluated) -> str:
    """The page of an evaluation, from the document of `eval --json` and what was evaluated."""
    where = f"{result['images']:,} images of {result['dataset']}"
    known = result["accuracy"] is not None
    title = f"{percent(result['accuracy'])} of {where} are recognised" if known else f"What {where} were taken for"
    subtitle = f"{result['checkpoint']}, test-time augmentation: {result['tta']}, on {result['device']}."
    parts = evaluation_parts(evaluated)
    if "coarse" in result:
        subtitle += f" The superclass is right of {percent(result['coarse']['accuracy'])}."
        parts += superclass_parts(evaluated)
    parts += filters_part(checkpoint["weights"])
    parts.append(recipe_part(stored_recipe(checkpoint["recipe"], str(result["checkpoint"]))))
    if checkpoint.get("metrics"):
        parts.append(machine_part(checkpoint["metrics"], checkpoint))
    return page(title, subtitle, parts, {**result, **by_class(evaluated)})


def by_class(evaluated: Evaluated | None) -> dict[str, Any]:
    """What `eval --json --per-class --confusion` holds besides, for the data of a page."""
    if evaluated is None or evaluated.labels is None:
        return {}
    accuracies = predict.per_class(evaluated.logits, evaluated.labels)
    matrix = predict.confusion(evaluated.logits, evaluated.labels)
    return {"per_class": dict(zip(evaluated.classes, accuracies, strict=True)), "confusion": matrix}


# --- What is known ---


def read_run(path: Path) -> Run:
    """All that is still known of the run at a path; raises DataError where its record cannot be read."""
    file = path / RECORD if path.is_dir() else path
    try:
        record = decode(to_utf8(file.read_bytes(), file))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    if record is None or record.get("command") != "train":
        raise DataError(f"{file} is no record of `fastcifar train`.")
    run = Run(record)
    for part, find in (
        ("filters", find_checkpoint),
        ("curves of the learning rates, the image size and the recipe", find_recipe),
        ("augmented images, and images beside the mistakes", find_dataset),
        ("confusion matrix, the accuracy by class and the mistakes", find_evaluation),
    ):
        try:
            find(run, file)
        except FastcifarError as error:
            run.missing.append(f"The {part} are missing: {error}")
    return run


def find_recipe(run: Run, file: Path) -> None:
    """The recipe in the record or the checkpoint; raises DataError where this version cannot express it."""
    settings = run.record.get("settings") or (run.checkpoint or {}).get("recipe")
    if settings is None:
        raise DataError(f"neither {file} nor a checkpoint beside it holds the run's recipe.")
    run.recipe = stored_recipe(settings, str(file))


def find_checkpoint(run: Run, file: Path) -> None:
    """The checkpoint beside the record; raises DataError where there is none, or that of another run."""
    tree = load_checkpoint(file.with_name(CHECKPOINT))
    if tree.get("metrics", {}).get("at") != run.record.get("at"):
        raise DataError(f"{file.with_name(CHECKPOINT)} is not of this run.")
    run.checkpoint = tree


def find_dataset(run: Run, file: Path) -> None:
    """The images that the run saw; raises DataError where they are not on this machine, or no longer the same."""
    dataset = load_dataset(run.record["dataset"])
    if dataset.digest != run.record.get("dataset_digest", dataset.digest):
        raise DataError(f"dataset '{dataset.name}' is no longer what this run was trained on.")
    run.dataset = holdout_split(dataset, run.recipe.data.holdout if run.recipe else 0)


def find_evaluation(run: Run, file: Path) -> None:
    """The logits in the checkpoint, with their images where they are here; raises DataError where there are none."""
    if run.checkpoint is None:
        raise DataError("the logits are kept in the checkpoint.")
    kept = kept_evaluation(run.checkpoint)
    if kept is None:
        raise DataError(
            "this run was made by a version that kept no logits; `fastcifar eval --html` makes them anew, and a page."
        )
    logits, labels = kept
    test = None if run.dataset is None else run.dataset.test
    images = test.images if test is not None and test.labels.equal(labels) else None
    run.evaluated = Evaluated(run.checkpoint["dataset"]["classes"], logits, labels, images)


# --- The parts that pages of runs and of evaluations share ---


def filters_part(weights: Mapping[str, Tensor]) -> list[Part]:
    """The filters of the first layer that reads colours; nothing where no layer does."""
    found = [weight for weight in weights.values() if weight.ndim == 4 and weight.size(1) == 3]
    if not found:
        return []
    filters = found[0].float()
    count, _, height, width = filters.shape
    side = max(36, 12 * width)
    shown = [
        figure([image(pixels, side, f"filter {number} of {count}")])
        for number, pixels in enumerate(as_colours(filters[:MOST_FILTERS]), 1)
    ]
    note = f"Grey is zero; each filter is scaled to its largest weight. {first_words(len(shown), count)}"
    title = f"The first layer looks for {count} patterns of {height}×{width} pixels"
    return [Part(title, figures(shown, small=True), note)]


def first_words(shown: int, count: int) -> str:
    """Says how many of all are shown, where some are not."""
    return f"The first {shown} of {count}." if shown < count else ""


def augmentation_part(recipe: Recipe, dataset: Dataset, seed: int) -> Part:
    """The first images of the run, as stored and as the network first saw them."""
    stored, augmented = first_images(recipe, dataset, seed, STRIP)
    shown = [
        figure([image(before, 64, "as stored"), image(after, 64, "augmented")])
        for before, after in zip(stored, augmented, strict=True)
    ]
    data, side = recipe.data, augmented.size(-1)
    changes = [
        "" if data.flip == "none" else f"mirrored ({data.flip})",
        f"shifted by up to {data.translate} pixels" if data.translate else "",
        f"a square of {data.cutout} pixels cut out" if data.cutout else "",
        f"brightness changed by up to {data.brightness:g} standard deviations" if data.brightness else "",
        f"contrast changed by up to {100 * data.contrast:g} %" if data.contrast else "",
        f"made smaller, {side}×{side} pixels" if side < stored.size(-1) else "",
    ]
    said = ", ".join(filter(None, changes))
    title = f"Training images are {said}" if said else "Training images are not changed"
    note = (
        f"The first {len(shown)} images of the first batch: above as stored, below as the network sees them, from the "
        f"seed {seed} on a CPU; another device draws other numbers from the same seed."
    )
    return Part(title, figures(shown, small=True), note)


def base_of(recipe: Recipe) -> Recipe | None:
    """The built-in recipe that a recipe is best told by: the one of its name where values of that were overridden, else
    the one that it extends; of a recipe of one's own the nearest. None where it extends none."""
    if recipe.name not in recipe_names():
        return min(map(load_recipe, recipe_names()), key=lambda each: len(recipe_differences(each, recipe)))
    plain = load_recipe(recipe.name)
    if recipe_differences(plain, recipe):
        return plain
    parent = extended_recipe(recipe.name)
    return load_recipe(parent) if parent else None


def recipe_part(recipe: Recipe) -> Part:
    """What differs from the recipe that it extends, and the whole of it."""
    base = base_of(recipe)
    whole = Markup("<details><summary>The whole recipe</summary><pre>{}</pre></details>\n").format(
        recipe_to_toml(recipe)
    )
    if base is None:
        return Part(f"{recipe.name} extends no other recipe", whole)
    keys = recipe_differences(base, recipe)
    name = f"{base.name} as it comes" if base.name == recipe.name else base.name
    if not keys:
        return Part(f"{recipe.name} is {name}, value by value", whole)
    before, now = flatten(recipe_to_dict(base)), flatten(recipe_to_dict(recipe))
    rows: list[list[Cell]] = [[key, json.dumps(before[key]), json.dumps(now[key])] for key in keys]
    values = "one value" if len(keys) == 1 else f"{len(keys)} values"
    return Part(f"{recipe.name} differs from {name} in {values}", table(["key", name, "this run"], rows) + whole)


def machine_part(record: Mapping[str, Any], checkpoint: Mapping[str, Any] | None) -> Part:
    """Machine, versions and seed, and what the run cost."""
    versions = (checkpoint or {}).get("versions", {})
    python = f", Python {versions['python']}" if "python" in versions else ""
    limit = f", limited by {record['threads_limited_by']}" if record.get("threads_limited_by") else ""
    published = "published" if record.get("published_dataset") else "not a published dataset"
    rows = [
        ("machine", f"{record['device']}{limit}"),
        ("engine", record["engine"]),
        ("versions", f"fastcifar {record['version']}, torch {record['torch']}{python}"),
        ("seed", str(record["seed"])),
        ("dataset", f"{record['dataset']} ({published})"),
        ("digest of the dataset", record.get("dataset_digest") or ""),
        ("train time", f"{duration(record['epochs_s'])} epochs, {duration(record['eval_s'])} evaluation"),
        ("setup, wall time", f"{duration(record['setup_s'])}, {duration(record['wall_s'])}"),
        ("FLOPs", f"{record['flops']:.3g}, {record['tflops_per_s']:.3g} TFLOP/s"),
        ("peak memory", size(record["peak_memory"])),
        ("others' use of the processors", "" if record.get("other_load") is None else percent(record["other_load"])),
        ("ended", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record["at"])) if "at" in record else ""),
    ]
    return Part(f"Trained on {record['device']} from seed {record['seed']}", facts_table(rows))


def facts_table(rows: Sequence[tuple[str, str]]) -> Markup:
    """Names and values; those without a value are left out."""
    lines = [Markup('<tr><th scope="row">{}</th><td>{}</td></tr>\n').format(*row) for row in rows if row[1]]
    return Markup('<table class="facts"><tbody>\n{}</tbody></table>\n').format(Markup("").join(lines))
