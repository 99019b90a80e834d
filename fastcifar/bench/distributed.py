"""Several processes that share one bench, started by torchrun: which one this is, and what they exchange.

Messages go over gloo, so that nothing runs on the GPUs beside the trainings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from fastcifar.errors import MachineError
from fastcifar.system.processors import usable_processors

TIMEOUT = timedelta(days=7)  # the other ranks wait for the last run of the slowest
Message = TypeVar("Message")


@dataclass(frozen=True)
class Ranks:
    """This process among all of the bench; the local ones are those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

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
        return max(1, usable_processors().count // self.local_size) if self.size > 1 else None

    def file(self, path: Path) -> Path:
        """This rank's own results file: `bench.jsonl` for one process, `bench.rank3.jsonl` for the fourth of many."""
        return path if self.size == 1 else rank_file(path, self.rank)

    def all_gather(self, message: Message) -> list[Message]:
        """Every rank's message, in the order of ranks, on every rank; raises MachineError where a rank has died."""
        if self.size == 1:
            return [message]
        import torch.distributed as dist

        messages: list[Message | None] = [None] * self.size
        try:
            dist.all_gather_object(messages, message)
        except RuntimeError as error:
            raise MachineError(
                f"Rank {self.rank} lost the other ranks ({str(error).splitlines()[0]}); finished runs are kept: the "
                "same command resumes, or torchrun does with --max-restarts."
            ) from None
        return messages  # type: ignore[return-value]  # all of them are filled


def here() -> Ranks:
    """What torchrun says in the environment; a single process without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return Ranks()
    return Ranks(*(int(os.environ[name]) for name in names))


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """Inside, the ranks can exchange messages."""
    if ranks.size == 1:
        yield
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # Torchrun's store may outlive a restart, and with it the addresses of ranks that died: each attempt has its own.
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("gloo", store=attempt, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield
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
