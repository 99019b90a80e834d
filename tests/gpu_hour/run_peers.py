#!/usr/bin/env python3
"""Published training scripts and a recipe of ours by turns on the same GPU.

    python tests/gpu_hour/run_peers.py CLONES FOLDER --recipe fast94 --engine graph --runs 5 --rounds 4

CLONES is a folder with clones of the peers' repositories, as many of them as are to be compared; nothing of theirs is
part of fastcifar. Their data files are made from our dataset, in FASTCIFAR_HOME/peers. The number of runs stands in the
text of two of the scripts: a copy with another number is run, which lies there too. The third is run by its own
harness, which accepts one kind of card only: that check is left out.

A turn is one process of `--runs` runs. Each line of FOLDER/peers.jsonl is a turn: its runs, how long the process took,
and how long until its first run that counts (compiling and a warm-up run are over then); what a process says is kept in
FOLDER/peer-NAME.log. The same command again goes on. Two scripts count the final evaluation into their time, the third
does not, and its accuracy is over 8,000 test images: our time is given both ways.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from fastcifar.bench.records import RunRecord
from fastcifar.bench.results import load
from fastcifar.stats import estimate
from fastcifar.system.files import home

WRITTEN_RUNS = re.compile(r"range\(200\)")  # how the scripts have the number of their runs
INTERRUPTED = 130


@dataclass(frozen=True)
class Run:
    """A run: its accuracy, a fraction of one, and its seconds with and without the evaluation, as far as known."""

    accuracy: float
    with_evaluation: float | None = None
    without_evaluation: float | None = None


Reader = Callable[[Iterable[str]], Iterator[Run | None]]


def read_table(lines: Iterable[str]) -> Iterator[Run | None]:
    """The runs in the table that airbench and hiverge print; None at the end of the warm-up run, the first of all."""
    columns: list[str] = []
    warm = False
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "time_seconds" in cells:
            columns = cells
        elif len(cells) == len(columns) and (row := dict(zip(columns, cells, strict=True)))["epoch"] == "eval":
            yield Run(float(row["tta_val_acc"]), with_evaluation=float(row["time_seconds"])) if warm else None
            warm = True


def read_trials(lines: Iterable[str]) -> Iterator[Run | None]:
    """The runs that fulcrum's harness prints, a line each; None when what happens once is over."""
    for line in lines:
        if line.startswith("[build]"):
            yield None
        elif found := re.match(r"\[trial .* honest=([\d.]+)s acc=([\d.]+)", line):
            yield Run(float(found[2]), without_evaluation=float(found[1]))


@dataclass(frozen=True)
class Peer:
    """A published script: the folder of its repository's clone, and how it is started and read."""

    clone: str
    script: str
    command: Callable[[Path, Path, int, int], list[str]]
    read: Reader


def run_copy(script: Path, work: Path, first: int, runs: int) -> list[str]:
    """The command that runs a copy of a script with another number of runs."""
    text, count = WRITTEN_RUNS.subn(f"range({runs})", script.read_text(encoding="utf-8"))
    if count != 1:
        raise ValueError(f"the number of runs is not where it was in {script}")
    copy = work / f"{script.stem}-{runs}.py"
    copy.write_text(text, encoding="utf-8")
    return [sys.executable, "-u", str(copy)]


HARNESS = """
import sys
from runners import harness, targets
harness.sxm_single_gpu_or_exit = harness.gpu_name
first, runs = map(int, sys.argv[1:])
trials = list(range(first, first + runs))
harness.run_trials(
    targets.E1Target(), data_path="cifar10", overrides={}, trial_ids=trials, seed_base=0, container_id=0
)
"""


def run_harness(script: Path, work: Path, first: int, runs: int) -> list[str]:
    """The command that runs fulcrum's recipe in their harness."""
    return [sys.executable, "-u", "-c", HARNESS, str(first), str(runs)]


