"""Every form that people have: taken and the same dataset, or refused in a sentence; and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Call, Official, make_folder
from forms import FORMS, Labelled, csv_and_flat_folders, image_folder, parquet_of_hugging_face, write_class_folders
from import_checks import Bomb, refuse
from PIL import Image

from fastcifar.data import dataset as datasets
from fastcifar.data.dataset import CLASSES, Dataset, digest_of, sort_by_content
from fastcifar.data.source import as_split, choose_splits, order_classes, words_of
from fastcifar.data.store import import_dataset
from fastcifar.errors import DataError, UsageError

ANIMALS = ("ant", "bee", "cat")


def parts(classes: tuple[str, ...] = ANIMALS) -> tuple[Labelled, Labelled]:
    """Some images a class to train on, and a few to test."""
    return Labelled.random(4 * len(classes), classes, 0), Labelled.random(2 * len(classes), classes, 1)


def digests(train: Labelled, test: Labelled) -> tuple[str, str]:
    """What a dataset of the images is known by."""
    first, second = (
        digest_of(sort_by_content(as_split(part.pixels.transpose(0, 3, 1, 2), torch.from_numpy(part.labels))))
        for part in (train, test)
    )
    return first, second


@pytest.mark.parametrize("classes", [CLASSES["cifar10"], CLASSES["cifar100"]], ids=["cifar10", "cifar100"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_published_content_is_recognized_and_the_same(
    form: str, classes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = parts(classes)
    name = "cifar10" if len(classes) == 10 else "cifar100"
    monkeypatch.setattr(datasets, "HASHES", {name: digests(train, test)})
    found = import_dataset(FORMS[form](tmp_path / "form", train, test))
    assert (found.name, found.classes, found.published) == (name, classes, True)
    assert found.digest == datasets.combine_digests(*digests(train, test))


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("binary_version",)])
def test_every_form_of_other_content(form: str, tmp_path: Path) -> None:
    train, test = parts()
    found = import_dataset(FORMS[form](tmp_path / "form", train, test), name="mine")
    assert found.digest == datasets.combine_digests(*digests(train, test))
    assert (found.name, found.published, len(found.classes)) == ("mine", False, 3)
    assert form.startswith("npz") or found.classes == ANIMALS  # arrays hold numbers


def test_a_binary_version_of_other_content_is_refused(tmp_path: Path, home: Path) -> None:
    root = FORMS["binary_version"](tmp_path / "form", *parts(CLASSES["cifar10"]))
    refuse(root, "not the published cifar10: its content differs", home)
    batch = root / "cifar-10-batches-bin" / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    refuse(root, "data_batch_3.bin is cut off", home)
    batch.unlink()
    refuse(root, "lacks the file 'data_batch_3.bin'", home)


# ------------------------------------------------------------------------------------------------------- torchvision


def test_the_folder_that_torchvision_was_given(official: Official, tmp_path: Path) -> None:
    from_archive = import_dataset(official.archive)
    from_folder = import_dataset(tmp_path)  # holds the extracted folder
    for path in official.folder.iterdir():
        path.unlink()
    official.folder.rmdir()
    from_folder_with_archive = import_dataset(tmp_path)
    assert from_archive.digest == from_folder.digest == from_folder_with_archive.digest
    assert from_folder.name == "cifar10" and from_folder.published


# ------------------------------------------------------------------------------------------------------------ splits


def test_names_of_splits() -> None:
    assert choose_splits(["val", "train", "test"]) == ("train", "test")
    assert choose_splits(["Training", "dev"]) == ("Training", "dev")
    assert choose_splits(["cat", "dog"]) == (None, None)
    assert words_of("X_train") == ["x", "train"] and words_of("trainLabels") == ["train", "labels"]


def test_a_val_split_beside_test_is_left_out_and_said(tmp_path: Path) -> None:
    train, test = parts()
    root = image_folder(tmp_path / "both", train, test)
    write_class_folders(root / "val", test)
    notes: list[str] = []
    assert len(import_dataset(root, note=notes.append).test.labels) == 6
    assert notes == [f"Left out: images in other folders (6, such as {root}/val/ant/0.png)."]


def test_no_split_is_refused_with_the_option_and_taken_with_it(tmp_path: Path, home: Path) -> None:
    train, _ = parts()
    write_class_folders(tmp_path / "plain", train)
    refuse(tmp_path / "plain", "has no test images.*`--test-share 0.2`", home)
    notes: list[str] = []
    found = import_dataset(tmp_path / "plain", note=notes.append, test_share=0.25)
    assert torch.bincount(found.test.labels).tolist() == [1, 1, 1]
    assert torch.bincount(found.train.labels).tolist() == [3, 3, 3]
    assert len(notes) == 1 and "3 of 12 images, 25 % of each class" in notes[0] and "seed 0" in notes[0]
    np.savez(tmp_path / "plain.npz", images=train.pixels, labels=np.array(train.names()))
    assert import_dataset(tmp_path / "plain.npz", test_share=0.25).digest == found.digest  # the same images


def test_a_share_is_drawn_of_every_class_that_has_two_images(tmp_path: Path, home: Path) -> None:
    pixels = Labelled.random(9, ANIMALS, 0).pixels
    write_class_folders(tmp_path / "few", Labelled(pixels, np.array([0, 1, 1, 2, 2, 2, 2, 2, 2]), ANIMALS))
    found = import_dataset(tmp_path / "few", test_share=0.01)
    assert torch.bincount(found.test.labels, minlength=3).tolist() == [0, 1, 1]
    most = import_dataset(tmp_path / "few", test_share=0.99)
    assert torch.bincount(most.train.labels, minlength=3).tolist() == [1, 1, 1]
    write_class_folders(tmp_path / "single", Labelled(pixels[:3], np.arange(3), ANIMALS))
    with pytest.raises(DataError, match="too few images"):
        import_dataset(tmp_path / "single", test_share=0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, 20.0])
def test_a_share_that_is_none(share: float, image_folder: Path) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        import_dataset(image_folder, test_share=share)


def test_a_share_of_what_has_test_images(image_folder: Path) -> None:
    with pytest.raises(UsageError, match="has test images of its own"):
        import_dataset(image_folder, test_share=0.2)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    classes = ("bus", "train", "tram")
    write_class_folders(tmp_path / "vehicles", Labelled.random(9, classes, 0))
    assert import_dataset(tmp_path / "vehicles", test_share=0.3).classes == classes


def test_classes_that_are_numbers_are_in_their_order() -> None:
    assert order_classes(["10", "9", "1"], Path()) == ("1", "9", "10")
    assert order_classes(["10", "9", "b"], Path()) == ("10", "9", "b")


def test_one_image_a_class(tmp_path: Path) -> None:
    train, test = Labelled.random(3, ANIMALS, 0), Labelled.random(3, ANIMALS, 1)
    found = import_dataset(image_folder(tmp_path / "tiny", train, test))
    assert (len(found.train.labels), len(found.test.labels)) == (3, 3)


# ------------------------------------------------------------------------------------------------------------ litter


def test_litter_and_empty_classes_are_left_out_and_said(image_folder: Path, call: Call) -> None:
    for folder in (image_folder, image_folder / "train", image_folder / "train" / "cat"):
        for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
            (folder / name).mkdir()
            Image.new("RGB", (32, 32)).save(folder / name / "copy.png")
        for name in ("Thumbs.db", "._cat.png", ".DS_Store", "desktop.ini"):
            (folder / name).write_bytes(b"\0\5\x16\7")
    for split in ("train", "test"):
        (image_folder / split / "zebra").mkdir()
    (image_folder / "test" / "yak").mkdir()
    (image_folder / "train" / "cat" / "more").mkdir()
    Image.new("RGB", (32, 32)).save(image_folder / "train" / "cat" / "more" / "deep.gif")
    (image_folder / "train" / "dog" / "dog.heic").touch()
    done = call("download", "--from", image_folder)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("Left out")]
    for part in (
        "hidden or system files (21, such as",
        "class folders without images (3, such as",
        f"images in other folders (1, such as {image_folder}/train/cat/more/deep.gif)",
        f"files that are no images (1, such as {image_folder}/train/dog/dog.heic)",
    ):
        assert part in line, line
    assert "2 classes" in done.out and "6 train, 6 test" in done.out
    assert call("download", "--from", image_folder, "--json").document["notes"][0] == line


def test_nothing_is_said_where_all_was_taken(image_folder: Path, call: Call) -> None:
    assert "Left out" not in call("download", "--from", image_folder).out


def test_a_class_without_test_images(image_folder: Path, home: Path) -> None:
    for path in (image_folder / "test" / "dog").iterdir():
        path.unlink()
    found = import_dataset(image_folder)
    assert found.classes == ("cat", "dog") and found.test.labels.tolist() == [0, 0, 0]
    for path in (image_folder / "test" / "cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="has a test split without images"):
        import_dataset(image_folder)


def test_a_class_without_training_images(image_folder: Path, home: Path) -> None:
    for path in (image_folder / "train" / "dog").iterdir():
        path.unlink()
    refuse(image_folder, "class 'dog' in 'test' but not in 'train'", home)


# ------------------------------------------------------------------------------------------------------------ resize


def test_images_of_any_size_and_kind_with_resize(tmp_path: Path, home: Path) -> None:
    root = make_folder(tmp_path / "photos", count=5)
    cats = root / "train" / "cat"
    Image.new("L", (100, 60), 7).save(cats / "grey.bmp")
    Image.new("CMYK", (40, 50)).save(cats / "print.jpg")
    Image.new("P", (64, 64)).save(cats / "palette.gif")
    Image.new("I;16", (33, 33), 65535).save(cats / "deep.tiff")
    Image.new("RGBA", (32, 32)).save(cats / "clear.webp")
    refuse(root, "`--resize` converts all images", home)
    found = import_dataset(root, resize=True)
    assert len(found.train.labels) == 15
    assert sum(bool((image == 255).all()) for image in found.train.images) == 3  # print, deep and clear are white


def test_resize_leaves_images_as_they_are_that_need_none(image_folder: Path) -> None:
    assert import_dataset(image_folder).digest == import_dataset(image_folder, resize=True).digest


def test_options_of_an_import_without_one(call: Call) -> None:
    for option in (["--resize"], ["--test-share", "0.2"]):
        done = call("download", *option)
        assert done.code == 2 and "belong to --from PATH" in done.err


# ------------------------------------------------------------------------------------------------------------ arrays


def train_of(found: Dataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in found.train.images}


@pytest.mark.parametrize("kind", ["grey", "floats", "deep", "rgba", "channels first"])
def test_arrays_of_other_kinds_with_resize(kind: str, tmp_path: Path, home: Path) -> None:
    train, _ = parts()
    grey = train.pixels[..., 0]
    images = {
        "grey": grey,
        "floats": (train.pixels / 255).astype(np.float32),
        "deep": train.pixels.astype(np.uint16) * 257,
        "rgba": np.concatenate([train.pixels, np.full_like(train.pixels[..., :1], 255)], axis=-1),
        "channels first": grey[:, None],
    }[kind]
    np.savez(tmp_path / "a.npz", images=images, labels=train.labels)
    refuse(tmp_path / "a.npz", "`--resize` converts all images", home, test_share=0.2)
    found = import_dataset(tmp_path / "a.npz", test_share=0.2, resize=True)
    expected = train.pixels if kind in ("floats", "deep", "rgba") else np.stack([grey] * 3, axis=-1)
    assert train_of(found) < {np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes() for image in expected}


def test_small_grey_images_as_medmnist_has_them(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    labels = (np.arange(8) % 2)[:, None].astype(np.uint8)
    splits = {"train": slice(0, 4), "val": slice(4, 6), "test": slice(6, 8)}
    arrays = {f"{name}_images": grey[rows] for name, rows in splits.items()}
    notes: list[str] = []
    path = tmp_path / "pneumonia.npz"
    np.savez(path, **arrays, **{f"{name}_labels": labels[rows] for name, rows in splits.items()})
    found = import_dataset(path, resize=True, note=notes.append)
    assert (found.name, len(found.train.labels), len(found.test.labels)) == ("pneumonia", 4, 2)
    assert notes == ["Left out: images of a third split (2, such as val)."]


def test_a_pair_of_npy_files_is_found_by_one_of_them(tmp_path: Path) -> None:
    train, test = parts()
    for version, part in (("v4", train), ("v6", test)):  # as CIFAR-10.1 is kept
        np.save(tmp_path / f"cifar10.1_{version}_data.npy", part.pixels)
        np.save(tmp_path / f"cifar10.1_{version}_labels.npy", part.labels)
    found = import_dataset(tmp_path / "cifar10.1_v6_data.npy", test_share=0.5)
    assert len(found.train.labels) + len(found.test.labels) == len(test.labels)
    with pytest.raises(DataError, match="one array of images and one of labels.*name one file"):
        import_dataset(tmp_path, test_share=0.5)


def test_arrays_that_cannot_be_used(tmp_path: Path, home: Path) -> None:
    images, labels = np.zeros((4, 32, 32, 3), dtype=np.uint8), np.array([0, 1, 0, 1])
    for arrays, message in (
        ({"images": images}, "no array of labels beside it"),
        ({"images": images, "labels": labels[:3]}, "4 images but 3 labels"),
        ({"images": images, "labels": labels / 3}, "not one whole number or one name an image"),
        ({"images": images, "labels": np.eye(2)[labels]}, "not one whole number or one name an image"),
        ({"images": images, "more": images, "labels": labels}, "one array of images and one of labels"),
        ({"images": images[..., None], "labels": labels}, "one array of images and one of labels"),
        ({"images": np.zeros((4, 32, 32, 2)), "labels": labels}, "images are NHWC, NCHW or NHW"),
        ({"images": images.astype(str), "labels": labels}, "which are no images"),
        ({"images": images - 1.5, "labels": labels}, "values below 0"),
        ({"images": images, "labels": labels * 0}, "1 classes: 2 to 1000 are needed"),
        ({"test_images": images, "test_labels": labels}, "none to train on"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays)
        refuse(tmp_path / "bad.npz", message, home, test_share=0.5, resize=True)


def test_pickles_and_damaged_files_are_never_opened(tmp_path: Path, home: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "boom")], dtype=object)
    np.save(tmp_path / "bomb.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "bomb.npz", images=bomb, allow_pickle=True)
    for name in ("bomb.npy", "bomb.npz"):
        refuse(tmp_path / name, "pickled objects, which could run code", home)
    assert not (tmp_path / "boom").exists()
    for content in (b"", b"text", b"PK\3\4" + bytes(50), (tmp_path / "bomb.npz").read_bytes()[:-40]):
        (tmp_path / "broken.npz").write_bytes(content)
        refuse(tmp_path / "broken.npz", "broken.npz .*(damaged|could run code)", home)


# --------------------------------------------------------------------------------------------------------------- CSV


def kaggle(root: Path) -> Path:
    """Kaggle's folder of CIFAR-10: labels of the training images alone, and a test folder with the same file names."""
    train, test = parts()
    csv_and_flat_folders(root, train, test)
    (root / "testLabels.csv").unlink()
    return root


