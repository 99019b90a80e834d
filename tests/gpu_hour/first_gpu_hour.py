#!/usr/bin/env python3
"""The first hour on a machine with a GPU, in stages of less than ten minutes that each go on where they stopped.

    python tests/gpu_hour/first_gpu_hour.py STAGE FOLDER [--peers CLONES] [--data PATH]

| stage | what it does |
| --- | --- |
| data | imports CIFAR-10 from PATH, anything that `fastcifar download --from` reads; without --data nothing |
| check | names the machine, asks `fastcifar doctor`, runs the tests marked gpu |
| engines | eager against graph by turns, for three recipes |
| peers | published scripts by turns with our recipe (run_peers.py) |
| search | candidates.toml, on held-out training images |
| claim | 100 runs of the recipe against the target |
| all | these in order, as many as the time allows |

The same command again goes on. All results lie in FOLDER, a few megabytes: what a command said (NAME.txt), its results
file (NAME.jsonl), and which commands have ended and how (progress.json). A command that failed is not run again but
with --retry. Exit code: 0 all done, 75 more is to be done, 1 a command failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON, FASTCIFAR = [sys.executable], [sys.executable, "-m", "fastcifar"]
GRACE = 15.0  # seconds that an interrupted command has to write down what it has
TIMED_OUT, MORE_TO_DO, INTERRUPTED = 124, 75, 130
NO_SUCH_COMMAND, TARGET_MISSED = 2, 5  # exit codes of fastcifar; the second: done, but below --target
NO_PEERS = (
    "peers: skipped, for there is no folder of theirs: give --peers FOLDER with clones of github.com/"
    "KellerJordan/cifar10-airbench, hiverge/cifar10-speedrun and fulcrumresearch/cifar-10-speedrun, or some of them."
)


@dataclass(frozen=True)
class Command:
    """A command of a stage; `name` is that of its results. After `limit_s` seconds it is given up for good."""

    name: str
    arguments: list[str]
    good: tuple[int, ...] = (0,)
    limit_s: float = field(default=1e9)


def commands(stage: str, options: argparse.Namespace) -> Iterator[Command]:
    """What a stage runs, in order."""
    training = ["--dataset", options.dataset, *(f"--set={each}" for each in options.settings)]
    if options.device:
        training += ["--device", options.device]
    plain, fast = options.engines
    recipe = options.recipes[0]

    def results(name: str) -> list[str]:
        return ["--out", str(options.folder / f"{name}.jsonl"), "--quiet"]

    if stage == "data" and options.data:
        yield Command("data", [*FASTCIFAR, "download", "--from", str(options.data), "--dataset", options.dataset])
    elif stage == "check":
        if nvidia_smi := shutil.which("nvidia-smi"):
            facts = "name,memory.total,driver_version,clocks.max.sm,clocks.sm,power.limit"
            yield Command("machine", [nvidia_smi, f"--query-gpu={facts}", "--format=csv"])
        yield Command("versions", [*FASTCIFAR, "--version"])
        yield Command("doctor", [*FASTCIFAR, "doctor"], (0, NO_SUCH_COMMAND))
        pytest = [*PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        yield Command("gpu-tests", [*pytest, str(options.tests)], limit_s=300)
    elif stage == "engines":
        for each in options.recipes:
            turns = [f"{plain}={each}", f"{fast}={each}", "--engine", f"{plain}:{plain}", "--engine", f"{fast}:{fast}"]
            name = f"engines-{each}"
            yield Command(name, [*FASTCIFAR, "bench", *turns, "--runs", str(options.runs), *training, *results(name)])
    elif stage == "peers" and options.peers:
        how = ["--recipe", recipe, "--engine", fast, "--runs", str(options.runs), "--rounds", str(options.rounds)]
        yield Command(
            "peers", [*PYTHON, str(HERE / "run_peers.py"), str(options.peers), str(options.folder), *how, *training]
        )
    elif stage == "search":
        how = [recipe, str(options.candidates), "--minutes", str(options.search_minutes), "--engine", fast]
        yield Command("search", [*FASTCIFAR, "search", *how, *training, *results("search")])
    elif stage == "claim":
        how = [recipe, "--engine", fast, "--runs", str(options.claim_runs), "--seed", "5000"]
        target = ["--target", str(options.target)]
        yield Command("claim", [*FASTCIFAR, "bench", *how, *target, *training, *results("claim")], (0, TARGET_MISSED))


STAGES = ("data", "check", "engines", "peers", "search", "claim")


def run(command: Command, folder: Path, seconds: float) -> int | None:
    """Run a command for at most so many seconds; returns its exit code, None where the time was not enough.

    What it says lands in FOLDER/NAME.txt.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with open(folder / f"{command.name}.txt", "wb") as output:
        process = subprocess.Popen(
            command.arguments, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            return process.wait(min(seconds, command.limit_s))
        except subprocess.TimeoutExpired:
            return TIMED_OUT if command.limit_s <= seconds else None
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started; fastcifar keeps what is finished."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(GRACE - 5)
            except subprocess.TimeoutExpired:
                continue


class Progress:
    """Which commands have ended, in FOLDER/progress.json."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "progress.json"
        self.ended: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def record(self, command: Command, code: int, seconds: float) -> None:
        """Write down that a command has ended, so that it is not run again."""
        self.ended[command.name] = {"exit_code": code, "good": code in command.good, "seconds": round(seconds, 1)}
        written = self.path.with_suffix(".part")
        written.write_text(json.dumps(self.ended, indent=2) + "\n")
        written.replace(self.path)

    def is_done(self, command: Command, retry: bool) -> bool:
        """Whether there is nothing more to do for a command."""
        before = self.ended.get(command.name)
        return before is not None and (before["good"] or not retry)


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, flush=True)


def run_stage(stage: str, options: argparse.Namespace, progress: Progress, deadline: float) -> bool:
    """Run the commands of a stage that have not ended yet; returns whether all have."""
    if stage == "peers" and not options.peers:
        say(NO_PEERS)
    for command in commands(stage, options):
        if progress.is_done(command, options.retry):
            continue
        left = deadline - time.monotonic() - GRACE
        if left <= 0:
            return False
        say(f"== {stage}: {command.name}")
        began = time.monotonic()
        code = run(command, options.folder, left)
        said = (options.folder / f"{command.name}.txt").read_text(errors="replace").strip()
        say("\n".join(said.splitlines()[-options.lines :]))
        if code is None:
            return False
        progress.record(command, code, time.monotonic() - began)
        if command.name == "doctor" and code == NO_SUCH_COMMAND:
            say("doctor: this version of fastcifar has no such command.")
        elif code not in command.good:
            how = "was given up after its own limit" if code == TIMED_OUT else f"left with exit code {code}"
            say(f"{command.name} {how}; --retry runs it again.")
    return True


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("folder", type=Path, help="for the results; the same one for all stages")
    parser.add_argument("--minutes", type=float, default=9.5, help="of this call (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="files to import the dataset from")
    parser.add_argument("--peers", type=Path, help="folder of clones of the peers' repositories")
    parser.add_argument("--retry", action="store_true", help="run again what has failed")
    parser.add_argument(
        "--recipes", nargs="+", default=["fast94", "hive94", "air94"], help="the first is the claimed one"
    )
    parser.add_argument("--engines", nargs=2, default=["eager", "graph"], help="the second is the faster one")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--device")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="for every recipe; repeatable")
    parser.add_argument("--runs", type=int, default=5, help="in `engines` of each, in `peers` a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each in `peers`")
    parser.add_argument("--candidates", type=Path, default=HERE / "candidates.toml")
    parser.add_argument("--search-minutes", type=float, default=8.5)
    parser.add_argument("--claim-runs", type=int, default=100)
    parser.add_argument("--target", type=float, default=94.0)
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="where the tests marked gpu are")
    parser.add_argument("--lines", type=int, default=12, help="of what each command says that are shown")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run a stage, or all of them; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    options = parse(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    progress, deadline = Progress(options.folder), time.monotonic() + 60 * options.minutes
    for stage in STAGES if options.stage == "all" else (options.stage,):
        try:
            if not run_stage(stage, options, progress, deadline):
                say(f"{stage}: out of time; the same command goes on.")
                return MORE_TO_DO
        except KeyboardInterrupt:
            say(f"{stage}: interrupted; the same command goes on.")
            return INTERRUPTED
    failed = [name for name, how in progress.ended.items() if not how["good"]]
    say(f"done{', but these failed: ' + ', '.join(failed) if failed else ''}; results in {options.folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
