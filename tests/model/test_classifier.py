"""Images judged by a checkpoint, and `fastcifar eval`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Call, make_folder
from PIL import Image

from fastcifar.data.store import load_dataset
from fastcifar.model.checkpoint import load_checkpoint, save_checkpoint
from fastcifar.model.classifier import EvalSet, build_classifier
from fastcifar.model.network import build_network
from fastcifar.recipes.parse import load_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the checkpoint of a small network for the embedded images, untrained."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe("tiny", "network.widths=[8, 8, 8]", "evaluation.uncertain=0.5", "evaluation.views='flip'")
    torch.manual_seed(0)
    network = build_network(recipe, 10, CPU)
    shapes = load_dataset("shapes")
    logits = torch.zeros(len(shapes.test.labels), 10)
    save_checkpoint(folder / "checkpoint.pt", recipe, network, shapes, 0, CPU, {}, logits)
    return folder


def test_images_files_and_a_dataset_get_the_same_logits(run: Path, tmp_path: Path) -> None:
    classifier = build_classifier(load_checkpoint(run), CPU)
    shapes = load_dataset("shapes")
    test = EvalSet.from_dataset(shapes, classifier.classes)
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, test.images, strict=False):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    files = EvalSet.from_files([folder], classifier.classes)
    assert files.files == tuple(map(str, paths)) and files.labels is None
    assert torch.equal(files.images, test.images[:4])
    assert torch.equal(classifier.logits(files.images), classifier.logits(test.images[:4]))


def test_views_are_the_recipes_or_all_of_those_that_are_chosen(run: Path) -> None:
    checkpoint = load_checkpoint(run)
    recipe = build_classifier(checkpoint, CPU).recipe
    assert (recipe.views, recipe.uncertain) == ("flip", 0.5)
    for views in ("none", "flip", "full"):
        chosen = build_classifier(checkpoint, CPU, views).recipe
        assert (chosen.views, chosen.uncertain) == (views, 1.0)


def test_a_checkpoint_whose_dataset_is_damaged(run: Path, call: Call) -> None:
    tree = torch.load(run / "checkpoint.pt", weights_only=True)
    del tree["dataset"]["mean"]
    torch.save(tree, "bad.pt")
    done = call("eval", "bad.pt")
    assert done.code == 3 and "damaged" in done.err and "Traceback" not in done.err


def test_single_images_of_any_size(call: Call, run: Path) -> None:
    Image.new("L", (100, 60)).save("grey.png")
    Image.new("RGBA", (7, 9)).save("small.webp")
    done = call("eval", run, "grey.png", "small.webp", "--json").document
    assert [item["file"] for item in done["predictions"]] == ["grey.png", "small.webp"]
    assert [len(item["classes"]) for item in done["predictions"]] == [5, 5]
    assert done["accuracy"] is None
    probabilities = [item["probability"] for item in done["predictions"][0]["classes"]]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.0001
    assert "grey.png:" in call("eval", run, "grey.png").out


def test_a_folder_of_class_folders(call: Call, run: Path) -> None:
    make_folder(Path("some"), ("disc", "ring"), count=2)
    (Path("some") / "test" / ".cache").mkdir()
    for folder in ("some/test", "some"):  # with both splits, the test images
        judged = call("eval", run, folder, "--json", "--per-class", "--confusion").document
        assert judged["images"] == 4 and set(judged["per_class"]) == {
            "bars", "cross", "diamond", "disc", "frame", "plus", "ring", "square", "stripes", "triangle",
        }  # fmt: skip
        counts = torch.tensor(judged["confusion"]).sum(1)
        assert counts.tolist() == [0, 0, 0, 2, 0, 0, 2, 0, 0, 0]
    assert "true class" in call("eval", run, "some/test", "--confusion").out


def test_images_that_cannot_be_evaluated(call: Call, run: Path) -> None:
    Path("text.png").write_text("no image")
    Path("empty").mkdir()
    (Path("classes") / "dics").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save("classes/dics/0.png")
    make_folder(Path("pets"))
    for paths, code, message in [
        (["text.png"], 3, "not an image"),
        (["nowhere.png"], 3, "no file nowhere.png"),
        (["empty"], 3, "no image file in empty"),
        (["classes"], 3, "did you mean 'disc'"),
        (["pets"], 3, "pets/test/cat is no class of this network"),
        (["text.png", "pets"], 2, "pets is a folder"),
        (["text.png", "--dataset", "shapes"], 2, "exclude each other"),
    ]:
        done = call("eval", run, *paths)
        assert done.code == code and message in done.err and "Traceback" not in done.err, done.err
        assert len(done.err.splitlines()) == 1


def shown(count: int) -> np.ndarray:
    """The first embedded test images, uint8 (count, 32, 32, 3)."""
    return load_dataset("shapes").test.images[:count].permute(0, 2, 3, 1).numpy()


def test_arrays_with_labels_and_without(call: Call, run: Path) -> None:
    test = load_dataset("shapes").test
    classifier = build_classifier(load_checkpoint(run), CPU)
    expected = float((classifier.logits(test.images[:60]).argmax(1) == test.labels[:60]).float().mean())
    images, labels = shown(60), test.labels[:60].numpy()
    np.save("x_test.npy", images.transpose(0, 3, 1, 2))
    np.save("y_test.npy", labels)
    np.savez("both.npz", images=images, labels=[classifier.classes[label] for label in labels])
    np.savez("med.npz", train_images=images[:2], train_labels=labels[:2], test_images=images, test_labels=labels)
    for paths in (["x_test.npy", "y_test.npy"], ["y_test.npy", "x_test.npy"], ["both.npz"], ["med.npz"]):
        done = call("eval", run, *paths, "--json")
        assert done.code == 0, done.err
        assert done.document["accuracy"] == pytest.approx(expected) and done.document["images"] == 60
    alone = call("eval", run, "x_test.npy", "--json").document
    assert alone["accuracy"] is None and [item["file"] for item in alone["predictions"]] == [str(i) for i in range(60)]
    lines = call("eval", run, "x_test.npy").out.splitlines()
    assert len(lines) == 51 and lines[-1] == "and 10 more images: --csv FILE writes a row for each."


def test_arrays_that_cannot_be_evaluated(call: Call, run: Path) -> None:
    np.savez("names.npz", images=shown(2), labels=["disc", "dics"])
    np.savez("numbers.npz", images=shown(2), labels=[0, 10])
    np.save("x.npy", shown(2))
    for paths, code, message in [
        (["names.npz"], 3, "the label dics, which is no class"),
        (["numbers.npz"], 3, "the label 10, which is no class"),
        (["x.npy", "names.npz"], 2, "one .npz file, or one .npy file"),
        (["nowhere.npz"], 3, "no file nowhere.npz"),
    ]:
        done = call("eval", run, *paths)
        assert done.code == code and message in done.err and len(done.err.splitlines()) == 1, done.err


def test_a_row_an_image_in_a_csv_file(call: Call, run: Path) -> None:
    Path("flat, here").mkdir()
    for number, image in enumerate(shown(3)):
        Image.fromarray(image).save(f"flat, here/{number}.png")
    np.save("x.npy", shown(3))
    make_folder(Path("some"), ("disc", "ring"), count=1)
    classes = build_classifier(load_checkpoint(run), CPU).classes
    for path, names in (
        ("flat, here", [f"flat, here/{number}.png" for number in range(3)]),
        ("x.npy", ["0", "1", "2"]),
        ("some", ["some/test/disc/disc_s_000000.png", "some/test/ring/ring_s_000000.png"]),
    ):
        done = call("eval", run, path, "--csv", "rows.csv")
        assert done.code == 0 and f"{len(names)} rows were written to rows.csv." in done.out, done.err
        with open("rows.csv", newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        assert header == ["image", "class", *classes] and [row[0] for row in rows] == names
        for row in rows:
            values = [float(cell) for cell in row[2:]]
            assert sum(values) == pytest.approx(1, abs=1e-4) and classes[values.index(max(values))] == row[1]
    done = call("eval", run, "x.npy", "--csv", "nowhere/rows.csv")
    assert done.code == 3 and "rows.csv" in done.err and "cannot be written" in done.err


def test_every_test_image_in_a_csv_file(call: Call, run: Path) -> None:
    assert call("eval", run, "--dataset", "shapes", "--csv", "rows.csv").code == 0
    assert len(Path("rows.csv").read_text(encoding="utf-8").splitlines()) == 2001


def test_a_class_without_images_has_no_accuracy(call: Call, run: Path) -> None:
    make_folder(Path("some"), ("disc", "ring"), count=2)
    (Path("some") / "test" / "plus").mkdir()
    per_class = call("eval", run, "some", "--json", "--per-class").document["per_class"]
    assert {name for name, value in per_class.items() if value is not None} == {"disc", "ring"}
    lines = call("eval", run, "some", "--per-class").out.splitlines()
    assert [line.split() for line in lines if "plus" in line][-1] == ["plus", "no", "images"]


def test_litter_and_what_else_is_left_out(call: Call, run: Path) -> None:
    folder = Path("photos")
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("._a.png", "Thumbs.db", ".DS_Store"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    done = call("eval", run, folder)
    assert done.code == 0 and "hidden or system files (4, such as" in done.out, done.err
    given = call("eval", run, "--json", *sorted(path for path in folder.iterdir() if path.is_file()))
    assert [item["file"] for item in given.document["predictions"]] == ["photos/a.png"]
    (folder / "more").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "more" / "b.png")
    assert call("eval", run, folder).code == 3  # 'more' could be a class, and is none


def test_a_photo_is_seen_as_a_person_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    upright = Image.fromarray(np.kron(shown(1)[0], np.ones((4, 4, 1), dtype=np.uint8)))
    upright.save("upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    upright.convert("RGBA").save("opaque.png")
    images = EvalSet.from_files([Path("upright.png"), Path("turned.png"), Path("opaque.png")], []).images
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_a_png_whose_second_chunk_has_a_wrong_length(call: Call, run: Path) -> None:
    Image.new("RGB", (32, 32)).save("broken.png")
    content = bytearray(Path("broken.png").read_bytes())
    content[36] ^= 16  # behind the signature (8 bytes) and the first chunk (25): the last byte of the length
    Path("broken.png").write_bytes(content)
    done = call("eval", run, "broken.png")
    assert done.code == 3 and done.err == (
        "Error: broken.png is not an image that can be read: replace or remove it.\n"
    )


def test_a_dataset_with_other_classes(call: Call, run: Path) -> None:
    assert call("download", "--from", make_folder(Path("pets")), "--quiet").code == 0
    done = call("eval", run, "--dataset", "pets")
    assert done.code == 2 and "'pets' has other classes" in done.err


def test_choices_of_test_time_augmentation(call: Call, run: Path) -> None:
    Image.new("RGB", (32, 32)).save("x.png")
    assert "recipe|none|flip|full" in call("eval", "--help").out
    done = call("eval", run, "x.png", "--tta", "ful")
    assert done.code == 2 and "'ful' is not one of 'recipe', 'none', 'flip', 'full'" in done.err
    for tta, used in {"recipe": "flip", "none": "none", "flip": "flip", "full": "full"}.items():
        assert call("eval", run, "x.png", "--tta", tta, "--json").document["tta"] == used
