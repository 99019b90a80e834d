"""Several processes that share one bench or search, started by torchrun or Slurm's srun: which one this is, and what
they exchange.

Messages go over gloo and PyTorch's store, so that nothing runs on the GPUs beside the trainings.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fastcifar.errors import MachineError, UsageError
from fastcifar.system.processors import usable_processors

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TIMEOUT = timedelta(days=7)  # the other ranks wait for the last run of the slowest
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_PROCID",)
FIRST_PORT, PORTS = 20_000, 10_000  # below the ports that systems hand out by themselves
Message = TypeVar("Message")


@dataclass(frozen=True)
class Ranks:
    """This process among all of the bench or search; the local ones are those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting_point: str = "env://"  # the URL of PyTorch's rendezvous; env: MASTER_ADDR and MASTER_PORT
    processors: int | None = None  # that each rank may use, where Slurm says so

    @property
    def first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0

    def device(self) -> str | None:
        """The GPU of this rank, where there are several ranks and GPUs."""
        import torch

        if self.size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def threads(self) -> int | None:
        """This rank's share of the CPU's cores, where there are several ranks."""
        if self.size == 1:
            return None
        usable = usable_processors().count
        return min(usable, self.processors) if self.processors else max(1, usable // self.local_size)

    def file(self, path: Path) -> Path:
        """This rank's own results file: `bench.jsonl` for one process, `bench.rank3.jsonl` for the fourth of many."""
        return path if self.size == 1 else rank_file(path, self.rank)

    def all_gather(self, message: Message) -> list[Message]:
        """Every rank's message, in the order of ranks, on every rank; raises MachineError where a rank has died."""
        if self.size == 1:
            return [message]
        import torch.distributed as dist

        messages: list[Message | None] = [None] * self.size
        with self.together():
            dist.all_gather_object(messages, message)
        return messages  # type: ignore[return-value]  # all of them are filled

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, the ranks exchange messages; raises MachineError where that fails, as a rank has died."""
        try:
            yield
        except RuntimeError as error:
            raise MachineError(
                f"Rank {self.rank} lost the other ranks ({str(error).splitlines()[0]}); finished runs are kept: the "
                "same command resumes, or torchrun does with --max-restarts."
            ) from None


class Log(Generic[Message]):
    """Messages of all ranks in one order that is the same for all, without waiting for each other; they are in
    PyTorch's store, or here where there is one process."""

    def __init__(self, ranks: Ranks, store: Store | None) -> None:
        self.ranks, self.store = ranks, store
        self.messages: list[Message] = []  # as far as this rank has read

    def add(self, message: Message) -> int:
        """Append a message; returns how many there are up to it. Raises MachineError where the store is gone."""
        if self.store is None:
            self.messages.append(message)
            return len(self.messages)
        with self.ranks.together():
            number = self.store.add("messages", 1)
            self.store.set(f"message {number}", pickle.dumps(message))  # type: ignore[arg-type]  # bytes will do
        return number

    def read(self, end: int) -> list[Message]:
        """The first messages, so many of them."""
        while self.store is not None and len(self.messages) < end:
            with self.ranks.together():
                self.messages.append(pickle.loads(self.store.get(f"message {len(self.messages) + 1}")))
        return self.messages[:end]


def here() -> Ranks:
    """What torchrun, or else Slurm, says in the environment; a single process without them.

    Raises UsageError where only a part of their variables is set, or one cannot be.
    """
    if any(name in os.environ for name in TORCHRUN):
        return torchrun_ranks()
    return slurm_ranks() if "SLURM_PROCID" in os.environ else Ranks()


def torchrun_ranks() -> Ranks:
    """The ranks by torchrun's variables."""
    rank, size, local_rank, local_size = (number_from(name, TORCHRUN) for name in TORCHRUN)
    check_rank("RANK", rank, "WORLD_SIZE", size)
    check_rank("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
    if size > 1:
        if not os.environ.get("MASTER_ADDR"):
            raise UsageError("RANK is set, but MASTER_ADDR is not: start with torchrun, which sets both.")
        check_port(number_from("MASTER_PORT", TORCHRUN))
    return Ranks(rank, size, local_rank, local_size)


def slurm_ranks() -> Ranks:
    """The ranks by the variables of Slurm's srun; a single process for a step of one task and in the script of sbatch.

    They meet at MASTER_ADDR and MASTER_PORT, by default on the first host, at a port that follows from the job.
    """
    in_step = any(name.startswith(("SLURM_STEP_", "SLURM_STEPID")) for name in os.environ)
    if not in_step and os.environ.get("ENVIRONMENT") == "BATCH":  # the script has a SLURM_PROCID too, without srun
        return Ranks()
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
    rank, size = number_from("SLURM_PROCID", SLURM), number_from(size_name, SLURM)
    check_rank("SLURM_PROCID", rank, size_name, size)
    if size == 1:
        return Ranks()
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = next((os.environ[name] for name in names if os.environ.get(name)), "")
    local_rank, local_size = number_from("SLURM_LOCALID", SLURM), slurm_local_size(hosts, size)
    check_rank("SLURM_LOCALID", local_rank, "SLURM_NTASKS_PER_NODE", local_size)
    job, step = number_from("SLURM_JOB_ID", SLURM, 0), number_from("SLURM_STEP_ID", SLURM, 0)
    port = number_from("MASTER_PORT", SLURM, FIRST_PORT + (job + 101 * step) % PORTS)
    check_port(port)
    address = os.environ.get("MASTER_ADDR") or (first_host(hosts) if is_list(hosts) else "127.0.0.1")
    each = number_from("SLURM_CPUS_PER_TASK", SLURM, 0) or None
    return Ranks(rank, size, local_rank, local_size, f"tcp://{address}:{port}", each)


def slurm_local_size(hosts: str, size: int) -> int:
    """How many of the ranks are on this machine."""
    if not is_list(hosts):
        return size
    if counts := os.environ.get("SLURM_STEP_TASKS_PER_NODE"):  # such as 2(x3),1
        found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
        tasks = [int(count) for count, times in found for _ in range(int(times or 1))]
        node = number_from("SLURM_NODEID", SLURM, 0)
        if node < len(tasks):
            return tasks[node]
    return min(size, number_from("SLURM_NTASKS_PER_NODE", SLURM, size))


def is_list(hosts: str) -> bool:
    """Whether a node list of Slurm names several hosts: `node1,node2` or `node[01-04]`."""
    return bool(re.search(r",|\[.*-", hosts))


def first_host(hosts: str) -> str:
    """The first host of a node list of Slurm: node01 of `node[01-04,07],other`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0]) if first else hosts


def number_from(name: str, group: tuple[str, ...], default: int | None = None) -> int:
    """The whole number in a variable of the environment, or the default where it is not set.

    Raises UsageError where it is neither; the message names the variables of its group that are set.
    """
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if text.strip().isdecimal():
        return int(text)
    starter = "srun" if group == SLURM else "torchrun"
    if text:
        raise UsageError(f"{name} is {text!r}, but must be a whole number: start with {starter}, which sets it.")
    others = next(other for other in group if other in os.environ)
    raise UsageError(f"{others} is set, but {name} is not: start with {starter}, which sets both, or unset {others}.")


def check_rank(name: str, rank: int, size_name: str, size: int) -> None:
    """Raise UsageError unless the rank is one of so many."""
    if rank >= size:
        raise UsageError(f"{name} is {rank}, but must be less than {size_name}, which is {size}.")


def check_port(port: int) -> None:
    """Raise UsageError unless it is the number of a port."""
    if not 0 < port < 65536:
        raise UsageError(f"MASTER_PORT is {port}, but must be in 1..65535.")


@contextmanager
def process_group(ranks: Ranks) -> Iterator[Store | None]:
    """Inside, the ranks can exchange messages; gives the store of a `Log`."""
    if ranks.size == 1:
        yield None
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # Torchrun's store may outlive a restart, and with it the addresses of ranks that died: each attempt has its own.
    try:
        store, rank, size = next(rendezvous(ranks.meeting_point, ranks.rank, ranks.size, timeout=TIMEOUT))
        attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group("gloo", store=attempt, rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:  # such as a port in use
        raise MachineError(
            f"Rank {ranks.rank} cannot meet the other ranks ({str(error).splitlines()[0]}); finished runs are kept: "
            "set MASTER_ADDR to the first host and MASTER_PORT to a free port of it."
        ) from None
    try:
        yield attempt
    finally:
        dist.destroy_process_group()


def rank_file(path: Path, rank: int) -> Path:
    """The results file of a rank."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def earlier_files(path: Path, ranks: Ranks) -> list[Path]:
    """The results files that no rank adds to any more, as there were more ranks once or a single process; the first
    rank reads them."""
    if not ranks.first:
        return []
    current = {ranks.file(path), *(rank_file(path, rank) for rank in range(1, ranks.size))}
    existing = [*path.parent.glob(f"{path.stem}.rank*{path.suffix}"), *([path] if path.exists() else [])]
    return sorted(file for file in existing if file not in current)
