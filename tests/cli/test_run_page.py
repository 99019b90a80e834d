"""The page of a run and of an evaluation, read by html.parser: what it shows, and what it says is missing."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, needs_chromium
from conftest import leave_main
from helpers import TINY, Call, make_folder
from page_checks import Parsed, check_page
from PIL import Image

from fastcifar.cli.display.evaluation_page import Evaluated, evaluation_parts
from fastcifar.cli.display.html import page as page_of
from fastcifar.cli.display.progress_page import rates_part
from fastcifar.cli.display.run_page import run_page
from fastcifar.data.dataset import holdout_split
from fastcifar.data.store import load_dataset
from fastcifar.errors import DataError
from fastcifar.recipes.parse import load_recipe

ODD = ("<script>alert(1)<", 'a "b" & c')  # names of classes


def text(page: Parsed) -> str:
    """All words of a page, a space between two elements."""
    return " ".join(" ".join(words for tag, words in page.texts if tag not in ("script", "style")).split())


def has(page: Parsed, heading: str) -> bool:
    """Whether a section has a heading like this."""
    return any(tag == "h2" and re.search(heading, words) for tag, words in page.texts)


def images(page: Parsed, tip: str = "") -> list[dict[str, str]]:
    """The images whose tooltip begins so."""
    return [found for found in page.all("img") if found["title"].startswith(tip)]


def pixels(image: dict[str, str]) -> np.ndarray:
    """The RGB pixels of an image of a page, (3, height, width)."""
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).transpose(2, 0, 1)


def copied(folder: Path, to: Path, change: Callable[[dict[str, Any]], object] = dict) -> Path:
    """A copy of a run folder with a changed record."""
    shutil.copytree(folder, to)
    record = json.loads((to / "run.json").read_text())
    change(record)
    (to / "run.json").write_text(json.dumps(record))
    return to


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, compiled: Path) -> tuple[Path, Path]:
    """The home and the folder of a run on a few random images, of classes with odd names."""
    root = tmp_path_factory.mktemp("odd")
    (root / "native").symlink_to(compiled)
    make_folder(root / "images", ODD, count=12)
    train = [*TINY, "--dataset", "odd", "--out", root / "run", "--quiet"]
    settings = ["--set", "training.batch_size=8", "--set", "data.resolution=[[0, 24], [1, 32]]", "--eval-every", "1"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FASTCIFAR_HOME", str(root))
        assert leave_main(monkeypatch, "download", "--from", root / "images", "--name", "odd", "--quiet") == 0
        assert leave_main(monkeypatch, *train, *settings, "--set", "training.epochs=3") == 0
    return root, root / "run"


@pytest.fixture(scope="module")
def page(trained: Path) -> Parsed:
    """The page of a short run on the embedded images."""
    return check_page(run_page(trained))


def test_the_page_of_a_run_holds_its_figures(page: Parsed, trained: Path, call: Call) -> None:
    record = json.loads((trained / "run.json").read_text())
    judged = call("eval", trained, "--json", "--per-class", "--confusion").document
    assert {key: page.document[key] for key in record} == record
    assert page.document["per_class"] == judged["per_class"] and page.document["confusion"] == judged["confusion"]
    for key in ("accuracy", "accuracy_no_tta"):
        assert f"{100 * record[key]:.2f} %" in text(page)
    for heading in ("loss", "recognised in the end", "epochs", "32×32 pixels", "is taken for", "least often", "surest"):
        assert has(page, heading), heading
    assert has(page, "24 patterns of 2×2") and has(page, "mirrored") and has(page, "tiny as it comes in 3 values")
    assert not has(page, "lacks")
    for name, share in judged["per_class"].items():
        assert name in text(page) and f"{100 * share:.2f} %" in text(page)
    counts = [count for row in judged["confusion"] for count in row if count]
    assert all(re.search(rf": {count:,} of 200 images", text(page)) for count in counts), "a tip a cell"


def test_the_surest_mistakes_are_the_images_that_they_are_said_to_be(page: Parsed, trained: Path) -> None:
    shown = images(page, "image ")
    test = load_dataset("shapes").test
    assert len(shown) == 24
    kept = torch.load(trained / "checkpoint.pt", weights_only=True)["evaluation"]["logits"].float().softmax(1)
    confidence, taken_for = kept.max(1)
    expected = sorted((taken_for != test.labels).nonzero().flatten().tolist(), key=lambda row: -confidence[row])[:24]
    rows = [int(image["title"].removeprefix("image ")) for image in shown]
    assert [float(confidence[row]) for row in rows] == [float(confidence[row]) for row in expected]
    for row, image in zip(rows, shown, strict=True):
        assert np.array_equal(pixels(image), test.images[row].numpy())
    classes = load_dataset("shapes").classes
    best = kept[rows[0]].topk(3)
    figures = [
        f"{classes[i]} {100 * p:.1f} %" for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    assert " ".join([classes[int(test.labels[rows[0]])], *figures]) in text(page)


def test_the_filters_and_the_augmented_images(page: Parsed, trained: Path) -> None:
    filters = images(page, "filter ")
    assert len(filters) == 24 and pixels(filters[0]).shape == (3, 2, 2)
    weight = torch.load(trained / "checkpoint.pt", weights_only=True)["weights"]["whiten.weight"][0].float()
    scaled = 127.5 + 127.5 * weight / weight.abs().max()
    assert np.abs(pixels(filters[0]) - scaled.numpy()).max() <= 0.51
    before, after = images(page, "as stored"), images(page, "augmented")
    assert len(before) == len(after) == 12
    training = load_dataset("shapes").train.images.numpy()
    assert all((pixels(image) == training).all((1, 2, 3)).any() for image in before[:3])
    assert any(not np.array_equal(pixels(a), pixels(b)) for a, b in zip(before, after, strict=True))


def test_odd_names_come_through_as_text(odd: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_HOME", str(odd[0]))
    page = check_page(run_page(odd[1]))
    assert set(page.document["per_class"]) == set(ODD) and all(name in text(page) for name in ODD)
    assert has(page, "24×24 to 32×32 pixels") and has(page, "made smaller, 24×24") and not has(page, "lacks")
    record = json.loads((odd[1] / "run.json").read_text())
    assert len(record["epochs"]) == 3
    for epoch in record["epochs"]:
        assert f"{100 * epoch['test_accuracy']:.4g} % after {epoch['epoch']} epochs" in text(page)
        assert f"training: {epoch['train_loss']:.4g} after {epoch['epoch']} epochs" in text(page)


def test_odd_names_at_every_place() -> None:
    pixels, wrong = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.eye(2).flip(0)
    names = ["<b>x</b>", "<b>y</b>"]
    for labels, places in ((torch.tensor([0, 1]), 8), (None, 3)):
        parts = evaluation_parts(Evaluated(ODD, wrong, labels, pixels, names))
        parsed = check_page(page_of("", "", parts))
        assert not parsed.all("b") and len(parsed.all("script")) == 1
        for name in ODD:
            assert text(parsed).count(name) >= places
        assert [image["title"] for image in parsed.all("img")] == names


def test_what_a_recipe_freezes_is_said() -> None:
    freeze, bias = "optimizer.freeze=[0.7, 0.9, 1]", "optimizer.whiten_bias.schedule=[[0, 1], [0.1, 0]]"
    part = rates_part(load_recipe("tiny", "training.epochs=10", freeze, bias))
    assert part.title == "Not all is trained to the end: whiten_bias for 1, group1 for 7, group2 for 9 of 10 epochs"
    assert "frozen before the end" in part.note and "group3" not in part.title


def lacking(folder: Path) -> tuple[Parsed, str]:
    """The page of a run, and what it says is missing."""
    page = check_page(run_page(folder))
    assert [words for tag, words in page.texts if tag == "h2"][-1] == "What this page lacks"
    assert has(page, "loss") and has(page, "recognised in the end") and has(page, "Trained on")
    return page, text(page).partition("What this page lacks")[2]


def test_a_run_without_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "run")
    (folder / "checkpoint.pt").unlink()
    page, said = lacking(folder)
    assert "checkpoint.pt" in said and "confusion matrix" in said and "filters are missing" in said
    assert has(page, "mirrored") and has(page, "tiny differs") and not images(page, "filter")


def test_a_checkpoint_of_an_earlier_version(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "run")
    tree = torch.load(folder / "checkpoint.pt", weights_only=True)
    del tree["evaluation"]
    torch.save(tree, folder / "checkpoint.pt")
    page, said = lacking(folder)
    assert "kept no logits; `fastcifar eval --html`" in said
    assert images(page, "filter") and not has(page, "taken for")


def test_a_dataset_that_is_gone(odd: tuple[Path, Path]) -> None:
    page, said = lacking(odd[1])  # in a home without it
    assert "'odd' is not on this machine" in said
    assert has(page, "is taken for") and has(page, "least often|equally often"), "the labels are kept with the logits"
    assert not has(page, "surest") and not images(page, "as stored")


def test_a_run_judged_by_held_out_images_shows_those(call: Call) -> None:
    assert call(*TINY, "--set", "data.holdout=200", "--out", "run", "--quiet").code == 0
    page = check_page(run_page(Path("run")))
    assert has(page, "of 200 held-out training images are recognised") and not has(page, "lacks")
    held_out = holdout_split(load_dataset("shapes"), 200).test.images
    shown = images(page, "image ")
    assert len(shown) == 24
    for image in shown:
        assert np.array_equal(pixels(image), held_out[int(image["title"].removeprefix("image "))].numpy())


def test_a_dataset_that_has_changed(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "run", lambda record: record.update(dataset_digest="0"))
    page, said = lacking(folder)
    assert "no longer what this run was trained on" in said and not has(page, "surest")


def test_a_checkpoint_of_another_run_and_a_record_without_recipe(trained: Path, tmp_path: Path) -> None:
    def age(record: dict[str, Any]) -> None:
        record["at"] -= 1
        del record["settings"], record["dataset_digest"], record["other_load"]

    page, said = lacking(copied(trained, tmp_path / "run", age))
    assert "checkpoint.pt is not of this run" in said and "nor a checkpoint beside it holds the run's recipe" in said
    assert not has(page, "mirrored") and not has(page, "differs") and not images(page, "filter")


def test_a_recipe_that_this_version_does_not_know(trained: Path, tmp_path: Path) -> None:
    page, said = lacking(copied(trained, tmp_path / "run", lambda record: record["settings"].update(novelty={"x": 1})))
    assert "novelty" in said and has(page, "surest")


@pytest.mark.parametrize("content", ["", "{}", '{"command": "profile"}', "[1"])
def test_what_is_no_record(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match="no record"):
        run_page(tmp_path)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        run_page(tmp_path / "nowhere")


def test_many_classes_make_no_matrix() -> None:
    labels = torch.arange(100).repeat(3)
    logits = torch.nn.functional.one_hot(labels, 100).float() * 5
    logits[0, 7], logits[100, 7] = 9, 9  # two images of class 0
    parts = evaluation_parts(Evaluated([f"c{i}" for i in range(100)], logits, labels))
    confused, by_class = (Parsed(str(part.body)) for part in parts)
    assert parts[0].title == "Most often c0 is taken for c7: 2 images"
    assert not confused.all("svg") and "c0 c7 2 66.67 %" in text(confused)
    assert len(by_class.all("tr")) == 101 and "c0 33.33 %" in text(by_class)
    perfect = evaluation_parts(Evaluated(["a", "b"], torch.eye(2), torch.tensor([0, 1]), torch.zeros(2, 3, 32, 32)))
    assert [part.title[:8] for part in perfect] == ["No image", "All clas"], "nothing is wrong: no mistakes"


def test_eval_writes_a_page(trained: Path, call: Call) -> None:
    done = call("eval", trained, "--html", "page.html", "--json", "--per-class", "--confusion")
    assert done.code == 0 and "page.html" in done.err
    page = check_page(Path("page.html").read_text())
    assert page.document == done.document
    assert has(page, "is taken for") and has(page, "surest") and has(page, "24 patterns") and has(page, "Trained on")


def test_eval_of_images_without_labels(trained: Path, call: Call) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (32, 32), "red").save(name)
    Image.new("RGB", (50, 40), "blue").save("blue.png")
    assert call("eval", trained, name, "blue.png", "--html", "page.html").code == 0
    page = check_page(Path("page.html").read_text())
    assert {image["title"] for image in images(page)} >= {name, "blue.png"} and name in text(page)
    assert np.array_equal(pixels(images(page, "blue")[0])[:, 0, 0], [0, 0, 255])
    assert has(page, "least certain answer") and not has(page, "taken for .*images$")


@pytest.mark.parametrize("path", [".", "nowhere/page.html"])
def test_a_page_that_cannot_be_written_is_refused_first(path: str, call: Call) -> None:
    done = call("eval", "no-checkpoint", "--html", path)
    assert done.code == 3 and "cannot be written" in done.err, "before the checkpoint is looked for"


def test_report_writes_the_page_of_a_run_folder(trained: Path, call: Call) -> None:
    done = call("report", trained, "--html", "page.html", "--json")
    assert done.code == 0
    page = check_page(Path("page.html").read_text())
    assert {**done.document, **page.document} == page.document and has(page, "surest")


@pytest.mark.parametrize("key", ["epochs", "accuracy_on", "peak_memory"])
def test_report_of_a_record_edited_by_hand(key: str, trained: Path, tmp_path: Path, call: Call) -> None:
    folder = copied(trained, tmp_path / "run", lambda record: record.update({key: {"x": []}}))
    done = call("report", folder, "--html", "page.html")
    assert done.code == 3 and "Traceback" not in done.err and not Path("page.html").exists()


@needs_chromium
def test_in_a_browser(odd: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_HOME", str(odd[0]))
    file = tmp_path / "page.html"
    file.write_text(run_page(odd[1]))
    with Browser(tmp_path / "profile") as browser:
        for width, dark in ((1400, False), (800, True), (400, False)):
            browser.open(file, width, dark=dark)
            assert browser.errors == [] and browser.requests == []
            assert browser.ask("document.documentElement.scrollWidth") <= width, "the page does not scroll sideways"
        sizes = "[...new Set([...document.images].map((image) => image.naturalWidth))].sort()"
        assert browser.ask(sizes) == [2, 24, 32], "filters, augmented images, images as stored: all are decoded"
        assert browser.ask("getComputedStyle(document.images[0]).imageRendering") == "pixelated"
        assert browser.ask("JSON.parse(document.getElementById('data').textContent).seed") == 0
