"""`fastcifar eval --coarse`: accuracy over the superclasses of CIFAR-100, as JSON, on the screen and on the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import Call, few_shapes, make_folder
from page_checks import check_page

from fastcifar.data.coarse import COARSE_NAMES, coarse_labels
from fastcifar.data.dataset import CLASSES
from fastcifar.model.checkpoint import load_checkpoint, save_checkpoint
from fastcifar.model.classifier import EvalSet, build_classifier
from fastcifar.model.network import build_network
from fastcifar.recipes.parse import load_recipe

CPU = torch.device("cpu")
KEYS = {"classes", "accuracy", "per_class", "confusion"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the checkpoint of a small network for the classes of CIFAR-100, untrained."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe("tiny", "network.widths=[8, 8, 8]", "evaluation.views='none'")
    torch.manual_seed(0)
    network = build_network(recipe, 100, CPU)
    dataset = dataclasses.replace(few_shapes(100, 10), classes=CLASSES["cifar100"])
    save_checkpoint(folder / "checkpoint.pt", recipe, network, dataset, 0, CPU, {}, torch.zeros(10, 100))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten random images of each of 60 classes."""
    return make_folder(tmp_path / "images", CLASSES["cifar100"][:60], count=10) / "test"


def test_a_prediction_counts_as_the_superclass_of_the_likeliest_class(call: Call, run: Path, folder: Path) -> None:
    done = call("eval", run, folder, "--coarse", "--json", "--per-class", "--confusion")
    assert done.code == 0, done.err
    classifier = build_classifier(load_checkpoint(run), CPU)
    images = EvalSet.from_files([folder], classifier.classes)
    assert images.labels is not None
    superclass = coarse_labels(classifier.classes)
    true, taken_for = superclass[images.labels], superclass[classifier.logits(images.images).argmax(1)]
    coarse = done.document["coarse"]
    assert set(coarse) == KEYS and coarse["classes"] == list(COARSE_NAMES)
    assert coarse["accuracy"] == pytest.approx(float((true == taken_for).float().mean()))
    assert coarse["accuracy"] > done.document["accuracy"], "else the two could be confused"
    expected = torch.zeros(20, 20, dtype=torch.int64)
    for pair in zip(true.tolist(), taken_for.tolist(), strict=True):
        expected[pair] += 1
    assert coarse["confusion"] == expected.tolist()
    share = {
        name: row[i] / sum(row) if sum(row) else None
        for i, (name, row) in enumerate(zip(COARSE_NAMES, expected.tolist(), strict=True))
    }
    assert coarse["per_class"] == pytest.approx(share)
    assert len(done.document["per_class"]) == len(done.document["confusion"]) == 100, "those of the classes stay"


def test_the_screen_has_the_superclasses_in_place_of_the_classes(call: Call, run: Path, folder: Path) -> None:
    found = call("eval", run, folder, "--coarse", "--json").document
    assert set(found["coarse"]) == {"classes", "accuracy"}
    out = call("eval", run, folder, "--coarse", "--per-class").out
    lines = [line.strip().split(maxsplit=1) for line in out.splitlines()]
    assert ["superclass", f"{100 * found['coarse']['accuracy']:.2f} %, that of the likeliest class"] in lines
    assert all(name in out for name in COARSE_NAMES) and "beaver" not in out
    assert "superclass" not in call("eval", run, folder).out


def test_the_page_has_both(call: Call, run: Path, folder: Path) -> None:
    options = ("--json", "--per-class", "--confusion", "--html", "page.html")
    done = call("eval", run, folder, "--coarse", *options)
    page = check_page(Path("page.html").read_text())
    assert page.document == done.document
    headings = [words for tag, words in page.texts if tag == "h2"]
    assert sum("taken for" in heading for heading in headings) >= 2
    assert sum("recognised least often" in heading for heading in headings) == 2
    drawings = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert drawings == ["accuracy by class", "confusion matrix", "accuracy by class"], "20 superclasses make a matrix"
    tips = {words for tag, words in page.texts if tag == "title"}
    for name, row in zip(COARSE_NAMES, done.document["coarse"]["confusion"], strict=True):
        for other, count in zip(COARSE_NAMES, row, strict=True):
            share = f"{count:,} of {sum(row):,} images ({100 * count / max(1, sum(row)):.1f} %)"
            assert f"{name} taken for {other}: {share}" in tips


def test_images_without_labels_have_no_accuracy(call: Call, run: Path, folder: Path) -> None:
    done = call("eval", run, folder / "apple" / "apple_s_000000.png", "--coarse", "--json")
    assert done.code == 0 and "coarse" not in done.document


def test_other_classes_have_no_superclasses(call: Call, trained: Path) -> None:
    done = call("eval", trained, "--coarse")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert done.err == "Error: Only the 100 classes of CIFAR-100 have superclasses, and these are other classes.\n"
