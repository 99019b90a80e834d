"""Signals that ask a process to end, sent to real processes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TINY

LONG = [*TINY, "--set", "training.epochs=1000"]
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def start(folder: Path, arguments: list[str], output: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command line as a process in that folder."""
    command = [sys.executable, "-u", "-m", "fastcifar", *arguments]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True, cwd=folder)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_training_is_kept(number: int, code: int, tmp_path: Path) -> None:
    process = start(tmp_path, [*LONG, "--out", "run"])
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch 2"):
        assert process.poll() is None
    process.send_signal(number)
    process.send_signal(number)  # at the same moment, as `timeout` does: no second one
    _, err = process.communicate()
    assert process.returncode == code and "train --resume run" in err.splitlines()[-1] and "Traceback" not in err
    assert (tmp_path / "run" / "state.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1, 2, 3, 4])
def test_ctrl_c_while_the_program_starts(seconds: float, tmp_path: Path) -> None:
    """PyTorch's modules drop a KeyboardInterrupt that comes while they are imported."""
    process = start(tmp_path, LONG)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    # Where the interrupt passed code that `exec` ran (a dataclass in the making), CPython ends the process by SIGINT
    # afterwards: to a shell both are 130.
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err and err.splitlines()[-1].startswith("Interrupted")
    assert not list(tmp_path.glob("runs/*"))


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    script = f"trap '' HUP; {sys.executable} -m fastcifar recipes & sleep 0.7; kill -HUP $!; wait $!"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "air94" in done.stdout


def in_terminal(folder: Path, arguments: list[str], act: Callable[[subprocess.Popen[str], int], None]) -> bytes:
    """What a terminal gets from a training in its third epoch that `act` ends."""
    ours, theirs = pty.openpty()
    process = start(folder, arguments, theirs)
    os.close(theirs)
    shown = b""
    while b"\x1b[?25l" not in shown:
        shown += os.read(ours, 4096)
    act(process, ours)
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    process.communicate()
    assert process.returncode in (129, 143)
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_cursor_is_shown_again(number: int, tmp_path: Path) -> None:
    shown = in_terminal(tmp_path, LONG, lambda process, _: process.send_signal(number))
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


@pytest.mark.slow
def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    def close(process: subprocess.Popen[str], ours: int) -> None:
        os.close(ours)
        process.send_signal(signal.SIGHUP)

    in_terminal(tmp_path, LONG, close)
    assert not list(tmp_path.glob("runs/*/*.tmp"))
