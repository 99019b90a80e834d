"""The machine a run uses: which device, how many threads, how memory is kept, who else is at work."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastcifar.errors import MachineError, UsageError, nearest
from fastcifar.system.processors import others_busy, usable_processors

KINDS = ("cpu", "cuda", "mps")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of the user's environment; PyTorch heeds them
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def pick_device(name: str | None) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1, mps); without one the first GPU, CUDA's or Apple's, else the CPU.

    Raises UsageError for a name that is none, MachineError for a device that is not there.
    """
    if name is None:
        gpu = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda:0" if torch.cuda.is_available() else gpu)
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
    if threads is None and device.type == "cpu":
        threads = min(torch.get_num_threads(), usable_processors().count)  # OpenMP knows affinity, but no quota
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # a recipe in float32 is meant; its products are float32 by default
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


def threads_limit() -> str:
    """What keeps PyTorch's threads below the processors of the machine, in words; '' where nothing does."""
    usable = usable_processors()
    if torch.get_num_threads() >= usable.count:
        return usable.limit
    chosen = next((name for name in THREAD_VARIABLES if os.environ.get(name)), None)
    return f"{chosen}={os.environ[chosen]}" if chosen else "PyTorch, which takes one for each core"


def processor_name() -> str:
    """The name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def busy_warning(device: torch.device) -> str | None:
    """One sentence where others use so much of the device that times will not be its own; else None.

    To be called before the device is used: a tenth of a GPU's memory taken (at least 1 GiB), or fewer processors left
    free since this process began than it may use, by more than a tenth (at least a quarter of one).
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if total - free > max(0.1 * total, 2**30):  # a context of our own takes some hundreds of megabytes
            taken = (total - free) / 2**30
            return f"Others hold {taken:.1f} GiB of this GPU's memory: times may not be its own."
        return None
    busy, machine, usable = others_busy(), os.cpu_count() or 1, usable_processors().count
    if busy is not None and machine - busy < usable - max(0.25, 0.1 * usable):
        return f"Others keep {busy:.1f} of {machine} processors busy: times may not be its own."
    return None


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
