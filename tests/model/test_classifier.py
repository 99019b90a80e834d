"""Images judged by a checkpoint, and `fastcifar eval`."""

from __future__ import annotations

from pathlib import Path

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
    save_checkpoint(folder / "checkpoint.pt", recipe, network, load_dataset("shapes"), 0, CPU, {})
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
