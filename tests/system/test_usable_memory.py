"""The memory that a process may use: the machine's, and the limits of its control groups."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastcifar.system.memory import Memory, usable_memory

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:          100000 kB\nMemAvailable:    8388608 kB\nHugePages_Total: 0\n"


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, Memory(16 * GIB, 8 * GIB)),
        ("0::/a\n", {"a/memory.max": "max\n"}, Memory(16 * GIB, 8 * GIB)),
        ("0::/a/b\n", {"a/memory.max": f"{GIB}\n", "a/b/memory.max": "max"}, Memory(GIB, GIB, "a control group")),
        ("0::/a/b\n", {"a/memory.max": f"{4 * GIB}", "a/b/memory.max": f"{GIB}"}, Memory(GIB, GIB, "a control group")),
        ("0::/a\n", {"a/memory.max": f"{12 * GIB}\n"}, Memory(12 * GIB, 8 * GIB, "a control group")),
        (
            "4:memory:/d\n0::/\n",
            {"memory/d/memory.limit_in_bytes": f"{2 * GIB}\n"},
            Memory(2 * GIB, 2 * GIB, "a control group"),
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, Memory(16 * GIB, 8 * GIB)),
        ("4:cpu:/d\n", {"memory/d/memory.limit_in_bytes": "1"}, Memory(16 * GIB, 8 * GIB)),
    ],
)
def test_limits_are_read(tmp_path: Path, cgroup: str, files: dict[str, str], expected: Memory) -> None:
    assert usable_memory(system(tmp_path, cgroup, files)) == expected


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert usable_memory(tmp_path) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says")
def test_this_machine_says() -> None:
    found = usable_memory()
    assert found and 0 < found.free <= found.total
