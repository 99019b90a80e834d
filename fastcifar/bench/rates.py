"""Rates of earlier runs on this machine, in a small file in FASTCIFAR_HOME: they say how long other runs will take.

`train` leaves one at its end. They are only hints: a file that is missing or damaged is as good as none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from fastcifar.bench.records import MAX_OTHER_LOAD
from fastcifar.errors import DataError
from fastcifar.system.files import home, write_text

RATES = "rates.json"
SHORTEST = 0.5  # seconds: the rate of a shorter run tells little about that of a longer one


@dataclass(frozen=True)
class Rate:
    """FLOPs a second of the latest run of a recipe on a device, over its whole train time."""

    device: str
    engine: str
    threads: int
    recipe: str
    flops_per_s: float
    at: float  # seconds since 1970


def leave_rate(record: Mapping[str, Any]) -> None:
    """Keep the rate of a finished run, from its record, in place of that of an earlier run of the same kind.

    A run that was very short, or beside which others used the processors, leaves none; nor does one on a machine where
    the file cannot be written.
    """
    if record["train_s"] < SHORTEST or (record["other_load"] or 0) > MAX_OTHER_LOAD:
        return
    kind = record["device"], record["engine"], record["threads"], record["recipe"]
    rate = Rate(*kind, record["flops"] / record["train_s"], record["at"])
    others = [each for each in kept_rates() if (each.device, each.engine, each.threads, each.recipe) != kind]
    with suppress(DataError):
        write_text(home() / RATES, json.dumps([asdict(each) for each in (*others, rate)], indent=1) + "\n")


def kept_rates() -> list[Rate]:
    """The rates in the file, the latest last."""
    try:
        kept = [Rate(**each) for each in json.loads((home() / RATES).read_bytes())]
        return sorted((each for each in kept if each.flops_per_s > 0), key=lambda each: each.at)
    except (OSError, ValueError, TypeError, DataError):
        return []


def expected_time(recipe: str, flops: int | None, rates: list[Rate]) -> dict[str, Any] | None:
    """How long a run of so many FLOPs is expected to take on the device of the latest rate; None where that is unknown.

    By the latest rate of the same recipe there, else by the latest of all: `recipe` says whose it was.
    """
    if flops is None or not rates:
        return None
    here = [each for each in rates if each.device == rates[-1].device]
    rate = ([each for each in here if each.recipe == recipe] or here)[-1]
    facts = {key: getattr(rate, key) for key in ("recipe", "device", "engine", "threads")}
    return {"train_s": flops / rate.flops_per_s, **facts}
