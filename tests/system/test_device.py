"""Devices, clocks, and what a person reads of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from fastcifar.cli.display.screen import duration, size
from fastcifar.errors import MachineError, UsageError
from fastcifar.system import device
from fastcifar.system.device import busy_warning, device_name, pick_device, platform, prepare_device
from fastcifar.system.processors import Processors
from fastcifar.system.timing import Timestamp


def test_a_device_is_picked_or_refused() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="did you mean 'cuda'"):
        pick_device("cudo")
    with pytest.raises(UsageError):
        pick_device("cuda:x")
    with pytest.raises(MachineError, match="no device 'cuda:99'"):
        pick_device("cuda:99")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(1, 1, "cuda:0"), (1, 0, "cuda:0"), (0, 1, "mps"), (0, 0, "cpu")]
)
def test_a_gpu_is_the_default(cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device(None) == torch.device(expected)


def test_the_cpu_is_described_with_its_threads() -> None:
    prepare_device(torch.device("cpu"), 1)
    assert device_name(torch.device("cpu")).endswith(", 1 thread")


def test_kept_memory_is_not_fetched_again() -> None:
    """A tensor made over and over faults its pages in once, not each time."""
    code = """if True:
        import resource, sys, torch
        from fastcifar.system import device as machine
        if sys.argv[1] == "keep": machine.tune_allocator()
        for i in range(40):
            if i == 20: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            x = torch.ones(2**24); del x
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc is told to keep memory")
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "plain")
    }
    assert faults["keep"] * 10 < faults["plain"]


@pytest.mark.parametrize(
    ("machine", "usable", "busy", "warned"),
    [(8, 8, 0.2, False), (8, 8, 1.0, True), (64, 2, 60.0, False), (64, 2, 63.0, True), (2, 2, None, False)],
)
def test_a_machine_too_busy_for_our_threads_is_warned_about(
    machine: int, usable: int, busy: float | None, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(device, "usable_processors", lambda: Processors(usable))
    monkeypatch.setattr(device, "others_busy", lambda: busy)
    assert (busy_warning(torch.device("cpu")) is not None) == warned


def test_marks_measure_the_time_between_them() -> None:
    first = Timestamp(torch.device("cpu"))
    time.sleep(0.05)
    second = Timestamp(torch.device("cpu"))
    assert second.reached() and 0.05 <= second.seconds_since(first) < 1


@pytest.mark.gpu
def test_marks_on_cuda_are_reached_when_the_work_is_done() -> None:
    device = torch.device("cuda")
    first = Timestamp(device)
    x = torch.randn(8192, 8192, device=device)
    for _ in range(20):
        x = x @ x * 1e-4
    second = Timestamp(device)
    assert not second.reached()
    second.wait()
    assert second.reached() and 0 < second.seconds_since(first) < 60


def test_the_age_of_the_process_begins_before_its_imports() -> None:
    code = "import time; time.sleep(0.3); from fastcifar.system.timing import process_age; print(process_age())"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 <= float(done.stdout) <= time.perf_counter() - begin + 0.02


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.874, "0.87 s"), (42.4, "42 s"), (99.9, "1 min 40 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_sizes_read_well() -> None:
    assert [size(n) for n in (12, 2048, 3 * 2**20, 5.5 * 2**30)] == ["12 bytes", "2 KiB", "3 MiB", "5.5 GiB"]
