"""Datasets on disk: every packaging gives the same tensors, and every way to be damaged is told."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Official, make_folder, tar_of
from PIL import Image

from fastcifar.data import cifar as importing
from fastcifar.data.dataset import CIFAR10_TEST, CIFAR10_TRAIN, Split, digest_of, pixel_statistics
from fastcifar.data.shapes import make_shapes
from fastcifar.data.store import (
    MissingDataset,
    dataset_path,
    import_dataset,
    load_dataset,
    remove_dataset,
    verify_dataset,
)
from fastcifar.errors import DataError, UsageError

NO_PERMISSIONS = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do everything")


def nothing_left(home: Path) -> bool:
    """Whether a failure left no dataset and no unfinished file."""
    return not home.exists() or not [p for p in home.iterdir() if p.name.endswith((".pt", ".tmp"))]


def test_an_image_folder_becomes_a_dataset(image_folder: Path, home: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    found = import_dataset(image_folder, progress=lambda *state: steps.append(state))
    assert (found.name, found.classes, found.published) == ("pets", ("cat", "dog"), False)
    assert found.train.images.shape == (6, 3, 32, 32) and found.train.images.dtype == torch.uint8
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = np.asarray(Image.open(image_folder / "train" / "dog" / "dog_s_000002.png"))
    assert torch.equal(found.train.images[5], torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    assert steps[-1] == ("reading images", 12, 12)
    assert oct(home.stat().st_mode & 0o777) == "0o700"
    tree = torch.load(dataset_path("pets"), weights_only=True, mmap=True)
    assert torch.equal(tree["train_images"], found.train.images)


def test_the_order_is_that_of_file_names_whatever_the_class_or_ending(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, numbers in {"zebra": (1, 3), "ant": (2, 4)}.items():
            (tmp_path / "zoo" / split / name).mkdir(parents=True)
            for number in numbers:
                image = Image.fromarray(np.full((32, 32, 3), number, dtype=np.uint8))
                image.save(
                    tmp_path / "zoo" / split / name / f"x_{number}.{'webp' if number % 2 else 'png'}", lossless=True
                )
    found = import_dataset(tmp_path / "zoo")
    assert found.train.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert found.train.labels.tolist() == [1, 0, 1, 0]


def test_archive_and_folder_give_the_same_tensors(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_archive = import_dataset(official.archive)
    monkeypatch.setenv("FASTCIFAR_HOME", str(tmp_path / "other"))
    from_folder = import_dataset(official.folder)
    root = tmp_path / "images"
    for split, part in (("train", from_archive.train), ("test", from_archive.test)):
        batches = official.facts.train if split == "train" else official.facts.test
        names = sorted(n for b in batches for n in pickle.loads((official.folder / b).read_bytes())["filenames"])
        for name, image, label in zip(names, part.images, part.labels.tolist(), strict=True):
            folder = root / split / f"kind{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
    from_images = import_dataset(root, name="mine")
    for other in (from_folder, from_images):
        assert torch.equal(other.train.images, from_archive.train.images)
        assert torch.equal(other.test.labels, from_archive.test.labels)
        assert other.digest == from_archive.digest
    assert from_archive.published and from_archive.name == "cifar10" and not from_images.published


def test_statistics_are_those_of_all_pixels() -> None:
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    mean, std = pixel_statistics(images)
    plain = images.double() / 255
    assert mean == pytest.approx(plain.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(plain.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_the_digest_is_of_label_and_pixels_in_order() -> None:
    from hashlib import sha256

    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([3, 0, 9, 255, 1])
    content = b"".join(
        bytes([label]) + image.numpy().tobytes() for label, image in zip(labels.tolist(), images, strict=True)
    )
    assert digest_of(Split(images, labels)) == sha256(content).hexdigest()


def test_the_real_dataset_from_png_files(cifar10_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_HOME", str(cifar10_home))
    found = verify_dataset("cifar10")
    assert found.published
    assert digest_of(found.train) == CIFAR10_TRAIN
    assert digest_of(found.test) == CIFAR10_TEST
    assert found.mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=5e-7)
    assert found.std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=5e-7)
    assert torch.bincount(found.train.labels).tolist() == [5000] * 10
    assert found.classes[:3] == ("airplane", "automobile", "bird")


# ---------------------------------------------------------------------------------------------------- bad packaging


def refuse(path: Path, said: str, home: Path, **arguments: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        import_dataset(path, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert nothing_left(home)


def test_a_path_that_is_not_there(tmp_path: Path, home: Path) -> None:
    refuse(tmp_path / "nowhere", "no file or folder", home)


def test_a_folder_that_is_neither(tmp_path: Path, home: Path, official: Official) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "neither an image folder", home)


def test_a_truncated_archive(official: Official, home: Path) -> None:
    official.archive.write_bytes(official.archive.read_bytes()[:-100])
    refuse(official.archive, "not the published archive", home)


def test_an_archive_with_one_byte_changed(official: Official, home: Path) -> None:
    content = bytearray(official.archive.read_bytes())
    content[len(content) // 2] ^= 1
    official.archive.write_bytes(content)
    refuse(official.archive, "not the published archive", home)


def with_checksum_of(official: Official, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the archive were the published one: what is inside must hold by itself."""
    facts = dataclasses.replace(official.facts, archive_md5=md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(importing, "published_facts", lambda name: facts)
    return archive


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_member_that_climbs_out(
    name: str, official: Official, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = with_checksum_of(official, tar_of(tmp_path / "evil.tar.gz", {name: b"x"}), monkeypatch)
    refuse(archive, "climbs out", home)
    assert not (tmp_path / "outside").exists() and not Path("/tmp/outside").exists()


def test_a_file_that_is_no_archive(
    official: Official, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("hello")
    refuse(with_checksum_of(official, tmp_path / "text", monkeypatch), "not an archive", home)


def test_a_missing_batch(official: Official, home: Path) -> None:
    (official.folder / "test_batch").unlink()
    refuse(official.folder, "lacks the file 'test_batch'", home)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_a_foreign_pickle_is_never_opened(official: Official, tmp_path: Path, home: Path) -> None:
    (official.folder / "data_batch_2").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    refuse(official.folder, "not the published one", home)
    assert not (tmp_path / "boom").exists()


# -------------------------------------------------------------------------------------------------- bad image folders


def test_no_test_split(tmp_path: Path, home: Path) -> None:
    folder = make_folder(tmp_path / "pets")
    subprocess.run(["rm", "-r", folder / "test"], check=True)
    refuse(folder, "no 'test' folder", home)


def test_a_missing_class(image_folder: Path, home: Path) -> None:
    subprocess.run(["rm", "-r", image_folder / "test" / "dog"], check=True)
    refuse(image_folder, "class 'dog' in 'train' but not in 'test'", home)


def test_an_empty_class(image_folder: Path, home: Path) -> None:
    for path in (image_folder / "test" / "dog").iterdir():
        path.unlink()
    refuse(image_folder, "no PNG, JPEG or WebP file", home)


def test_one_class_alone(tmp_path: Path, home: Path) -> None:
    refuse(make_folder(tmp_path / "one", ("cat",)), "2 to 1000 are needed", home)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("RGB", (33, 32)), "33x32 pixels"),
        (Image.new("L", (32, 32)), "greyscale"),
        (Image.new("P", (32, 32)), "palette"),
        (Image.new("RGBA", (32, 32)), "transparency"),
    ],
)
def test_an_image_of_another_kind(image: Image.Image, said: str, image_folder: Path, home: Path) -> None:
    path = image_folder / "train" / "cat" / "cat_s_000001.png"
    image.save(path)
    refuse(image_folder, f"cat_s_000001.png is .*{said}", home)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(60)])
