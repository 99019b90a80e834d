"""Run folders: one process at a time in each, and what is kept whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Call

from fastcifar.bench.results import load
from fastcifar.errors import DataError, UsageError
from fastcifar.training import run_folder
from fastcifar.training.run_folder import create_run_folder, open_run_folder

SETTINGS = ("network.widths=[8, 8, 8]", "training.epochs=0.1", "evaluation.views=none")
TRAIN = ["train", "tiny", "--dataset", "shapes", "--threads", "1", *(f"--set={setting}" for setting in SETTINGS)]
DIVERGE = ["--set", "optimizer.head.lr=1e30", "--set", "optimizer.filters.lr=1e30"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """A training of many epochs, which lasts longer than any test."""
    command = [sys.executable, "-m", "fastcifar", *TRAIN, "--set", "training.epochs=1000", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "now")
    with (
        create_run_folder(None, "tiny", 0, False) as first,
        create_run_folder(None, "tiny", 0, False) as second,
        create_run_folder(None, "tiny", 0, False) as third,
    ):
        paths = [folder.path for folder in (first, second, third)]
        assert paths == [Path("runs") / name for name in ("tiny-0-now", "tiny-0-now-2", "tiny-0-now-3")]
        assert all(path.is_dir() for path in paths)
    assert not any(path.exists() for path in paths), "nothing was kept in them"


@pytest.mark.slow
def test_equal_runs_at_once_are_two_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastcifar", *TRAIN, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    documents = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    checkpoints = {document["checkpoint"] for document in documents}
    assert len(checkpoints) == 2 and all((tmp_path / checkpoint).exists() for checkpoint in checkpoints)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_one_of_a_killed_run_is_free(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("--out", folder)
    try:
        wait_for((folder / ".lock").exists, process)  # before its first epoch has ended
        second = call(*TRAIN, "--out", folder)
        wait_for((folder / "state.pt").exists, process)
        third, resumed = call(*TRAIN, "--out", folder, "--force"), call("train", "--resume", folder)
        for refused in (second, third, resumed):
            assert refused.code == 3 and "Another process" in refused.err and "Traceback" not in refused.err
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    killed = call(*TRAIN, "--out", folder)
    assert killed.code == 2 and f"fastcifar train --resume {folder}" in killed.err and "--force" not in killed.err
    (folder / "state.pt").unlink()  # as if it had been killed in its first epoch, while a file was written
    (folder / f".state.pt.{process.pid}.tmp").write_bytes(b"half")
    assert call(*TRAIN, "--out", folder, "--quiet").code == 0
    assert names(folder) == {".lock", "checkpoint.pt", "run.json"}


@pytest.mark.slow
def test_an_earlier_run_stays_until_its_replacement_is_finished(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert call(*TRAIN, "--out", folder, "--quiet").code == 0
    before = contents(folder)
    failed = call(*TRAIN, *DIVERGE, "--out", folder, "--force")
    assert failed.code == 4 and contents(folder) == before
    process = start("--out", folder, "--force", "--seed", "1")
    try:
        wait_for((folder / "state.pt").exists, process)
        assert {**contents(folder), **before} == contents(folder)
        process.send_signal(signal.SIGINT)
        assert f"--resume {folder}" in process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert {**contents(folder), **before} == contents(folder)
    assert call(*TRAIN, "--out", folder, "--force", "--seed", "2", "--quiet").code == 0
    assert json.loads((folder / "run.json").read_text())["seed"] == 2 and not (folder / "state.pt").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_an_earlier_record(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise DataError("There is no room.")

    assert call(*TRAIN, "--out", "old", "--quiet").code == 0
    before = contents(tmp_path / "old")
    monkeypatch.setattr(run_folder, "save_checkpoint", fail)
    done = call(*TRAIN, "--out", "old", "--force", "--seed", "1")
    assert done.code == 3 and "accuracy" in done.out and contents(tmp_path / "old") == before
    assert call(*TRAIN, "--out", "new").code == 3
    assert names(tmp_path / "new") == {".lock", "run.json"}, "a record without weights is better than nothing"


def test_the_state_of_an_earlier_run_is_not_said_to_be_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"of an earlier run")
    with create_run_folder(tmp_path, "tiny", 0, True) as folder:
        assert "nothing was kept" in folder.resume_hint()


def test_hints_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "my run; rm x"
    path.mkdir()
    (path / "state.pt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"--resume '.*/my run; rm x'"), create_run_folder(path, "tiny", 0, False):
        pass
    with open_run_folder(path) as folder:
        assert folder.resume_hint().endswith("/my run; rm x'")


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    for name in (".hidden.tmp", "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError), create_run_folder(tmp_path, "tiny", 0, False):
        pass
    assert names(tmp_path) >= {".hidden.tmp", "notes.txt"} and not (tmp_path / ".lock").exists()
    with create_run_folder(tmp_path, "tiny", 0, True):
        pass
    assert names(tmp_path) >= {".hidden.tmp", "notes.txt"}


def test_a_run_says_how_busy_others_kept_the_machine(call: Call, tmp_path: Path) -> None:
    began = time.time()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert call(*TRAIN, "--set", "training.epochs=2", "--out", "run", "--quiet").code == 0
    finally:
        busy.kill()
        busy.wait()
    run = load(tmp_path / "run").runs[0]
    assert began < run.at < time.time()
    share = 1 / (os.cpu_count() or 1)
    assert run.other_load is not None and run.other_load > 0.5 * share
    assert run.undisturbed == (run.other_load <= 0.1)