def test_kaggles_folder(tmp_path: Path) -> None:
    found = import_dataset(kaggle(tmp_path / "kaggle"), test_share=0.25)
    assert found.classes == ANIMALS and len(found.train.labels) == 9 and len(found.test.labels) == 3


@pytest.mark.parametrize(
    ("header", "row", "encoding"),
    [
        ("file,label", "{0}.png,{1}", "utf-8"),
        ("label;filename", "{1};{0}.png", "utf-8-sig"),
        ("", "{0}\t{1}", "utf-16"),
        ("Id,remark,Class", '{0},"a, b",{1}', "utf-8"),
        ("", "./images/{0}.png,{1}", "utf-8"),
        ("what,label", "images/{0}.png, {1} ", "utf-8"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_tables_as_people_write_them(header: str, row: str, encoding: str, newline: str, tmp_path: Path) -> None:
    train, _ = parts()
    root = tmp_path / "tabled"
    (root / "images").mkdir(parents=True)
    for number, image in enumerate(train.pixels):
        Image.fromarray(image).save(root / "images" / f"{number}.png")
    lines = [header] * bool(header) + [row.format(number, name) for number, name in enumerate(train.names())]
    (root / "list.csv").write_text(newline.join(lines), encoding=encoding, newline="")
    found = import_dataset(root, test_share=0.25)
    write_class_folders(tmp_path / "plain", train)
    assert found.classes == ANIMALS and found.digest == import_dataset(tmp_path / "plain", test_share=0.25).digest


def test_tables_that_cannot_be_used(tmp_path: Path, home: Path) -> None:
    root = kaggle(tmp_path / "kaggle")
    table = root / "trainLabels.csv"
    good = table.read_text()
    for text, message in (
        (good + "\n99,cat", "names 1 images that are not beside it, such as '99'"),
        (good + "\n99", r"row 14: a file and its label are needed, not 99"),
        ("", "is empty"),
        ("id,when,where\n1,2,3", "has the columns id, when, where"),
        ("id,label\n1,ant\n2,ant", "1 classes: 2 to 1000"),
        ("\ufeffid,label\n1,\n", "row 2: a file and its label"),
    ):
        table.write_text(text, encoding="utf-8")
        refuse(root, message, home, test_share=0.5)
    table.write_bytes(b"id,label\n1,\xff\xfa\n")
    refuse(root, "no text in UTF-8 or UTF-16", home)
    table.write_text(good)
    (root / "labels.csv").write_text("id,label\n1,ant\n")
    table.unlink()
    refuse(root, "'1' in .* may be .*/test/1.png or .*/train/1.png", home)


def test_images_without_a_label_are_left_out_and_said(tmp_path: Path) -> None:
    root = kaggle(tmp_path / "kaggle")
    Image.new("RGB", (32, 32)).save(root / "train" / "more.png")
    notes: list[str] = []
    import_dataset(root / "trainLabels.csv", test_share=0.25, note=notes.append)
    assert notes[0] == f"Left out: images without a label (1, such as {root}/train/more.png)."


# ----------------------------------------------------------------------------------------------------------- parquet


def test_parquet_that_cannot_be_used(tmp_path: Path, home: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    root = parquet_of_hugging_face(tmp_path / "form", *parts())
    file = root / "plain_text" / "train-00000-of-00002.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    refuse(root, "cannot be read as parquet", home)
    for columns, message in (
        ({"img": [{"bytes": None}, {"bytes": b"x"}], "label": [0, 0]}, "holds the paths of images"),
        ({"img": [b"x"], "label": [0]}, "an image in .*train-00000.* is not an image"),
        ({"img": ["x"], "label": [0]}, "one of encoded images and one named 'label' are needed"),
        ({"img": [b"x"], "other": [0]}, "one of encoded images and one named 'label' are needed"),
        ({"img": [b"x"], "label": [None]}, "a label that is no class"),
    ):
        parquet.write_table(arrow.table(columns), file)
        refuse(root, message, home)


def test_parquet_without_pyarrow(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "train.parquet").touch()
    refuse(tmp_path, "`pip install pyarrow`", home)
