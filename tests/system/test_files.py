"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import BinaryIO

import pytest
import torch

from fastcifar.errors import DataError, FastcifarWarning
from fastcifar.system import files
from fastcifar.system.files import (
    Locked,
    check_writable,
    home,
    home_lock,
    load_tensors,
    lock,
    save_tensors,
    write_atomically,
)

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


SAVE_FOREVER = """
import signal, sys
from pathlib import Path
import torch
from fastcifar.errors import DataError
from fastcifar.system.files import save_tensors
path, size = Path(sys.argv[1]), int(sys.argv[2])
tree = {str(number): torch.ones(size) for number in range(6_000_000 // size)}
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ in iter(int, 1):
    try:
        save_tensors(path, "test", tree)
        print("saved", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    except DataError as error:
        print(error, flush=True)
"""


@pytest.mark.parametrize("size", [6_000_000, 60_000], ids=["one large tensor", "many tensors"])
def test_ctrl_c_while_tensors_are_written_is_never_a_full_disk(size: int, tmp_path: Path) -> None:
    random = Random(size)
    path = tmp_path / "x.pt"
    command = [sys.executable, "-c", SAVE_FOREVER, path, str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "saved\n"
        begin = time.monotonic()
        assert process.stdout.readline() == "saved\n"
        duration = time.monotonic() - begin
        for _ in range(12):
            time.sleep(duration * random.random())
            process.send_signal(signal.SIGINT)
            while (line := process.stdout.readline()) == "saved\n":
                pass
            assert line == "interrupted\n"
            assert len(load_tensors(path, "test")) == 2 + 6_000_000 // size
        process.kill()


@pytest.mark.parametrize("content", ["tensors", "bytes"])
def test_a_limit_on_the_size_of_files_is_no_full_disk(content: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "x"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written: File too large; raise the limit .*ulimit -f") as caught:
            if content == "tensors":
                save_tensors(path, "test", TREE)
            else:
                write_atomically(path, lambda file: file.write(bytes(400_000)))
        assert "room" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)
    for work in (check_writable, lambda path: save_tensors(path, "test", TREE)):
        with pytest.raises(DataError, match="cannot be written: File name too long; choose another place"):
            work(path)
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        load_tensors(path, "test")
    with pytest.raises(DataError, match="cannot be written: File name too long"), lock(path, wait=True):
        pass


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


TRY = """
import sys
from pathlib import Path
from fastcifar.system.files import lock
with lock(Path(sys.argv[1]), wait=False):
    pass
"""
COUNT = """
import sys, time
from pathlib import Path
from fastcifar.system.files import lock
number = Path(sys.argv[2])
for _ in range(10):
    with lock(Path(sys.argv[1]), wait=True):
        value = int(number.read_text())
        time.sleep(0.002)
        number.write_text(str(value + 1))
"""


def hold(
    path: Path, seconds: float, environment: dict[str, str] | None = None, stderr: int | None = None
) -> subprocess.Popen[str]:
    """A process that holds the lock, once this returns."""
    command = [sys.executable, "-c", HOLD, path, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_by_one_process_and_freed_when_it_dies(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold(path, 20) as process:
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


def test_waiting_for_a_lock_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENT_WAIT", 0.1)
    path = tmp_path / ".lock"
    said = "lock is locked by another process: waiting for it"
    with hold(path, 1) as process, pytest.warns(FastcifarWarning, match=said), lock(path, wait=True):
        assert process.wait() == 0


NO_FLOCK = """
#include <errno.h>
int flock(int file, int operation) { errno = NUMBER; return -1; }
"""


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def no_flock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes for which flock fails as on file systems that have none."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler, or no LD_PRELOAD")
    library = tmp_path_factory.mktemp("flock") / "flock.so"
    command = [compiler, "-shared", "-fPIC", f"-DNUMBER={request.param}", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=NO_FLOCK.encode(), check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def test_a_file_system_without_flock(no_flock: dict[str, str], tmp_path: Path) -> None:
    path, marker = tmp_path / ".lock", tmp_path / ".lock.soft"
    with hold(path, 20, no_flock, subprocess.PIPE) as process:
        assert names(tmp_path) == [".lock", ".lock.soft"]
        other = subprocess.run([sys.executable, "-c", TRY, path], env=no_flock, capture_output=True, text=True)
        assert (
            f"Locked: {path} is locked by another process, or by one that ended without removing {marker}."
            in other.stderr
        )
        process.kill()
        assert process.stderr is not None
        assert process.stderr.read().count(f"The file system of {tmp_path} has no locks: a file beside each") == 1
    with hold(path, 0, no_flock) as process:  # the marker of a dead process is nobody's
        assert process.wait() == 0
    assert names(tmp_path) == [".lock"]


def test_many_processes_without_flock_are_in_one_at_a_time(no_flock: dict[str, str], tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    workers = [
        subprocess.Popen([sys.executable, "-c", COUNT, tmp_path / ".lock", number], env=no_flock) for _ in "1234"
    ]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert number.read_text() == "40"


def test_other_errors_of_flock_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError, match="cannot be written: Input/output error"), lock(tmp_path / ".lock", wait=True):
        pass


# ------------------------------------------------------------------------------------------------------ no home

HOME = ("-c", "from fastcifar.system.files import home; print(home()); home()")
# A user id that the system does not know; it may read everything, so that it finds Python wherever that is installed.
STRANGER = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
READER = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def homeless(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as an unknown user without a home, with temporary files in `tmp`."""
    command = [*STRANGER, *READER, sys.executable]
    if shutil.which("setpriv") is None or subprocess.run([*command, "-c", ""], capture_output=True).returncode:
        pytest.skip("this user cannot become another one")
    folder = tmp_path / "tmp"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    environment = {**kept, "TMPDIR": str(folder), **variables}
    return subprocess.run([*command, *arguments], env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("variables", [{}, {"HOME": "/proc/nowhere"}, {"HOME": "/"}, {"XDG_CACHE_HOME": "relative"}])
def test_a_user_without_a_home_gets_a_folder_with_a_sentence(variables: dict[str, str], tmp_path: Path) -> None:
    done = homeless(tmp_path, *HOME, **variables)
    folder = tmp_path / "tmp" / "fastcifar-54321"
    assert done.stdout == f"{folder}\n", done.stderr
    assert done.stderr.count(f"datasets are kept in {folder}; set FASTCIFAR_HOME to a folder of yours.") == 1
    assert "Traceback" not in done.stderr and folder.stat().st_mode & 0o777 == 0o700
    assert homeless(tmp_path, *HOME, **variables).stdout == f"{folder}\n"


def test_a_folder_that_somebody_else_prepared_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "fastcifar-54321").symlink_to(tmp_path)
    done = homeless(tmp_path, *HOME)
    assert "DataError" in done.stderr and "belongs to somebody else, or others can write to it; set FAST" in done.stderr


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("~nobody-of-this-name/x", "~nobody-of-this-name is no home folder here; give the path in full"),
        ("n" * 300, "File name too long; set FASTCIFAR_HOME"),
        ("/proc/nowhere", "cannot be used: .*; set FASTCIFAR_HOME"),
    ],
)
def test_a_chosen_home_that_cannot_be(chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_HOME", chosen)
    with pytest.raises(DataError, match=reason):
        home()


def test_the_users_cache_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTCIFAR_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert home() == tmp_path / "user" / ".cache" / "fastcifar"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "fastcifar"