def test_an_unreadable_image(content: bytes, image_folder: Path, home: Path) -> None:
    (image_folder / "test" / "dog" / "dog_s_000000.png").write_bytes(content)
    refuse(image_folder, "dog_s_000000.png is not an image", home)


def test_a_truncated_image(image_folder: Path, home: Path) -> None:
    path = image_folder / "test" / "dog" / "dog_s_000000.png"
    path.write_bytes(path.read_bytes()[:-600])
    refuse(image_folder, "not an image that can be read", home)


# -------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "shapes"])
def test_other_content_never_takes_a_published_name(name: str, image_folder: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="--name of its own"):
        import_dataset(image_folder, name=name)
    assert nothing_left(home)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_a_name_that_is_no_file_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        dataset_path(name)


# ---------------------------------------------------------------------------------------------------- the cache file


@pytest.fixture
def kept(image_folder: Path) -> Path:
    import_dataset(image_folder)
    return dataset_path("pets")


def test_a_dataset_that_is_not_here_names_the_ways_out() -> None:
    with pytest.raises(MissingDataset, match="fastcifar download.*--from PATH.*--dataset shapes"):
        load_dataset("cifar10")


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_truncated_cache_file(keep: int, kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged.*get it again"):
        load_dataset("pets")


def test_a_changed_byte_is_found_by_verify(kept: Path) -> None:
    content = bytearray(kept.read_bytes())
    start = content.index(load_dataset("pets").train.images.numpy().tobytes()[:64])
    content[start] ^= 1
    kept.write_bytes(content)
    with pytest.raises(DataError, match="content has changed"):
        verify_dataset("pets")


def test_a_cache_file_of_a_newer_version(kept: Path) -> None:
    torch.save({**torch.load(kept, weights_only=True), "format": 99}, kept)
    with pytest.raises(DataError, match="format 99.*update fastcifar"):
        load_dataset("pets")


def test_a_cache_file_of_another_shape(kept: Path) -> None:
    tree = torch.load(kept, weights_only=True)
    torch.save({**tree, "train_images": tree["train_images"].float()}, kept)
    with pytest.raises(DataError, match="damaged"):
        load_dataset("pets")


def test_a_malicious_cache_file_runs_nothing(kept: Path, tmp_path: Path) -> None:
    torch.save({"kind": "dataset", "x": Bomb(tmp_path / "boom")}, kept)
    with pytest.raises(DataError, match="nothing in it was run"):
        load_dataset("pets")
    assert not (tmp_path / "boom").exists()


def test_a_folder_in_the_place_of_the_cache_file(kept: Path, image_folder: Path) -> None:
    kept.unlink()
    kept.mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load_dataset("pets")
    with pytest.raises(DataError, match="is a folder"):
        import_dataset(image_folder)


def test_a_home_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCIFAR_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set FASTCIFAR_HOME"):
        import_dataset(image_folder)


@NO_PERMISSIONS
def test_a_home_without_permission(home: Path, image_folder: Path) -> None:
    home.mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot be written"):
        import_dataset(image_folder)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        monkeypatch.setenv("FASTCIFAR_HOME", str(small))
        with pytest.raises(DataError, match="cannot be written"):
            import_dataset(make_folder(tmp_path / "big", count=20))
        assert nothing_left(small)
    finally:
        subprocess.run(["umount", small], check=True)


def test_remove_frees_the_space(kept: Path) -> None:
    assert remove_dataset("pets") == [kept]
    assert not kept.exists() and remove_dataset("pets") == []


def test_two_imports_at_once_leave_one_good_file(image_folder: Path, home: Path) -> None:
    command = [sys.executable, "-m", "fastcifar", "download", "--from", str(image_folder), "--quiet"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(verify_dataset("pets").train.labels) == 6
    assert not [path for path in home.iterdir() if path.name.endswith(".tmp")]


def test_ctrl_c_in_an_import_leaves_nothing(tmp_path: Path, home: Path) -> None:
    folder = make_folder(tmp_path / "many", count=5)
    for i in range(20_000):  # the same file again and again: long enough to be caught in the middle
        os.link(folder / "train" / "cat" / "cat_s_000000.png", folder / "train" / "cat" / f"more_{i}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "fastcifar", "download", "--from", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "reading images" in process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in err and "Traceback" not in err
    assert nothing_left(home)


# --------------------------------------------------------------------------------------------------- shapes


def test_shapes_are_the_same_bytes_everywhere() -> None:
    found = make_shapes()
    assert found.digest == "f7364ba068e0bfb232f6c825fe9392c3fec847326a316a7b0b73de623b337927"
    assert (len(found.train.images), len(found.test.images), found.published) == (10_000, 2_000, False)
    assert torch.bincount(found.train.labels).tolist() == [1000] * 10
    assert make_shapes(1).digest != found.digest


def test_a_linear_classifier_cannot_tell_shapes() -> None:
    found = load_dataset("shapes")
    torch.manual_seed(0)
    x, y = found.train.images.flatten(1).float() / 255 - 0.5, found.train.labels
    layer = torch.nn.Linear(3072, 10)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
    for _ in range(5):
        for rows in torch.randperm(len(x)).split(250):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
    test = found.test.images.flatten(1).float() / 255 - 0.5
    assert float((layer(test).argmax(1) == found.test.labels).float().mean()) < 0.6
