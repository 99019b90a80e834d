"""Rates of earlier runs: which are kept, and what is expected by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, Call

from fastcifar.bench import rates
from fastcifar.bench.rates import Rate, expected_time, kept_rates, leave_rate

RUN: dict[str, Any] = {
    "device": "AMD EPYC, 2 threads",
    "engine": "compiled",
    "threads": 2,
    "recipe": "tiny",
    "flops": 10**12,
    "train_s": 10.0,
    "at": 5.0,
    "other_load": 0.02,
}


def test_a_later_run_of_the_same_kind_replaces_an_earlier_one(home: Path) -> None:
    for run in (RUN, {**RUN, "recipe": "air94"}, {**RUN, "engine": "eager"}, {**RUN, "train_s": 5.0, "at": 9.0}):
        leave_rate(run)
    found = [(rate.recipe, rate.engine, rate.flops_per_s) for rate in kept_rates()]
    assert found == [("air94", "compiled", 1e11), ("tiny", "eager", 1e11), ("tiny", "compiled", 2e11)]


@pytest.mark.parametrize("change", [{"train_s": 0.1}, {"other_load": 0.5}], ids=str)
def test_a_run_that_tells_little_leaves_no_rate(change: dict[str, Any], home: Path) -> None:
    leave_rate({**RUN, **change})
    assert kept_rates() == [] and not (home / "rates.json").exists()


def test_train_leaves_the_rate_of_its_run(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SHORTEST", 0.0)
    monkeypatch.setattr(rates, "MAX_OTHER_LOAD", 1e9)  # this machine may be busy
    record = call(*TINY, "--json").document
    (rate,) = kept_rates()
    assert rate.flops_per_s == pytest.approx(record["tflops_per_s"] * 1e12)
    assert (rate.recipe, rate.device, rate.at) == ("tiny", record["device"], record["at"])


@pytest.mark.parametrize("content", ["{", "[1]", '[{"device": "a"}]', "{}", "[null]", "\x00"])
def test_a_damaged_file_is_as_none_and_is_replaced(content: str, home: Path) -> None:
    (home / "rates.json").write_text(content)
    assert kept_rates() == []
    leave_rate(RUN)
    assert [rate.recipe for rate in kept_rates()] == ["tiny"]
    assert len(json.loads((home / "rates.json").read_text())) == 1


def test_a_file_that_cannot_be_written_stops_nobody(home: Path) -> None:
    (home / "rates.json").mkdir()
    leave_rate(RUN)
    assert kept_rates() == []


def test_the_rate_is_that_of_the_recipe_or_of_the_latest_run_on_the_device() -> None:
    kept = [
        Rate("GPU", "graph", 8, "hlb", 9e14, 1.0),
        Rate("CPU", "compiled", 2, "tiny", 1e11, 2.0),
        Rate("CPU", "compiled", 2, "air94", 4e11, 3.0),
    ]
    found = expected_time("tiny", 10**12, kept)
    assert found == {"train_s": 10.0, "recipe": "tiny", "device": "CPU", "engine": "compiled", "threads": 2}
    other = expected_time("hlb", 10**12, kept)
    assert other is not None and other["train_s"] == 2.5 and other["recipe"] == "air94"
    assert expected_time("tiny", None, kept) is None and expected_time("tiny", 1, []) is None
