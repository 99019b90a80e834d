"""The processors this process may use: affinity, CPU quota of a container, how waiting threads wait, who else is busy.

Loads no torch: the wait policy must be set before torch is.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPIN_COUNT = "10000"  # rounds a waiting thread of GNU OpenMP spins before it sleeps; its default is 30 billion
BLOCK_TIME = "1"  # the same for LLVM's OpenMP (macOS), milliseconds; its default is 200
WAIT_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # a policy of the user's own


@dataclass(frozen=True)
class Processors:
    """How many threads can run at once, and what limits them, in words ('' where the machine's processors do)."""

    count: int
    limit: str = ""


def set_wait_policy() -> None:
    """Have threads that wait for others sleep soon; a policy that the user has set stays.

    By default they spin for minutes, and beside another job take the processor from the very threads that they wait
    for (the kernels' README has the measurement). OpenMP reads the variables when it is loaded, which is with torch.
    """
    if not any(name in os.environ for name in WAIT_POLICIES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        if sys.platform == "darwin":
            os.environ["KMP_BLOCKTIME"] = BLOCK_TIME


def usable_processors(root: Path = Path("/")) -> Processors:
    """The processors that the affinity of this process and the CPU quotas of its control groups allow, at least one.

    `root` is the file system in which /proc and /sys are looked for. A quota that is no whole number is rounded down:
    a thread more would be throttled in the midst of a step, and the others wait for it.
    """
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    found = Processors(allowed, "" if allowed == machine else f"affinity to {allowed} of {machine} processors")
    quota = cpu_quota(root)
    if quota is not None and quota < allowed:
        found = Processors(max(1, int(quota)), f"a CPU quota of {quota:g} processor{'' if quota == 1 else 's'}")
    return found


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The tightest CPU quota of the control groups that this process is in (versions 1 and 2), in processors."""
    quotas = [
        _quota_v2(folder) if version == 2 else _quota_v1(folder)
        for version, folder in control_groups("cpu", root, mounts=("cpu", "cpu,cpuacct"))
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def control_groups(controller: str, root: Path, mounts: tuple[str, ...]) -> Iterator[tuple[int, Path]]:
    """The folders of the control groups that this process is in for a controller, and their version, 1 or 2.

    `mounts` is where version 1 may have the controller, beside the place that it names itself.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            places = dict.fromkeys(("", "unified"), 2)
        elif controller in controllers.split(","):
            places = dict.fromkeys((controllers, *mounts), 1)
        else:
            continue
        for mount, version in places.items():
            yield from ((version, folder) for folder in _ancestors(root / "sys/fs/cgroup" / mount, path))


def _ancestors(mount: Path, path: str) -> list[Path]:
    """The folders of a control group and of those around it; in a container the mount may be the group itself."""
    folder = mount / path.lstrip("/")
    inside = [each for each in (folder, *folder.parents) if each.is_relative_to(mount)]
    return inside or [mount]


def _quota_v2(folder: Path) -> float | None:
    """`cpu.max` holds a quota, or `max`, and a period, in microseconds."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    """`cpu.cfs_quota_us` is -1 where there is none."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class ProcessorTimes:
    """Processor time since the machine started, in clock ticks summed over all processors."""

    total: float
    busy: float
    own: float  # of this process and the children that it waited for

    def other_load(self, earlier: ProcessorTimes) -> float | None:
        """The share of all processors that others used since `earlier`, a fraction of one; None where time stood
        still."""
        total = self.total - earlier.total
        if total <= 0:
            return None
        return min(1.0, max(0.0, (self.busy - earlier.busy - (self.own - earlier.own)) / total))


def processor_times(siblings: bool = False) -> ProcessorTimes | None:
    """How busy the processors were, and with whose work; None where the system does not say (it is Linux that does).

    With `siblings`, the other children of this process's parent count as its own, such as the ranks of one torchrun.
    """
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            ticks = [int(value) for value in stat.readline().split()[1:9]]  # guests are in user and nice already
        own = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
        if siblings:
            own = max(own, children_ticks(os.getppid()))
    except (OSError, ValueError, IndexError):
        return None
    idle = ticks[3] + ticks[4]
    return ProcessorTimes(sum(ticks), sum(ticks) - idle, own)


def children_ticks(parent: int) -> float:
    """The processor time of all children of a process, in clock ticks."""
    return sum(sum(map(int, fields[11:15])) for _, _, fields in process_stats() if int(fields[1]) == parent)


def process_stats() -> Iterator[tuple[int, str, list[str]]]:
    """The number and the name of each process, and what `/proc/<number>/stat` holds behind the name."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:  # it has ended
            continue
        yield int(path.parent.name), head.partition("(")[2], rest.split()


def busiest_others(seconds: float = 0.5) -> dict[str, float]:
    """How many processors other processes keep busy, by their names, the busiest first; watches for so many seconds.

    Those below a twentieth of one are left out. Empty where the system does not say.
    """
    before = {number: _ticks(fields) for number, _, fields in process_stats()}
    time.sleep(seconds)
    busy: dict[str, float] = defaultdict(float)
    for number, name, fields in process_stats():
        if number != os.getpid():
            busy[name] += (_ticks(fields) - before.get(number, 0)) / os.sysconf("SC_CLK_TCK") / seconds
    return {name: busy[name] for name in sorted(busy, key=busy.__getitem__, reverse=True) if busy[name] >= 0.05}


def _ticks(fields: list[str]) -> int:
    """The processor time of a process itself, in clock ticks."""
    return int(fields[11]) + int(fields[12])


START = processor_times()  # when this file is first imported, at the start of the process


def others_busy() -> float | None:
    """How many processors others kept busy on average since this process began; None where the system does not say."""
    now = processor_times()
    load = now.other_load(START) if now and START else None
    return None if load is None else load * (os.cpu_count() or 1)
