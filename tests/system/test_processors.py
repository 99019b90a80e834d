"""The processors a process may use: affinity, quotas of control groups (real ones where root may), others' work."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcifar.system.processors import Processors, cpu_quota, usable_processors

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CODE = "from fastcifar.system.processors import usable_processors as u; print(u().count, u().limit, sep=';')"


def groups(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(folder: str, quota: str) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),  # of the group around it
        ("0::/../../docker/x\n", {"cpu.max": "200000 100000\n"}, 2.0),  # a container sees its own group as the root
        (
            "2:cpu,cpuacct:/d\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "25000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            0.25,
        ),
        ("2:cpu:/d\n", {"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"}, None),
        ("2:cpu:/gone\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, None),
    ],
)
def test_quotas_are_read(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(groups(tmp_path, cgroup, files)) == quota


def test_a_quota_below_one_processor_leaves_one_thread(tmp_path: Path) -> None:
    root = groups(tmp_path, "0::/a\n", {"a/cpu.max": "20000 100000\n"})
    assert usable_processors(root) == Processors(1, "a CPU quota of 0.2 processors")


def test_no_quota_leaves_the_affinity(tmp_path: Path) -> None:
    assert usable_processors(tmp_path).count == CPUS


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own, version 1 or 2, where root may make one."""
    made = None
    for parent, name in (("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")):
        with contextlib.suppress(OSError):
            path = Path(parent) / f"fastcifar-test-{os.getpid()}"
            path.mkdir()
            made = path
            if (path / name).exists():
                break
            path.rmdir()
            made = None
    if made is None:
        pytest.skip("no control group with a CPU controller can be made here")
    yield made
    made.rmdir()


def test_a_real_quota_limits_the_threads(group: Path) -> None:
    file, quota = ("cpu.max", "100000 100000") if (group / "cpu.max").exists() else ("cpu.cfs_quota_us", "100000")
    (group / file).write_text(quota)
    enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), sys.executable, "-c", CODE]
    done = subprocess.run(enter, capture_output=True, text=True, check=True)
    expected = "1;a CPU quota of 1 processor" if CPUS > 1 else "1;"
    assert done.stdout.strip() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_limits_the_threads() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); {CODE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    machine = os.cpu_count() or 1
    assert done.stdout.strip() == f"1;affinity to 1 of {machine} processors" if machine > 1 else "1;"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(given: dict[str, str], expected: str | None) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_WAIT", "GOMP", "KMP"))}
    code = "import fastcifar, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(expected), "False"]
