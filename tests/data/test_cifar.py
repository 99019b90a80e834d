"""The published packagings: archive and extracted folder give the same tensors, and nothing foreign is opened."""

from __future__ import annotations

import dataclasses
import pickle
from hashlib import md5
from pathlib import Path

import pytest
import torch
from conftest import Official, tar_of
from import_checks import Bomb, refuse
from PIL import Image

from fastcifar.data import cifar
from fastcifar.data.store import import_dataset
from fastcifar.errors import DataError, UsageError


def test_archive_folder_and_image_files_give_the_same_tensors(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_archive = import_dataset(official.archive)
    monkeypatch.setenv("FASTCIFAR_HOME", str(tmp_path / "other"))
    from_folder = import_dataset(official.folder)
    root = tmp_path / "images"
    for split, part in (("train", from_archive.train), ("test", from_archive.test)):
        for number, (image, label) in enumerate(zip(part.images, part.labels.tolist(), strict=True)):
            folder = root / split / f"kind{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{-number}.png")
    from_images = import_dataset(root, name="mine")
    for other in (from_folder, from_images):
        assert torch.equal(other.train.images, from_archive.train.images)
        assert torch.equal(other.test.labels, from_archive.test.labels)
        assert other.digest == from_archive.digest
    assert from_archive.published and from_archive.name == "cifar10" and not from_images.published


def test_torchvisions_facts_are_read() -> None:
    facts = cifar.published_facts("cifar100")
    assert facts.url.endswith("cifar-100-python.tar.gz") and len(facts.archive_md5) == 32
    assert (facts.labels_key, list(facts.train)) == ("fine_labels", ["train"])


def test_an_unknown_packaging(official: Official) -> None:
    with pytest.raises(UsageError, match=r"cifar10 or cifar100.*--name"):
        import_dataset(official.archive, "mine")


def test_the_files_of_the_other_dataset(official: Official, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(official.facts, archive_md5="", train={"train": ""})
    monkeypatch.setattr(cifar, "published_facts", lambda name: official.facts if name == "cifar10" else other)
    for path in (official.archive, official.folder):
        with pytest.raises(DataError, match="add `--dataset cifar10`"):
            import_dataset(path, "cifar100")


def test_a_truncated_archive(official: Official, home: Path) -> None:
    official.archive.write_bytes(official.archive.read_bytes()[:-100])
    refuse(official.archive, "not the published archive", home)


def test_an_archive_with_one_byte_changed(official: Official, home: Path) -> None:
    content = bytearray(official.archive.read_bytes())
    content[len(content) // 2] ^= 1
    official.archive.write_bytes(content)
    refuse(official.archive, "not the published archive", home)


def with_checksum_of(official: Official, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the archive were the published one: what is inside must be safe to read by itself."""
    facts = dataclasses.replace(official.facts, archive_md5=md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar, "published_facts", lambda name: facts)
    return archive


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_member_outside_its_folder(
    name: str, official: Official, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = with_checksum_of(official, tar_of(tmp_path / "evil.tar.gz", {name: b"x"}), monkeypatch)
    refuse(archive, "outside its own folder", home)
    assert not (tmp_path / "outside").exists() and not Path("/tmp/outside").exists()


def test_a_file_that_is_no_archive(
    official: Official, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("hello")
    refuse(with_checksum_of(official, tmp_path / "text", monkeypatch), "not an archive", home)


def test_a_missing_batch(official: Official, home: Path) -> None:
    (official.folder / "test_batch").unlink()
    refuse(official.folder, "lacks the file 'test_batch'", home)


def test_a_foreign_pickle_is_never_opened(official: Official, tmp_path: Path, home: Path) -> None:
    (official.folder / "data_batch_2").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    refuse(official.folder, "not the published one", home)
    assert not (tmp_path / "boom").exists()
