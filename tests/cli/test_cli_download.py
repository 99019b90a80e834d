"""`fastcifar download`: imports, removal, and no network."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from helpers import Call, make_folder

from fastcifar.data import cifar


def test_an_import_and_a_removal(call: Call, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pets")
    done = call("download", "--from", folder, "--json")
    assert done.code == 0
    keys = ("dataset", "path", "images", "classes", "source", "verified", "command", "version", "torch", "device")
    assert set(done.document) >= set(keys)
    assert (done.document["dataset"], done.document["images"], done.document["verified"]) == ("pets", 12, False)
    assert "not a published dataset" in done.err
    assert call("download", "--dataset", "pets", "--remove").code == 0
    assert "nothing" in call("download", "--dataset", "pets", "--remove").out


def test_no_network_fails_within_seconds_and_falls_back_to_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:

    facts = dataclasses.replace(cifar.published_facts("cifar10"), url="http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr(cifar, "published_facts", lambda name: facts)
    begin = time.monotonic()
    done = call("train", "tiny")
    assert time.monotonic() - begin < 10
    assert done.code == 3
    for way in ("--from", "--url", "--dataset shapes"):
        assert way in done.err
    assert not Path("runs").exists()
