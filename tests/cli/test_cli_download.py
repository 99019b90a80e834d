"""`fastcifar download`: imports, removal, and no network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers import Call, Cli, make_folder

from fastcifar.data import mirrors


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
    monkeypatch.setitem(mirrors.MIRRORS["cifar10"], "urls", ["http://127.0.0.1:9/cifar.tar.gz"])
    mirrors.remote_archive("cifar10")  # imports torchvision, which takes its time
    begin = time.monotonic()
    done = call("train", "tiny", "--engine", "eager")  # no time for compiling
    assert time.monotonic() - begin < 10
    assert done.code == 3
    for way in ("--from", "--url", "--dataset shapes"):
        assert way in done.err
    assert not Path("runs").exists()


LONG = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["download", "--from", "~nobody-here/x"], 3, "~nobody-here is no home folder here; give the path in full"),
        (["download", "--from", LONG], 3, "File name too long"),
        (["download", "--dataset", LONG], 3, "cannot be the name of a file here: it is too long"),
        (["download", "--from", "pets", "--name", LONG], 3, "too long"),
        (["train", "tiny", "--dataset", LONG], 3, "too long"),
        (["train", "tiny", "--dataset", "shapes", "--out", "~nobody-here/x"], 3, "~nobody-here is no home folder here"),
        (["train", "tiny", "--dataset", "shapes", "--out", LONG], 3, "too long"),
        (["train", "--resume", LONG], 3, "too long"),
        (["train", f"{LONG}.toml"], 3, "too long"),
        (["train", LONG], 3, "too long"),
        (["eval", LONG], 3, "too long"),
        (["eval", "~nobody-here/x"], 3, "~nobody-here is no home folder here"),
        (["bench", "tiny", "--dataset", "shapes", "--out", LONG], 3, "too long"),
        (["bench", "tiny", "--dataset", "shapes", "--out", "~nobody-here/x"], 3, "~nobody-here is no home folder here"),
        (["search", "tiny", LONG], 3, "too long"),
        (["report", LONG], 3, "too long"),
        (["report", "~nobody-here/x"], 3, "~nobody-here is no home folder here"),
        (["profile", "--checkpoint", LONG], 3, "too long"),
        (["profile", "tiny", "--svg", LONG], 3, "too long"),
    ],
)
def test_paths_that_no_file_system_has(
    call: Call, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    make_folder(tmp_path / "pets")
    done = call(*arguments)
    assert (done.code, "Traceback" in done.err) == (code, False), done.err
    assert message in done.err and len(done.err.splitlines()) <= 2  # and perhaps that the machine is busy


def test_a_path_below_the_home_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "user" / "pets")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    done = call("download", "--from=~/pets", "--json")
    assert done.code == 0 and done.document["source"] == str(tmp_path / "user" / "pets")


def test_what_is_said_of_servers_and_of_the_home_folder(cli: Cli, tmp_path: Path) -> None:
    done = cli("download", "--url", "http://127.0.0.1:9/x", FASTCIFAR_HOME="", HOME="/proc/nowhere", XDG_CACHE_HOME="")
    assert done.code == 3 and done.out.splitlines()[0] == "Downloading from 127.0.0.1:9."
    warning, error = done.err.splitlines()
    assert warning.startswith("Warning: There is no home folder to write to (No such file or directory): datasets are")
    assert error.startswith("Error: http://127.0.0.1:9/x cannot be reached (Connection refused): import a copy")
