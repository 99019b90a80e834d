"""Benches of several processes under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import SMALL, finished, header, lines_of, run
from conftest import Call

from fastcifar.bench.distributed import Ranks, earlier_files
from fastcifar.bench.runner import RankState, check_ranks
from fastcifar.errors import UsageError


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes)


@pytest.mark.slow
def test_two_ranks_share_the_seeds_and_one_is_killed(tmp_path: Path) -> None:
    arguments = ["-m", "fastcifar", "bench", "tiny", *SMALL, "--runs", "8", "--out", "r.jsonl", "--json"]
    process = torchrun(tmp_path, "--max-restarts", "2", *arguments)
    second = tmp_path / "r.rank1.jsonl"
    while finished(second) < 1 and process.poll() is None:
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert sorted(r["seed"] for r in document["runs"]) == list(range(8))
    made = [line["seed"] for rank in range(2) for line in lines_of(tmp_path / f"r.rank{rank}.jsonl")[1:]]
    assert sorted(made) == list(range(8))


def test_ranks_with_different_arguments_are_refused() -> None:
    alike = RankState(header("tiny"), (2,), [])
    check_ranks([alike, RankState(header("tiny"), (2,), [run("tiny", 0, 0.9)])])
    with pytest.raises(UsageError, match="Rank 1 was started with other arguments than rank 0"):
        check_ranks([alike, RankState(header("tiny"), (3,), [])])
    with pytest.raises(UsageError, match="rank 1 are of another bench .*device was another"):
        check_ranks([alike, RankState(header("tiny", device="another"), (2,), [])])


def test_files_of_ranks_that_are_no_more_are_read_by_the_first(tmp_path: Path) -> None:
    names = ["r.jsonl", "r.rank0.jsonl", "r.rank1.jsonl", "r.rank2.jsonl", "other.rank5.jsonl"]
    for name in names:
        (tmp_path / name).touch()
    path = tmp_path / "r.jsonl"
    assert [file.name for file in earlier_files(path, Ranks())] == ["r.rank0.jsonl", "r.rank1.jsonl", "r.rank2.jsonl"]
    assert [file.name for file in earlier_files(path, Ranks(0, 2))] == ["r.jsonl", "r.rank2.jsonl"]
    assert earlier_files(path, Ranks(1, 2)) == []


def test_commands_of_one_process_say_so_under_torchrun(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for command in (["train", "tiny"], ["search", "tiny", "none.toml"]):
        done = call(*command, "--dataset", "shapes")
        assert done.code == 2 and "fastcifar bench" in done.err
    done = call("bench", "tiny", "--dataset", "shapes")
    assert done.code == 2 and "--out" in done.err
