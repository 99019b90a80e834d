"""Outputs whose encoding lacks some characters, and outputs that are closed or whose reader has left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY

from fastcifar.cli.display.encoding import prepare_outputs

PROFILE = ["profile", "tiny", "--dataset", "shapes", "--set", "network.widths=[8, 8, 8]"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "arguments", [["recipes"], ["recipes", "air94"], ["doctor"], [*TINY, "--seed", "3"], PROFILE], ids=str
)
def test_every_screen_has_an_ascii_form(arguments: list[str], encoding: str, tmp_path: Path) -> None:
    script = f"import os; os.environ['PYTHONIOENCODING'] = {encoding!r}; os.execv(os.sys.executable, {['python', '-m', 'fastcifar', *arguments]})"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=tmp_path)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0 and "Traceback" not in err, err
    assert out.strip() and "?" not in out


def test_the_characters_that_stand_for_others() -> None:
    prepare_outputs()
    assert "94.00 ± 0.05 × 3 … é │─┌ 猫".encode("ascii", "fastcifar") == b"94.00 +- 0.05 x 3 ... e |-+ ?"
    assert "± 3 → 4".encode("cp1252", "fastcifar") == "± 3 -> 4".encode("cp1252")
    assert "name\udcff".encode("utf-8", "fastcifar") == b"name?"


@pytest.mark.parametrize("rest", ["recipes 2>&-", "recipes >&- 2>&-", "recipes --json 2>&- >&-", "recipes >&-"])
def test_closed_outputs(rest: str) -> None:
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m fastcifar {rest}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("reader", ["true", "head -1"])
def test_pipefail(reader: str, tmp_path: Path) -> None:
    script = f"set -o pipefail; {sys.executable} -m fastcifar recipes | {reader}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_message_goes_to_the_result_where_stderr_is_closed(tmp_path: Path) -> None:
    script = f"{sys.executable} -m fastcifar recipes nope 2>&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.slow
def test_forced_colours_move_no_cursor_in_a_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastcifar", *TINY, "--set", "training.epochs=2"]
    done = subprocess.run(["env", "FORCE_COLOR=1", *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b[?25l" not in done.stdout and "\x1b[1A" not in done.stdout and "epoch 2, " in done.stdout
