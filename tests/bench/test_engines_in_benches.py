"""Benches with an engine for each recipe."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Call

SMALL = ["network.widths=[8, 16, 24]", "training.epochs=2", "training.batch_size=100", "network.whiten.images=200"]


def test_bench_takes_an_engine_for_each(call: Call, tmp_path: Path) -> None:
    small = [*SMALL, "training.epochs=0.02"]
    sides = ["a=tiny", "b=tiny", "--engine", "a:eager", "--engine", "b:compiled", *(f"--set={each}" for each in small)]
    done = call("bench", *sides, "--dataset", "shapes", "--runs", "2", "--out", "b.jsonl", "--json")
    assert done.code == 0, done.err
    header = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert header["engine"] == {"a": "eager", "b": "compiled"}
    refused = call("bench", "tiny", "b=tiny", "--dataset", "shapes", "--runs", "1")
    assert refused.code == 2 and "same recipe" in refused.err
