"""The first hour on a GPU, rehearsed on a CPU with a small recipe, the embedded images and a stand-in for a peer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from first_gpu_hour import TIMED_OUT, Command, run
from helpers import QUICK

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# Prints what airbench's script prints, from the data files that it reads.
STAND_IN = """
import os, time
assert os.path.exists("cifar10/train.pt") and os.path.exists("cifar10/test.pt")
print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
def main(run):
    print("|  %s  |      0  |     0.5000  |   0.5000  |               |        0.1000  |" % str(run).rjust(6))
    time.sleep(0.2)
    print("|          |   eval  |     0.5000  |   0.5000  |       0.9%03d  |        0.2000  |" % os.getpid() % 1000)
main("warmup")
for run in range(200):
    main(run)
""".replace("% os.getpid() % 1000", "% (os.getpid() % 1000)")

CANDIDATES = "[fast]\noptimizer.filters.lr = 0.2\n"


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """A folder of clones with one stand-in."""
    clone = tmp_path / "clones" / "cifar10-airbench"
    clone.mkdir(parents=True)
    (clone / "airbench94_muon.py").write_text(STAND_IN)
    return clone.parent


@pytest.fixture
def hour(tmp_path: Path, peers: Path) -> list[str]:
    """The command line of the hour but for the stage: everything small, on a CPU."""
    (tmp_path / "candidates.toml").write_text(CANDIDATES)
    settings = [f"--set={each}" for each in QUICK if each != "--set"]
    small = ["--runs", "2", "--rounds", "2", "--search-minutes", "0.1", "--claim-runs", "2", "--target", "2"]
    here = ["--dataset", "shapes", "--device", "cpu", "--recipes", "tiny", "--engines", "eager", "compiled"]
    where = ["--peers", str(peers), "--candidates", str(tmp_path / "candidates.toml")]
    tests = ["--tests", str(ROOT / "tests" / "system" / "test_device.py")]
    return [str(tmp_path / "results"), *small, *here, *where, *tests, *settings]


def start(stage: str, hour: list[str]) -> subprocess.Popen[str]:
    """The script as a process."""
    command = [sys.executable, str(HERE / "first_gpu_hour.py"), stage, *hour]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said."""
    said, _ = process.communicate(timeout=200)
    return process.returncode, said


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, as far as they are whole."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until a results file has so many lines."""
    while process.poll() is None and not (path.exists() and len(read(path)) >= lines):
        time.sleep(0.02)


@pytest.mark.slow
def test_every_stage_stopped_in_the_middle_and_gone_on_with(hour: list[str], home: Path) -> None:
    """Interrupted in the second of two runs of a bench, and in the peer's second turn: nothing is made twice."""
    folder = Path(hour[0])
    engines = folder / "engines-tiny.jsonl"
    first = start("all", hour)
    wait_for(engines, 2, first)
    first.send_signal(signal.SIGTERM)
    code, said = finish(first)
    assert code == 130 and "engines: interrupted" in said, said
    assert "doctor" in json.loads((folder / "progress.json").read_text())
    kept = read(engines)
    assert len(kept) < 5, "it was not stopped in the middle"

    second = start("all", hour)
    wait_for(folder / "peers.jsonl", 2, second)
    second.send_signal(signal.SIGTERM)
    code, said = finish(second)
    assert code == 130 and "gpu-tests" not in said, said
    assert read(engines)[: len(kept)] == kept and len(read(engines)) == 5
    turns = read(folder / "peers.jsonl")

    code, said = finish(start("all", hour))
    assert code == 0, said
    assert read(folder / "peers.jsonl")[: len(turns)] == turns
    made = dict.fromkeys(("tiny", "airbench94_muon"), 0)
    for turn in read(folder / "peers.jsonl"):
        made[turn["name"]] += len(turn["runs"])
    assert made == {"tiny": 4, "airbench94_muon": 4}
    assert sorted(run["seed"] for run in read(folder / "peers-tiny.jsonl")[1:]) == [0, 1, 2, 3]
    assert "| airbench94_muon | 4 | 0.200 ± 0.000 |" in (folder / "peers.txt").read_text()
    assert "hiverge: skipped" in (folder / "peers.txt").read_text()
    assert len(read(folder / "search.jsonl")) >= 2 and len(read(folder / "claim.jsonl")) == 3

    files = torch.load(home / "peers" / "cifar10" / "train.pt")
    assert files["images"].dtype == torch.uint8 and files["images"].shape[1:] == (32, 32, 3)
    assert len(files["labels"]) == len(files["images"]) and len(files["classes"]) == 10

    code, said = finish(start("all", hour))
    assert code == 0 and "==" not in said, "something was run again"


def test_a_stage_without_time_says_that_it_goes_on(hour: list[str]) -> None:
    code, said = finish(start("claim", [*hour, "--minutes", "0.1"]))
    assert code == 75 and said == "claim: out of time; the same command goes on.\n"


def test_without_peers_the_stage_is_skipped_with_a_sentence(hour: list[str]) -> None:
    without = hour[: hour.index("--peers")] + hour[hour.index("--peers") + 2 :]
    code, said = finish(start("peers", without))
    assert code == 0 and said.startswith("peers: skipped") and "KellerJordan/cifar10-airbench" in said


def test_what_failed_is_said_and_not_run_again_unasked(hour: list[str]) -> None:
    broken = [*hour, "--recipes", "tyni"]
    code, said = finish(start("claim", broken))
    assert code == 1 and "did you mean 'tiny'" in said and "--retry" in said
    code, said = finish(start("claim", broken))
    assert code == 1 and "==" not in said
    code, said = finish(start("claim", [*broken, "--retry"]))
    assert code == 1 and "== claim" in said


def test_a_command_is_stopped_when_the_time_is_over(tmp_path: Path) -> None:
    """With all that it started; one that has a shorter limit of its own is given up."""
    sleeps = ["bash", "-c", f"sleep 600 & echo $! > {tmp_path}/pid; echo began; wait"]
    assert run(Command("sleeps", sleeps), tmp_path, 1.0) is None
    assert (tmp_path / "sleeps.txt").read_text() == "began\n"
    number = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{number}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert run(Command("sleeps", sleeps, limit_s=0.2), tmp_path, 1.0) == TIMED_OUT
