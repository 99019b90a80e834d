"""The processors this process may use: affinity, CPU quota of a container, how waiting threads wait, who else is busy.

Loads no torch: the wait policy must be set before torch is.
"""

from __future__ import annotations

import os
import sys
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
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            quotas += [_quota_v2(folder) for folder in _ancestors(root / "sys/fs/cgroup", path)]
            quotas += [_quota_v2(folder) for folder in _ancestors(root / "sys/fs/cgroup/unified", path)]
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu", "cpu,cpuacct"):
                quotas += [_quota_v1(folder) for folder in _ancestors(root / "sys/fs/cgroup" / mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


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
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == parent:
            ticks += sum(map(int, fields[11:15]))
    return ticks


START = processor_times()  # when this file is first imported, at the start of the process


def others_busy() -> float | None:
    """How many processors others kept busy on average since this process began; None where the system does not say."""
    now = processor_times()
    load = now.other_load(START) if now and START else None
    return None if load is None else load * (os.cpu_count() or 1)
