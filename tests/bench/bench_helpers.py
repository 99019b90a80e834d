"""Runs and headers that tests make up, and the command line of a small bench."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fastcifar.bench.records import Header, Machine, RunRecord
from fastcifar.recipes.parse import load_recipe

FIXTURES = Path(__file__).parent / "fixtures"
QUICK = ["--set", "network.widths=[4, 4, 4]", "--set", "training.epochs=0.05", "--set", "evaluation.views=none"]
SMALL = ["--dataset", "shapes", "--threads", "1", *QUICK]
HERE = Machine("a CPU, 2 threads", 2, "2.14.1")
THERE = Machine("a GPU", None, "2.14.1")


def run(
    name: str, seed: int, accuracy: float | None, train_s: float = 1.0, at: float | None = None, **more: Any
) -> RunRecord:
    """A finished run, or with no accuracy one that diverged."""
    return RunRecord(
        name,
        "tiny",
        seed,
        accuracy,
        None if accuracy is None else train_s,
        float(seed) if at is None else at,
        **{"diverged": accuracy is None, "machine": HERE, "engine": "eager", **more},
    )


def benched(difference: float, runs: int = 40, names: tuple[str, ...] = ("a", "b"), **more: Any) -> list[RunRecord]:
    """Runs of recipes whose accuracies differ by so much, in steps of one image in 10,000."""
    noise = random.Random(1)
    made = []
    for seed in range(runs):
        for i, name in enumerate(names):
            accuracy = round(0.94 + i * difference + noise.gauss(0, 0.0015), 4)
            made.append(run(name, seed, accuracy, (1 + 0.5 * i) * noise.uniform(0.98, 1.02), 2.0 * seed + i, **more))
    return made


def header(*names: str, **changes: Any) -> Header:
    """The header of a results file with the recipe `tiny` under these names."""
    recipes = {name: load_recipe("tiny") for name in names}
    engine, precision = dict.fromkeys(names, "eager"), dict.fromkeys(names, "float32")
    images = {"name": "cifar10", "digest": "d", "published": True}
    made = Header("0", "c", HERE.torch, HERE.device, HERE.threads, engine, precision, images, recipes)
    return dataclasses.replace(made, **changes)


def write(path: Path, header: Header, runs: list[RunRecord]) -> Path:
    """A results file with these runs."""
    path.write_text("".join(json.dumps(line) + "\n" for line in [header.line(), *(each.line() for each in runs)]))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def finished(path: Path) -> int:
    """How many runs a results file holds."""
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Python with these arguments as two ranks, its output in pipes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes)


def kill_second_rank(process: subprocess.Popen[str], results: Path) -> None:
    """Kill the last process that torchrun started, when its results file has a run."""
    while finished(results) < 1 and process.poll() is None:
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
