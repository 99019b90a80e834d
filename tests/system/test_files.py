"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from fastcifar.errors import DataError
from fastcifar.system.files import Locked, check_writable, home_lock, load_tensors, lock, save_tensors, write_atomically

TREE = {"x": torch.zeros(100_000)}


def names(folder: Path) -> list[str]:
    """The files in a folder (and not the tests' FASTCIFAR_HOME)."""
    return sorted(path.name for path in folder.iterdir() if path.name != "home")


# ------------------------------------------------------------------------------------------------------- writing


class Interrupting:
    """A file that raises an exception once so many bytes are written."""

    def __init__(self, file: BinaryIO, after: int, error: BaseException) -> None:
        self.file, self.left, self.error = file, after, error

    def write(self, content: bytes) -> int:
        self.left -= len(content)
        if self.left < 0:
            raise self.error
        return self.file.write(content)

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def save_interrupted(path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch, after: int = 5000) -> None:
    """Save tensors over a good file; `error` is raised in the middle of it."""
    save_tensors(path, "test", {"x": torch.ones(3)})
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda tree, file: save(tree, Interrupting(file, after, error)))
        try:
            save_tensors(path, "test", TREE)
        finally:
            assert names(path.parent) == [path.name]
            assert torch.equal(load_tensors(path, "test")["x"], torch.ones(3))


@pytest.mark.parametrize("after", [0, 5000])
def test_a_full_disk_in_the_middle_of_tensors(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DataError, match="x.pt cannot be written: No space left on device"):
        save_interrupted(tmp_path / "x.pt", full, monkeypatch, after)


def test_ctrl_c_in_the_middle_of_tensors_is_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        save_interrupted(tmp_path / "x.pt", KeyboardInterrupt(), monkeypatch)


def test_a_full_disk_while_ctrl_c_is_handled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="No space left on device"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            full = OSError(errno.ENOSPC, "No space left on device")
            save_interrupted(tmp_path / "x.pt", full, monkeypatch)


@pytest.mark.parametrize("handled", [False, True])
def test_an_error_that_is_no_failure_to_write_passes(
    handled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tree: object, file: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        if handled:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                save_tensors(tmp_path / "x.pt", "test", TREE)
        save_tensors(tmp_path / "x.pt", "test", TREE)
    assert names(tmp_path) == []


def test_a_runtime_error_in_a_writer_is_no_full_disk(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_atomically(tmp_path / "x", fail)
    assert names(tmp_path) == []


def test_a_small_disk_that_is_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        with pytest.raises(DataError, match="x.pt cannot be written: No space left on device"):
            save_tensors(small / "x.pt", "test", TREE)
        assert names(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_whether_a_file_could_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "x")
    assert names(tmp_path) == []
    with pytest.raises(DataError, match="no regular file"):
        check_writable(tmp_path)
    with pytest.raises(DataError, match="cannot be written: No such file or directory"):
        check_writable(tmp_path / "nowhere" / "x")


def test_results_files_are_locked_without_torch() -> None:
    code = "import sys, fastcifar.system.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --------------------------------------------------------------------------------------------------------- locks

HOLD = """
import sys, time
from pathlib import Path
from fastcifar.system.files import lock
with lock(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds the lock, once this returns."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_by_one_process_and_freed_when_it_dies(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold(path, 600) as process:
        with pytest.raises(Locked, match=".lock is locked by another process"), lock(path, wait=False):
            pytest.fail("two hold the lock")
        process.kill()
    with lock(path, wait=False):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold(path, 0.3) as process, lock(path, wait=True):
        assert process.wait() == 0


def count_together(path: Path, threads: int = 8, times: int = 20) -> int:
    """How far threads get that add one to the number in a file, each time under the lock."""
    number = path.with_name("number")
    number.write_text("0")

    def work() -> None:
        for _ in range(times):
            with lock(path, wait=True):
                value = int(number.read_text())
                time.sleep(0.0002)
                number.write_text(str(value + 1))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return int(number.read_text())


def test_one_thread_at_a_time(tmp_path: Path) -> None:
    assert count_together(tmp_path / ".lock") == 160


def test_a_lock_is_freed_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="work"), lock(tmp_path / ".lock", wait=False):
        raise ValueError("work")
    with lock(tmp_path / ".lock", wait=False):
        pass


def test_a_lock_that_cannot_be_written(tmp_path: Path, no_home: Path) -> None:
    missing = tmp_path / "nowhere" / ".lock"
    with pytest.raises(DataError, match="cannot be written: No such file.*; choose another"), lock(missing, wait=True):
        pass
    assert not missing.parent.exists()
    (no_home / ".lock").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be written: Is a directory; set FASTCIFAR_HOME"), home_lock(".lock"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_flock(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(file: object, operation: int) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path / ".lock", wait=False):
        with pytest.raises(Locked), lock(tmp_path / ".lock", wait=False):
            pytest.fail("two hold the lock")
        assert names(tmp_path) == [".lock", ".lock.soft"]
    assert ".lock.soft" not in names(tmp_path)
    assert count_together(tmp_path / ".lock", threads=2, times=5) == 10