PEERS = {
    "airbench94_muon": Peer("cifar10-airbench", "airbench94_muon.py", run_copy, read_table),
    "hiverge": Peer("cifar10-speedrun", "cifar10_speedrun.py", run_copy, read_table),
    "e1": Peer("cifar-10-speedrun", "runners/recipes/e1.py", run_harness, read_trials),
}


@dataclass
class Turn:
    """One process of a contender. `ready_s` is known of peers alone; `exit_code` is None where it was interrupted."""

    name: str
    runs: list[Run]
    process_s: float = 0.0
    ready_s: float | None = None
    exit_code: int | None = None

    @property
    def outside_s(self) -> float:
        """Seconds of the process that no run counts: imports, data, compiling, warm-up, pauses, further evaluations."""
        return self.process_s - sum(run.with_evaluation or run.without_evaluation or 0.0 for run in self.runs)


@dataclass
class Comparison:
    """Our recipe and the peers that are here: where they are, and how many runs they make by turns."""

    options: argparse.Namespace
    work: Path  # copies of scripts, and the peers' data files
    turns: list[Turn]

    def __post_init__(self) -> None:
        self.clones, self.folder = self.options.clones.resolve(), self.options.folder.resolve()
        self.kept = self.folder / "peers.jsonl"
        self.results = self.folder / f"peers-{self.options.recipe}.jsonl"
        self.failed: set[str] = set()

    def script(self, name: str) -> Path:
        """Where a peer's script should be."""
        return self.clones / PEERS[name].clone / PEERS[name].script

    def log(self, name: str) -> Path:
        """Where what a contender says is kept."""
        return self.folder / f"peer-{name}.log"

    def runs_of(self, name: str) -> list[Run]:
        """The runs of all turns of a contender."""
        return [run for turn in self.turns if turn.name == name for run in turn.runs]

    def our_records(self) -> list[RunRecord]:
        """The runs in the results file of our recipe, diverged ones too; the next one has their number as its seed."""
        return load(self.results).runs if self.results.exists() else []

    def compare(self, names: list[str]) -> None:
        """Take turns until each contender has its runs, forward and backward; one that fails is left out from then."""
        for number in range(self.options.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                ours = name == self.options.recipe
                made = len(self.our_records() if ours else self.runs_of(name))
                missing = (number + 1) * self.options.runs - made
                if missing > 0 and name not in self.failed:
                    self.take_turn(name, self.our_process if ours else self.peer_process, missing, made)

    def take_turn(self, name: str, work: Callable[[Turn, int, int], None], runs: int, first: int) -> None:
        """Have a contender make some runs; what it has made is kept, also where it is interrupted."""
        turn, began = Turn(name, []), time.monotonic()
        try:
            work(turn, runs, first)
        finally:
            turn.process_s = time.monotonic() - began
            self.turns.append(turn)
            with open(self.kept, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(turn)) + "\n")
        if turn.exit_code or not turn.runs:
            self.failed.add(name)
            print(f"{name}: exit code {turn.exit_code} after {len(turn.runs)} runs; see {self.log(name)}", flush=True)

    def peer_process(self, turn: Turn, runs: int, first: int) -> None:
        """Run a peer's script, filling in the turn as it goes."""
        peer = PEERS[turn.name]
        environment = {**os.environ, "PYTHONPATH": str(self.clones / peer.clone)}
        began = time.monotonic()
        with open(self.log(turn.name), "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                peer.command(self.script(turn.name), self.work, first, runs),
                cwd=self.work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            with stopped_at_the_end(process):
                assert process.stdout is not None
                for found in peer.read(copied(process.stdout, log)):
                    if found is None:
                        turn.ready_s = time.monotonic() - began
                    else:
                        turn.runs.append(found)
                turn.exit_code = process.wait()

    def our_process(self, turn: Turn, runs: int, first: int) -> None:
        """Run our recipe, filling in the turn at the end."""
        options = self.options
        command = [sys.executable, "-m", "fastcifar", "bench", options.recipe, "--engine", options.engine, "--quiet"]
        command += ["--dataset", options.dataset, *(f"--set={each}" for each in options.settings)]
        command += ["--device", options.device] if options.device else []
        command += ["--seed", str(first), "--runs", str(runs), "--out", str(self.results)]
        try:
            with open(self.log(turn.name), "ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
                with stopped_at_the_end(process):
                    turn.exit_code = process.wait()
        finally:
            finished = [
                Run(run.accuracy, run.train_s, run.train_s - (run.eval_s or 0.0))
                for run in self.our_records()
                if run.accuracy is not None and run.train_s is not None
            ]
            turn.runs += finished[len(self.runs_of(turn.name)) :]


@contextmanager
def stopped_at_the_end(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a process with the block, in which it has ended by itself unless something went wrong."""
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def copied(lines: Iterable[str], log: TextIO) -> Iterator[str]:
    """The lines, each written down before it is passed on."""
    for line in lines:
        log.write(line)
        yield line


def make_data_files(dataset: str, folder: Path) -> None:
    """The peers' data files: images uint8 (N, 32, 32, 3), labels int64 (N,), names of the classes."""
    import torch

    from fastcifar.data.store import load_dataset

    folder.mkdir(parents=True, exist_ok=True)
    whole = load_dataset(dataset)
    for name, split in (("train", whole.train), ("test", whole.test)):
        images = split.images.permute(0, 2, 3, 1).contiguous()
        torch.save({"images": images, "labels": split.labels, "classes": list(whole.classes)}, folder / f"{name}.pt")


def load_turns(path: Path) -> list[Turn]:
    """The turns of earlier calls."""
    trees = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [Turn(**{**tree, "runs": [Run(**run) for run in tree["runs"]]}) for tree in trees]


def table(turns: list[Turn]) -> str:
    """What the turns say, as Markdown."""
    head = (
        "",
        "runs",
        "s with evaluation",
        "s without",
        "median",
        "accuracy",
        "outside the clock: first process, later",
    )
    rows = [head, ("---", *["---:"] * (len(head) - 1))]
    for name in dict.fromkeys(turn.name for turn in turns):
        own = [turn for turn in turns if turn.name == name]
        runs = [run for turn in own for run in turn.runs]
        both = [run.with_evaluation for run in runs], [run.without_evaluation for run in runs]
        seconds = [[each for each in column if each is not None] for column in both]
        outside = ", ".join(f"{turn.outside_s:.1f}" for turn in own)
        accuracy = mean([100 * run.accuracy for run in runs], "%", 2)
        middle = f"{median(seconds[0] or seconds[1]):.3f}" if runs else ""
        rows.append((name, str(len(runs)), *(mean(each, "", 3) for each in seconds), middle, accuracy, outside))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mean(values: list[float], unit: str, digits: int) -> str:
    """A mean with half the width of its 95 % interval; nothing for no values."""
    if not values:
        return ""
    found = estimate(values)
    half = f" ± {(found.ci95[1] - found.ci95[0]) / 2:.{digits}f}" if found.ci95 else ""
    return f"{found.mean:.{digits}f}{half} {unit}".rstrip()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="fast94")
    parser.add_argument("--engine", default="graph")
    parser.add_argument("--runs", type=int, default=5, help="of each in a turn")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--device")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    return parser.parse_args()


def main() -> int:
    """Compare what is here; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    options = parse()
    comparison = Comparison(options, home() / "peers", load_turns(options.folder / "peers.jsonl"))
    here = [name for name in PEERS if comparison.script(name).is_file()]
    for name in PEERS.keys() - set(here):
        print(f"{name}: skipped, {comparison.script(name)} is not there", flush=True)
    if not here:
        return 0
    make_data_files(options.dataset, comparison.work / "cifar10")
    try:
        comparison.compare([options.recipe, *here])
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        print(table(comparison.turns), flush=True)
    return 1 if comparison.failed else 0


if __name__ == "__main__":
    sys.exit(main())
