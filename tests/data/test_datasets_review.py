"""Datasets: what a review of the first version found."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import md5, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Official, make_folder
from PIL import Image

from fastcifar.data import cifar as importing
from fastcifar.data import dataset as datasets
from fastcifar.data import fetch
from fastcifar.data import images as image_files
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


def test_names_are_those_that_can_be_loaded(image_folder: Path, home: Path) -> None:
    assert dataset_names() == ["shapes"]
    import_dataset(image_folder)
    (home / ".pets.pt.1.tmp").touch()
    (home / "folder.pt").mkdir()
    assert dataset_names() == ["pets", "shapes"]


def test_a_missing_dataset_of_ones_own_is_not_to_be_downloaded() -> None:
    with pytest.raises(MissingDataset, match=r"--from PATH --name mine`.*here are: shapes"):
        load_dataset("mine")


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


def test_verify_knows_the_published_hashes(image_folder: Path) -> None:
    import_dataset(image_folder)
    tree = torch.load(dataset_path("pets"), weights_only=True)
    torch.save({**tree, "published": True}, dataset_path("cifar10"))
    with pytest.raises(DataError, match="content has changed"):
        verify_dataset("cifar10")


def test_a_lock_that_cannot_be_had(image_folder: Path, home: Path) -> None:
    (home / ".lock").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot be written.*FASTCIFAR_HOME"):
        import_dataset(image_folder)


def test_an_unknown_packaging(official: Official) -> None:
    with pytest.raises(UsageError, match=r"cifar10 or cifar100.*--name"):
        import_dataset(official.archive, "mine")


def test_the_embedded_dataset_needs_no_download() -> None:
    with pytest.raises(UsageError, match="nothing to download"):
        download_dataset("shapes")


def test_the_files_of_the_other_dataset(official: Official, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(official.facts, archive_md5="", train={"train": ""})
    monkeypatch.setattr(importing, "published_facts", lambda name: official.facts if name == "cifar10" else other)
    for path in (official.archive, official.folder):
        with pytest.raises(DataError, match="add `--dataset cifar10`"):
            import_dataset(path, "cifar100")


def test_more_classes_than_a_byte_can_count() -> None:
    split = datasets.Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([1, 257]))
    assert datasets.digest_of(split) == sha256(b"\1\0" + bytes(3072) + b"\1\1" + bytes(3072)).hexdigest()


def test_files_of_the_file_manager_are_no_images(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "._cat_s_000000.png").write_bytes(b"\0\5\x16\7")
    assert len(import_dataset(image_folder).train.labels) == 6


def test_published_content_gets_the_published_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "numbered", tuple("0123456789"), count=1)
    own = import_dataset(folder)
    monkeypatch.setattr(datasets, "HASHES", {"cifar10": (datasets.digest_of(own.train), datasets.digest_of(own.test))})
    found = import_dataset(folder)
    assert (found.name, found.classes[0], found.published) == ("cifar10", "airplane", True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(image_folder: Path) -> None:
    (image_folder / "train").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        import_dataset(image_folder)


def test_an_unreadable_folder_is_told(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(image_files, "check_classes", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        import_dataset(image_folder)


def test_remove_takes_what_a_killed_process_left(no_home: Path) -> None:
    no_home.mkdir()
    left = no_home / ".pets.pt.123.tmp"
    left.touch()
    assert remove_dataset("pets") == [left] and not left.exists()


class Chunked(BaseHTTPRequestHandler):
    """Names no length; breaks off in the middle of the first answer."""

    protocol_version = "HTTP/1.1"
    content = bytes(range(256)) * 1000

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if start else 200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        part = self.content[start:] if start else self.content[:100_000]
        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if start:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@pytest.fixture
def chunked() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chunked)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar.gz"
    server.shutdown()
    server.server_close()


def test_a_stream_of_unknown_length_that_breaks_off_goes_on(chunked: str, tmp_path: Path) -> None:
    fetch.fetch(chunked, tmp_path / "a", md5(Chunked.content).hexdigest())
    assert (tmp_path / "a").read_bytes() == Chunked.content


def test_an_archive_that_came_whole_is_not_asked_for_again(official: Official, no_home: Path) -> None:
    no_home.mkdir()
    (no_home / official.facts.archive).write_bytes(official.archive.read_bytes())
    found = download_dataset("cifar10")  # nobody answers at the address
    assert found.source == official.facts.url
    assert not (no_home / official.facts.archive).exists()


def test_a_dataset_that_is_here_is_verified_not_trusted(official: Official, no_home: Path) -> None:
    no_home.mkdir()
    (no_home / official.facts.archive).write_bytes(official.archive.read_bytes())
    kept = dataset_path("cifar10")
    content = download_dataset("cifar10").train.images.numpy().tobytes()[:64]
    changed = bytearray(kept.read_bytes())
    changed[changed.index(content)] ^= 1
    kept.write_bytes(changed)
    with pytest.raises(DataError, match="content has changed"):
        download_dataset("cifar10", "http://127.0.0.1:9/mirror")


def test_jpeg_and_webp_are_read(tmp_path: Path) -> None:
    for suffix in (".jpg", ".webp"):
        found = import_dataset(make_folder(tmp_path / f"pets{suffix[1:]}", suffix=suffix))
        path = tmp_path / f"pets{suffix[1:]}" / "train" / "cat" / f"cat_s_000000{suffix}"
        assert torch.equal(found.train.images[0], torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1))
