"""The machine a run uses: which device, how many threads, how memory is kept, who else is at work."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fastcifar.errors import MachineError, UsageError, nearest

KINDS = ("cpu", "cuda", "mps")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def pick_device(name: str | None) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1, mps), or a CUDA device where there is one, else the CPU.

    Raises UsageError for a name that is none, MachineError for a device that is not there.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in KINDS or (number and not number.isdigit()):
        raise UsageError(f"There is no device '{name}'; {nearest(kind, (*KINDS, 'cuda:1'))}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            found = f"PyTorch finds {count} CUDA device{'' if count == 1 else 's'} here"
            raise MachineError(f"There is no device '{name}': {found}; use --device cpu, or see `nvidia-smi`.")
        return torch.device("cuda", int(number or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MachineError("There is no device 'mps' on this machine; use --device cpu.")
    return torch.device(kind)


def prepare_device(device: torch.device, threads: int | None) -> None:
    """Set what holds for the whole process, before the first tensor of any size."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    else:
        tune_allocator()


def tune_allocator() -> None:
    """Have glibc keep freed memory, and the kernel give it in large pages.

    Every step allocates the same hundreds of megabytes; given back and fetched anew page by page they cost a step of
    `air94` on two cores 15 % of its time. Elsewhere than on glibc nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it at its first allocation
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def device_name(device: torch.device) -> str:
    """The device in words: the name of the GPU, or the processor and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'' if threads == 1 else 's'}"


def processor_name() -> str:
    """The name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def busy_warning(device: torch.device) -> str | None:
    """One sentence where somebody else's work fills the device, so that times will not be its own; else None.

    To be asked before the device is used: a tenth of a GPU's memory taken (at least 1 GiB), or half of the
    processors busy over the last minute.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if total - free > max(0.1 * total, 2**30):  # a context of our own takes some hundreds of megabytes
            taken = (total - free) / 2**30
            return f"Somebody else holds {taken:.1f} GiB of this GPU: times may not be its own."
    elif hasattr(os, "getloadavg"):
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load >= max(1.0, cores / 2):
            return f"This machine is busy (load {load:.1f} on {cores} processors): times may not be its own."
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


def peak_memory(device: torch.device) -> int:
    """Bytes: what PyTorch held on a CUDA device at its peak; elsewhere the largest resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Begin to watch for the peak anew, where that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def is_oom(error: Exception) -> bool:
    """Whether this is one of the ways in which PyTorch runs out of memory."""
    # Of plain RuntimeErrors; oneDNN's "primitive" is a convolution whose code or buffers found no room.
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "could not create a primitive")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)


@contextmanager
def explain_oom(device: torch.device, batch_size: int) -> Iterator[None]:
    """Turn the ways in which PyTorch runs out of memory into an error that says what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_oom(error):
            raise
        peak = peak_memory(device) / 2**30
        raise MachineError(
            f"Out of memory on {device}, where {peak:.1f} GiB were in use at the peak: "
            f"try --set training.batch_size={max(1, batch_size // 2)}."
        ) from None
