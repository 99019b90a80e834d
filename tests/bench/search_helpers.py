"""Searches in an imagined world, for one process or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from pathlib import Path

import torch

from fastcifar.bench.distributed import Log, Ranks
from fastcifar.bench.records import RunRecord
from fastcifar.bench.search import Search, load_candidates, plan_search
from fastcifar.bench.search_runner import Shares
from fastcifar.data.dataset import Dataset
from fastcifar.data.store import load_dataset
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import choose_engine

CANDIDATES = """
[good]
optimizer.filters.lr = 0.2
[same]
optimizer.filters.lr = 0.3
[slow]
optimizer.filters.lr = 0.4
[bad]
network = { widths = [8, 8, 8] }
"""
# The time of a run at full length, and the share of the base's time that one needs to the same error: the best is less
# accurate than the base, and quicker.
WORLD = {"base": (100.0, 1.0), "good": (60.0, 0.7), "same": (100.0, 1.02), "slow": (140.0, 1.4), "bad": (60.0, 3.0)}


def prepared(tmp_path: Path, seconds: float, content: str = CANDIDATES, images: Dataset | None = None) -> Search:
    path = tmp_path / "candidates.toml"
    path.write_text(content)
    recipes, device = load_candidates(path, load_recipe("tiny")), torch.device("cpu")
    return plan_search(recipes, images or load_dataset("shapes"), device, choose_engine("eager", device), seconds / 60)


def imagined(name: str, seed: int, fraction: float, began: float = 0.0) -> RunRecord:
    """A run in a world where the base's error falls with the root of its time, and a seed shifts all alike."""
    full, cost = WORLD[name]
    train_s = full * fraction
    error = 0.1 * (train_s / cost / 100) ** -0.5 * (1 + 0.01 * (seed % 3))
    wall_s = train_s + 1
    return RunRecord(name, "tiny", seed, 1 - error, train_s, began + wall_s, fraction, wall_s=wall_s)


def failed(run: RunRecord) -> RunRecord:
    return dataclasses.replace(run, diverged=True, accuracy=None, train_s=None)


def simulate(
    search: Search, make: Callable[..., RunRecord] = imagined, runs: Sequence[RunRecord] = ()
) -> list[RunRecord]:
    """The runs of a search that goes on from these, by the ranks that share it, in the order in which they end."""
    shares = Shares(search, list(runs), Ranks(), Log(Ranks(), None))
    now = max((run.at for run in runs), default=0.0)
    while search.next_task(shares.runs) is not None:
        free: list[tuple[int, RunRecord | None]] = [(rank, None) for rank in range(search.ranks)]
        ends: list[tuple[float, int, RunRecord]] = []
        while free:
            for rank, run in free:
                shares.follow(shares.log.add((rank, run)))
                if rank in shares.in_flight:
                    made = make(*shares.in_flight[rank], now)
                    heappush(ends, (made.at, rank, made))
            free = []
            if ends:
                now, rank, run = heappop(ends)
                free = [(rank, run)]
        shares.wait()
    return shares.runs
