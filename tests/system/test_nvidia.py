"""What `nvidia-smi` says, from a program of that name on the PATH that says what the real one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcifar.errors import MachineError
from fastcifar.system import nvidia
from fastcifar.system.nvidia import GpuProcess, GpuState, gpu_names, gpu_processes, gpu_state


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program, which prints the file `said` and keeps its arguments in `asked`; nothing else is on the PATH."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexec /bin/cat {tmp_path}/said\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def test_the_state_of_a_gpu(smi: Path, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("580.65.06, 345, 1980, 69.51, 500.00, 700.00\n")
    assert gpu_state("GPU-1234") == GpuState("580.65.06", 345, 1980, 69.51, 500, 700)
    asked = (tmp_path / "asked").read_text().split()
    assert "--id=GPU-1234" in asked and "--format=csv,noheader,nounits" in asked


def test_what_a_driver_does_not_tell(smi: Path, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("470.1, 345, [N/A], [Not Supported], [Unknown Error]\n")
    assert gpu_state("GPU-1") == GpuState("470.1", 345, None, None, None, None)


def test_who_else_computes(smi: Path, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("1234, /usr/bin/python3, 4096\n99, a, b, [N/A]\nNo running processes found\n")
    expected = [GpuProcess(1234, "/usr/bin/python3", 4 * 2**30), GpuProcess(99, "a, b", None)]
    assert gpu_processes("GPU-1") == expected
    (tmp_path / "said").write_text("")
    assert gpu_processes("GPU-1") == []


def test_names(smi: Path, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("NVIDIA H100 80GB HBM3\nNVIDIA A100\n")
    assert gpu_names() == ["NVIDIA H100 80GB HBM3", "NVIDIA A100"]


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state("GPU-1") is None and gpu_processes("GPU-1") == [] and gpu_names() == []


def test_a_program_that_fails(smi: Path) -> None:
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not talk to the driver.'\nexit 9\n")
    with pytest.raises(MachineError, match="nvidia-smi fails: NVIDIA-SMI has failed because"):
        gpu_names()


def test_a_program_that_hangs(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr(nvidia, "PATIENCE", 0.3)
    with pytest.raises(MachineError, match="does not answer"):
        gpu_state("GPU-1")
