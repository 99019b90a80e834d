"""Benches of several processes under torchrun and Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_helpers import SMALL, header, kill_second_rank, lines_of, run, torchrun
from conftest import Call

from fastcifar.bench.distributed import Ranks, earlier_files, first_host, here
from fastcifar.bench.runner import RankState, check_ranks
from fastcifar.errors import UsageError


@pytest.mark.slow
def test_two_ranks_share_the_seeds_and_one_is_killed(tmp_path: Path) -> None:
    arguments = ["-m", "fastcifar", "bench", "tiny", *SMALL, "--runs", "8", "--out", "r.jsonl", "--json"]
    process = torchrun(tmp_path, "--max-restarts", "2", *arguments)
    second = tmp_path / "r.rank1.jsonl"
    kill_second_rank(process, second)
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
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    done = call("train", "tiny", "--dataset", "shapes")
    assert done.code == 2 and "fastcifar bench" in done.err
    done = call("bench", "tiny", "--dataset", "shapes")
    assert done.code == 2 and "--out" in done.err


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the variables in a text such as `RANK=0 WORLD_SIZE=2`, and none of torchrun or Slurm besides."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in (*TORCHRUN.split(), "ENVIRONMENT"):
            monkeypatch.delenv(name)

    def give(text: str) -> None:
        for item in text.split():
            monkeypatch.setenv(*item.split("=", 1))

    return give


TORCHRUN = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
WHOLE = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("RANK=1", "RANK is set, but WORLD_SIZE is not"),
        ("WORLD_SIZE=2", "WORLD_SIZE is set, but RANK is not"),
        ("LOCAL_RANK=0", "LOCAL_RANK is set, but RANK is not"),
        ("RANK=0 WORLD_SIZE=2", "RANK is set, but LOCAL_RANK is not"),
        (WHOLE.replace("RANK=0", "RANK=zero"), "RANK is 'zero', but must be a whole number"),
        (WHOLE.replace("RANK=0", "RANK=-1"), "RANK is '-1', but must be a whole number"),
        (WHOLE.replace("WORLD_SIZE=2", "WORLD_SIZE="), "WORLD_SIZE is not"),
        (WHOLE.replace("RANK=0", "RANK=2"), "RANK is 2, but must be less than WORLD_SIZE, which is 2"),
        (WHOLE.replace("LOCAL_RANK=0", "LOCAL_RANK=2"), "LOCAL_RANK is 2, but must be less than"),
        (WHOLE.partition(" MASTER")[0], "MASTER_ADDR is not"),
        (WHOLE.replace("=29500", "="), "MASTER_PORT is not"),
        (WHOLE.replace("=29500", "=http"), "MASTER_PORT is 'http'"),
        (WHOLE.replace("=29500", "=99999"), "MASTER_PORT is 99999, but must be in 1..65535"),
        ("SLURM_PROCID=1", "SLURM_PROCID is set, but SLURM_NTASKS is not: start with srun"),
        ("SLURM_PROCID=2 SLURM_NTASKS=2 SLURM_LOCALID=0", "SLURM_PROCID is 2, but must be less than SLURM_NTASKS"),
        ("SLURM_PROCID=0 SLURM_NTASKS=two", "SLURM_NTASKS is 'two'"),
        ("SLURM_PROCID=0 SLURM_NTASKS=2", "SLURM_LOCALID is not"),
    ],
)
def test_variables_set_in_part_are_an_error_of_one_sentence(
    given: str, said: str, environment: Callable[[str], None], call: Call
) -> None:
    environment(given)
    for command in ("bench", "train"):
        done = call(command, "tiny", "--dataset", "shapes", "--out", "never.jsonl")
        assert done.code == 2 and said in done.err and done.err.count("\n") == 1


STEP = "SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NTASKS=4 SLURM_JOB_ID=1234567 SLURM_STEP_ID=2"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("SLURM_JOB_ID=7 SLURM_NTASKS=4", Ranks()),  # the shell of salloc
        ("SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0", Ranks()),
        ("ENVIRONMENT=BATCH SLURM_JOB_ID=7 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=4", Ranks()),  # sbatch
        (f"{STEP} SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0", Ranks()),  # a step of one task in a job of four
        (f"ENVIRONMENT=BATCH {STEP}", Ranks(3, 4, 1, 4, "tcp://127.0.0.1:24769")),
        (f"{STEP} SLURM_STEP_NODELIST=n7 SLURM_CPUS_PER_TASK=6", Ranks(3, 4, 1, 4, "tcp://127.0.0.1:24769", 6)),
        (f"{STEP} SLURM_STEP_NODELIST=n[07-08] SLURM_NTASKS_PER_NODE=2", Ranks(3, 4, 1, 2, "tcp://n07:24769")),
        (
            f"{STEP} SLURM_STEP_NODELIST=n7,m1 SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_NODEID=1 MASTER_PORT=5000",
            Ranks(3, 4, 1, 2, "tcp://n7:5000"),
        ),
        (f"{STEP} MASTER_ADDR=10.0.0.1", Ranks(3, 4, 1, 4, "tcp://10.0.0.1:24769")),
        (f"{STEP} {WHOLE}", Ranks(0, 2, 0, 2)),  # torchrun in a step
    ],
)
def test_ranks_by_the_variables_of_slurm(given: str, expected: Ranks, environment: Callable[[str], None]) -> None:
    environment(given)
    assert here() == expected


def test_the_first_host_of_a_node_list() -> None:
    lists = {"n1,n2": "n1", "n[01-04,07],m": "n01", "n[3,5]": "n3", "r[1-2]n[08-09]": "r1n08", "gpu-a[1-2]": "gpu-a1"}
    assert {hosts: first_host(hosts) for hosts in lists} == lists


def test_processors_that_slurm_gives_are_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.bench.distributed.usable_processors", lambda: SimpleNamespace(count=8))
    ranks = [Ranks(0, 4, 0, 4), Ranks(0, 4, 0, 4, "", 6), Ranks(0, 4, 0, 4, "", 60), Ranks(0, 16, 0, 16), Ranks()]
    assert [each.threads() for each in ranks] == [2, 6, 8, 1, None]


@pytest.mark.slow
def test_tasks_of_srun_share_the_seeds(tmp_path: Path, environment: Callable[[str], None]) -> None:
    environment(f"SLURM_NTASKS=2 SLURM_JOB_ID={os.getpid()} SLURM_STEP_ID=0 SLURM_STEP_NODELIST=here")
    command = [sys.executable, "-m", "fastcifar", "bench", "tiny", *SMALL, "--runs", "4", "--out", "r.jsonl", "--json"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    tasks = [
        subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}, **pipes)
        for rank in "01"
    ]
    (out, err), (silent, other) = [task.communicate(timeout=600) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], err + other
    assert sorted(each["seed"] for each in json.loads(out)["runs"]) == [0, 1, 2, 3] and not silent
    made = [[line["seed"] for line in lines_of(tmp_path / f"r.rank{rank}.jsonl")[1:]] for rank in range(2)]
    assert all(made) and sorted(made[0] + made[1]) == [0, 1, 2, 3]
