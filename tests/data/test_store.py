"""Datasets in FASTCIFAR_HOME: kept whole or not at all, and every way to be damaged is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call, Official, make_folder
from import_checks import Bomb, nothing_left, refuse

from fastcifar.data import dataset as datasets
from fastcifar.data.dataset import HASHES, Split, combine_digests, digest_of
from fastcifar.data.store import (
    MissingDataset,
    dataset_names,
    dataset_path,
    download_dataset,
    import_dataset,
    load_dataset,
    remove_dataset,
    verify_dataset,
)
from fastcifar.errors import DataError, UsageError

NO_PERMISSIONS = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do everything")


@pytest.fixture
def kept(image_folder: Path) -> Path:
    """The file of a small dataset in FASTCIFAR_HOME."""
    import_dataset(image_folder)
    return dataset_path("pets")


@pytest.mark.slow
def test_the_real_dataset_from_png_files(cifar10_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_HOME", str(cifar10_home))
    cifar10 = verify_dataset("cifar10")
    assert cifar10.published
    assert (digest_of(cifar10.train), digest_of(cifar10.test)) == HASHES["cifar10"]
    assert cifar10.mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=5e-7)
    assert cifar10.std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=5e-7)
    assert torch.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert cifar10.classes[:3] == ("airplane", "automobile", "bird")


# -------------------------------------------------------------------------------------------------------- names


def test_names_are_those_that_can_be_loaded(image_folder: Path, home: Path) -> None:
    assert dataset_names() == ["shapes"]
    import_dataset(image_folder)
    (home / ".pets.pt.1.tmp").touch()
    (home / "folder.pt").mkdir()
    assert dataset_names() == ["pets", "shapes"]


def test_a_missing_dataset_names_the_commands_that_get_it() -> None:
    with pytest.raises(MissingDataset, match="fastcifar download.*--from PATH.*--dataset shapes"):
        load_dataset("cifar10")


def test_a_missing_dataset_of_ones_own_is_not_to_be_downloaded() -> None:
    with pytest.raises(MissingDataset, match=r"--from PATH --name mine`.*here are: shapes"):
        load_dataset("mine")


def test_the_embedded_dataset_needs_no_download() -> None:
    with pytest.raises(UsageError, match="nothing to download"):
        download_dataset("shapes")


def test_only_published_datasets_can_be_downloaded() -> None:
    with pytest.raises(UsageError, match="Only cifar10 and cifar100"):
        download_dataset("imagenet")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "shapes"])
def test_other_content_never_takes_a_published_name(name: str, image_folder: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="--name of its own"):
        import_dataset(image_folder, name=name)
    assert nothing_left(home)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_a_name_that_is_no_file_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        dataset_path(name)


def test_published_content_gets_the_published_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "numbered", tuple("0123456789"), count=1)
    own = import_dataset(folder)
    monkeypatch.setattr(datasets, "HASHES", {"cifar10": (digest_of(own.train), digest_of(own.test))})
    known = import_dataset(folder)
    assert (known.name, known.classes[0], known.published) == ("cifar10", "airplane", True)


def test_a_path_that_is_not_there(tmp_path: Path, home: Path) -> None:
    refuse(tmp_path / "nowhere", "no file or folder", home)


def test_a_folder_that_is_neither(tmp_path: Path, home: Path, official: Official) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds none of these: .*parquet.*an image folder", home)


# ------------------------------------------------------------------------------------------------- the stored file


def by_name(path: Path) -> str:
    """Turn a dataset's file into one of the earlier order, here the reverse of today's; returns its digest."""
    tree = torch.load(path, weights_only=True)
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        tree[key] = tree[key].flip(0)
    splits = (Split(tree[f"{split}_images"], tree[f"{split}_labels"]) for split in ("train", "test"))
    tree["digest"] = combine_digests(*map(digest_of, splits))
    del tree["order"]
    torch.save(tree, path.with_suffix(".new"))  # not over the file, which may be memory-mapped
    path.with_suffix(".new").replace(path)
    return str(tree["digest"])


def test_a_file_of_the_earlier_order_is_converted_once(kept: Path, call: Call) -> None:
    today = load_dataset("pets")
    assert by_name(kept) != today.digest
    notes: list[str] = []
    converted = load_dataset("pets", notes.append)
    assert len(notes) == 1 and "in the order of its content" in notes[0] and str(kept) in notes[0]
    for found in (converted, load_dataset("pets", notes.append), verify_dataset("pets")):
        assert found.digest == today.digest
        assert torch.equal(found.train.images, today.train.images)
        assert torch.equal(found.test.labels, today.test.labels)
    assert len(notes) == 1, "the second time it is as it should be"
    by_name(kept)
    done = call("train", "tiny", "--dataset", "pets", "--set", "training.epochs=1", "--set", "network.widths=[8, 8, 8]")
    assert sum("in the order of its content" in line for line in done.out.splitlines()) == 1, done.err


def test_a_file_of_the_earlier_order_that_cannot_be_replaced(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    today = load_dataset("pets")
    by_name(kept)
    before = kept.read_bytes()
    (kept.parent / ".lock").unlink()
    (kept.parent / ".lock").mkdir()
    notes: list[str] = []
    found = load_dataset("pets", notes.append)
    assert found.digest == today.digest and torch.equal(found.train.images, today.train.images)
    assert len(notes) == 1 and "for this command alone" in notes[0] and "\n" not in notes[0]
    assert kept.read_bytes() == before


def test_a_damaged_file_of_the_earlier_order_is_not_converted(kept: Path) -> None:
    by_name(kept)
    tree = torch.load(kept, weights_only=True)
    tree["train_images"][0, 0, 0, 0] ^= 1
    torch.save(tree, kept)
    before = kept.read_bytes()
    with pytest.raises(DataError, match="content has changed"):
        load_dataset("pets")
    assert kept.read_bytes() == before


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


def test_verify_knows_the_published_hashes(image_folder: Path) -> None:
    import_dataset(image_folder)
    tree = torch.load(dataset_path("pets"), weights_only=True)
    torch.save({**tree, "published": True}, dataset_path("cifar10"))
    with pytest.raises(DataError, match="content has changed"):
        verify_dataset("cifar10")


def test_a_cache_file_of_a_newer_version(kept: Path) -> None:
    torch.save({**torch.load(kept, weights_only=True), "format": 99}, kept)
    with pytest.raises(DataError, match="format 99.*update fastcifar"):
        load_dataset("pets")


def test_a_cache_file_of_another_shape(kept: Path) -> None:
    tree = torch.load(kept, weights_only=True)
    torch.save({**tree, "train_images": tree["train_images"].float()}, kept)
    with pytest.raises(DataError, match="damaged"):
        load_dataset("pets")


@pytest.mark.parametrize(
    "change",
    [{"train_labels": torch.full((6,), 2)}, {"test_labels": torch.full((6,), -1)}, {"mean": "abc"}, {"std": [0.1]},
     {"classes": [1, 2]}],
)  # fmt: skip
def test_values_that_do_not_belong_in_a_cache_file(change: dict[str, Any], image_folder: Path) -> None:
    import_dataset(image_folder)
    path = dataset_path("pets")
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(DataError, match="is damaged"):
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


# ----------------------------------------------------------------------------------------- home and its locks


def test_a_home_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCIFAR_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set FASTCIFAR_HOME"):
        import_dataset(image_folder)


@NO_PERMISSIONS
def test_a_home_without_permission(no_home: Path, image_folder: Path) -> None:
    no_home.mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot be written.*FASTCIFAR_HOME"):
        import_dataset(image_folder)


def test_a_lock_that_cannot_be_written(image_folder: Path, home: Path) -> None:
    (home / ".lock").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot be written.*FASTCIFAR_HOME"):
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


def test_remove_takes_what_a_killed_process_left(no_home: Path) -> None:
    no_home.mkdir()
    left = no_home / ".pets.pt.123.tmp"
    left.touch()
    assert remove_dataset("pets") == [left] and not left.exists()


def test_two_imports_at_once_leave_one_good_file(image_folder: Path, home: Path) -> None:
    command = [sys.executable, "-m", "fastcifar", "download", "--from", str(image_folder), "--quiet"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(verify_dataset("pets").train.labels) == 6
    assert sorted(path.name for path in home.iterdir() if path.name != "native") == [".lock", "pets.pt"]


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
