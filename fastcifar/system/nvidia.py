"""What NVIDIA's driver says of a GPU, through its program `nvidia-smi`, where that is there."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from fastcifar.errors import MachineError

PROGRAM = "nvidia-smi"
PATIENCE = 20.0  # seconds: where the driver hangs, the program does too
QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "power.draw", "power.limit", "power.default_limit")


@dataclass(frozen=True)
class GpuState:
    """The state of a GPU; clocks in MHz, power in watts, None for what the driver does not tell."""

    driver: str | None
    clock: float | None
    max_clock: float | None
    power: float | None
    power_limit: float | None
    default_power_limit: float | None


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU; bytes of the GPU's memory, None where the driver does not tell."""

    number: int
    name: str
    memory: float | None


def gpu_state(uuid: str) -> GpuState | None:
    """The state of the GPU of that UUID (PyTorch numbers GPUs otherwise than the driver); None without `nvidia-smi`.

    Raises MachineError with the program's complaint.
    """
    rows = nvidia_smi(f"--id={uuid}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    if not rows:
        return None
    driver, *numbers = (rows[0] + [""] * len(QUERY))[: len(QUERY)]
    return GpuState(driver or None, *map(number_or_none, numbers))


def gpu_processes(uuid: str) -> list[GpuProcess]:
    """The processes that compute on the GPU of that UUID: none without `nvidia-smi`, or where a container hides them.

    Raises MachineError with the program's complaint.
    """
    fields = "--query-compute-apps=pid,process_name,used_memory"
    rows = nvidia_smi(f"--id={uuid}", fields, "--format=csv,noheader,nounits") or []
    found = []
    for number, *name, memory in (row for row in rows if len(row) >= 3 and row[0].isdigit()):
        mebibytes = number_or_none(memory)
        found.append(GpuProcess(int(number), ", ".join(name), None if mebibytes is None else mebibytes * 2**20))
    return found


def gpu_names() -> list[str]:
    """The GPUs that the driver has; none without `nvidia-smi`. Raises MachineError with the program's complaint."""
    return [", ".join(row) for row in nvidia_smi("--query-gpu=name", "--format=csv,noheader") or []]


def nvidia_smi(*arguments: str) -> list[list[str]] | None:
    """The rows of its table in CSV form; None where there is no such program.

    Raises MachineError with its complaint where it fails, or does not answer.
    """
    try:
        done = subprocess.run(
            [PROGRAM, *arguments], capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"{PROGRAM} does not answer: the driver hangs; restart the machine.") from None
    except OSError:
        return None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"it left with {done.returncode}"]
        raise MachineError(f"{PROGRAM} fails: {said[0]}")
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def number_or_none(cell: str) -> float | None:
    """The number in a cell; None for what stands where there is none, such as [N/A]."""
    try:
        return float(cell)
    except ValueError:
        return None
