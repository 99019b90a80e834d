"""Several processes that share one bench, started by torchrun: who they are, and what they tell each other.

Messages go over gloo, so that nothing runs on the GPUs beside the trainings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastcifar.errors import MachineError

PATIENCE = timedelta(days=7)  # the rank with the last run is waited for


@dataclass(frozen=True)
class Ranks:
    """This process among its like; `local` counts those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self) -> str | None:
        """The GPU of this rank, where there are several ranks and GPUs."""
        import torch

        if self.size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def threads(self) -> int | None:
        """This rank's part of the processor's cores."""
        return max(1, (os.cpu_count() or 1) // self.local_size) if self.size > 1 else None

    def file(self, path: Path) -> Path:
        """This rank's own results file: `bench.jsonl` for one process, `bench.rank3.jsonl` for the fourth of many."""
        return path if self.size == 1 else path.with_name(f"{path.stem}.rank{self.rank}{path.suffix}")

    def gather(self, mine: Any) -> list[Any]:
        """What every rank handed in, in their order, for every rank; raises MachineError where one has died."""
        if self.size == 1:
            return [mine]
        import torch.distributed as dist

        everything: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(everything, mine)
        except RuntimeError as error:
            raise MachineError(
                f"Rank {self.rank} lost the other ranks ({str(error).splitlines()[0]}); what was finished is kept: the "
                "same command goes on, or torchrun does with --max-restarts."
            ) from None
        return everything


def here() -> Ranks:
    """What torchrun says in the environment; a process alone without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return Ranks()
    return Ranks(*(int(os.environ[name]) for name in names))


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Inside, the ranks can gather."""
    if ranks.size == 1:
        yield
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # Torchrun's store may outlive a restart, and with it the addresses of ranks that died: each attempt has its own.
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("gloo", store=attempt, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def earlier_files(path: Path, ranks: Ranks) -> list[Path]:
    """The results files of ranks that are no more (there were more of them once, or a single process), for the first
    rank to read."""
    if not ranks.first:
        return []
    own = {ranks.file(path)} | {path.with_name(f"{path.stem}.rank{i}{path.suffix}") for i in range(1, ranks.size)}
    found = [*path.parent.glob(f"{path.stem}.rank*{path.suffix}"), *([path] if path.exists() else [])]
    return sorted(each for each in found if each not in own)
