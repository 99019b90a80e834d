"""Compiled kernels: cached, repaired, never trusted unless whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli

from fastcifar.model.kernels.build import build, flags, intact, library

SMALL = ["network.widths=[8, 16, 24]", "training.epochs=2", "training.batch_size=100", "network.whiten.images=200"]


@pytest.mark.slow
def test_without_a_compiler(cli: Cli, home: Path, tmp_path: Path) -> None:
    (home / "native").unlink()
    quick = [*SMALL, "training.epochs=0.02"]
    small = ["train", "tiny", "--dataset", "shapes", *(f"--set={each}" for each in quick), "--json"]
    named = cli(*small, "--engine", "compiled", PATH=str(tmp_path))
    assert named.code == 4 and "no C++ compiler" in named.document["error"]
    fallen = cli(*small, PATH=str(tmp_path))
    assert fallen.code == 0 and fallen.document["engine"] == "eager"
    assert fallen.err.count("no C++ compiler") == 1
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'error: not today' >&2; exit 1\n")
    broken.chmod(0o700)
    assert "not today" in cli(*small, "--engine", "compiled", CXX=str(broken)).document["error"]


def test_the_cache_is_used_mended_and_not_trusted_blindly(
    home: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (home / "native").unlink()
    library.cache_clear()

    def built() -> Path:
        library.cache_clear()
        library("convolution")
        (only,) = (home / "native").iterdir()
        return only

    first = built()
    assert first.parent.stat().st_mode & 0o777 == 0o700
    stamp = first.stat().st_mtime_ns
    assert built().stat().st_mtime_ns == stamp, "compiled again"
    content = first.read_bytes()
    first.unlink()  # this process has it mapped: a new file takes its place
    first.write_bytes(content[:5000])
    assert not intact(first)
    assert intact(built()), "damage was not mended"
    assert not recwarn.list
    (home / "native").chmod(0o777)
    library.cache_clear()
    with pytest.warns(UserWarning, match="others can write"):
        library("convolution")
    (home / "native" / first.name).unlink()
    (home / "native").rmdir()
    (home / "native").write_text("no folder")
    library.cache_clear()
    with pytest.warns(UserWarning, match="not kept"):
        library("convolution")


def test_options_of_each_platform() -> None:
    """Apple's clang refuses -fopenmp from its driver and -march=native; everywhere else they are wanted."""
    apple = flags("darwin")
    assert "-march=native" not in apple and apple[apple.index("-fopenmp") - 1] == "-Xclang"
    assert "-Wl,-undefined,dynamic_lookup" in apple and not [each for each in apple if each.startswith("-l")]
    assert {"-march=native", "-fopenmp"} < set(flags("linux")) and "-Xclang" not in flags("linux")
    assert flags() == flags(sys.platform)


def test_the_compiler_is_given_these_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nfor last; do :; done\ncat > "$last"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    build(b"int x;", tmp_path / "x.so")
    *given, _ = (tmp_path / "arguments").read_text().splitlines()
    assert given == [*flags(), "-x", "c++", "-", "-o"]
    assert (tmp_path / "x.so").read_bytes().startswith(b"int x;") and intact(tmp_path / "x.so")


def test_interrupted_in_compiling(home: Path, tmp_path: Path) -> None:
    (home / "native").unlink()
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/began\nexec sleep 60\n")
    slow.chmod(0o700)
    command = [sys.executable, "-m", "fastcifar", "train", "tiny", "--dataset", "shapes"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "CXX": str(slow)}, stderr=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "began").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.decode().splitlines()[-1] == "Interrupted."
    assert not list((home / "native").iterdir()) and not (tmp_path / "runs").exists()
