"""How much memory this process may use: the machine's, or what the control groups of a container leave of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastcifar.system.processors import control_groups


@dataclass(frozen=True)
class Memory:
    """Bytes in all, and those that are free or would be freed; what limits them, in words ('' where the machine does).

    What other processes of a limited control group hold is not taken off.
    """

    total: int
    free: int
    limit: str = ""


def usable_memory(root: Path = Path("/")) -> Memory | None:
    """The memory that this process may use; None where the system does not say (it is Linux that does).

    `root` is the file system in which /proc and /sys are looked for.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        found = Memory(sizes["MemTotal"], sizes["MemAvailable"])
    except (OSError, ValueError, IndexError, KeyError):
        return None
    limit = memory_limit(root)
    if limit is not None and limit < found.total:
        found = Memory(limit, min(limit, found.free), "a control group")
    return found


def memory_limit(root: Path) -> int | None:
    """The tightest limit of the control groups that this process is in, bytes; version 2 has `max` where there is none,
    version 1 a number larger than any machine's memory."""
    limits = []
    for version, folder in control_groups("memory", root, mounts=("memory",)):
        try:
            limits.append(int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits, default=None)
