"""The processors this process may use: affinity, CPU quota of a container, how waiting threads wait, who else is busy.

Loads no torch: the wait policy must be set before torch is.
"""

from __future__ import annotations

import os
import sys
import time
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


@dataclass(frozen=True)
class BusyTime:
    """Processor seconds since boot, of the whole machine and of this process with its children, at a time."""

    machine: float
    own: float
    at: float  # seconds, monotonic


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
        found = Processors(max(1, int(quota)), f"a CPU quota of {quota:g} processors")
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


def busy_time() -> BusyTime | None:
    """The processor time used so far (Linux); None elsewhere."""
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _, _, irq, softirq = (int(word) for word in stat.readline().split()[1:8])
    except (OSError, ValueError):
        return None
    own = os.times()
    seconds = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return BusyTime(seconds, own.user + own.system + own.children_user + own.children_system, time.monotonic())


def used_by_others(since: BusyTime | None) -> float | None:
    """How many processors other processes kept busy on average since a reading of `busy_time`; None where that is
    unknown, or too short ago (under a tenth of a second) to tell."""
    now = busy_time()
    if since is None or now is None or now.at - since.at < 0.1:
        return None
    return max(0.0, (now.machine - since.machine) - (now.own - since.own)) / (now.at - since.at)


START = busy_time()  # when this file is first imported, at the start of the process
