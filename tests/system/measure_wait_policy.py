"""How long a training takes alone and beside a job on all processors, by what waiting threads do. Not a test: minutes.

    python tests/system/measure_wait_policy.py [ROUNDS]

Half an epoch of `tiny` on `shapes`, in interleaved rounds: each policy alone, then beside as many busy loops as there
are processors. Prints train times in seconds, and each policy's ratio to the default alone (spinning), as medians with
minimum and maximum over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

POLICIES = {
    "default (spin)": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
TRAIN = "train tiny --dataset shapes --set training.epochs=0.5 --set evaluation.views=none --json --quiet"


def train_s(policy: dict[str, str], engine: str) -> float:
    """Train time of one run in a process of its own, seconds; `OMP_WAIT_POLICY=ACTIVE` stands for OpenMP's default,
    which fastcifar would otherwise replace."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment |= policy or {"KMP_BLOCKTIME": "200"}  # a policy of the user's own, which GNU OpenMP does not read
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fastcifar", *TRAIN.split(), "--engine", engine, "--out", f"{folder}/run"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return float(json.loads(done.stdout)["train_s"])


def beside_a_job(policy: dict[str, str], engine: str) -> float:
    """The same while every processor runs a busy loop of somebody else's."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        return train_s(policy, engine)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    """All rounds, then a table for each engine."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for engine in ("eager", "compiled"):
        alone: dict[str, list[float]] = {name: [] for name in POLICIES}
        beside: dict[str, list[float]] = {name: [] for name in POLICIES}
        for number in range(rounds):
            order = list(POLICIES) if number % 2 == 0 else list(reversed(POLICIES))
            for name in order:
                alone[name].append(train_s(POLICIES[name], engine))
                beside[name].append(beside_a_job(POLICIES[name], engine))
        reference = statistics.median(alone["default (spin)"])
        print(f"\n{engine} engine, {rounds} rounds: train time alone; beside a job; both over the default alone")
        for name in POLICIES:
            figures = [
                f"{statistics.median(times):6.2f} s ({min(times):.2f} to {max(times):.2f})"
                f" {statistics.median(times) / reference:5.2f}"
                for times in (alone[name], beside[name])
            ]
            print(f"{name:26}{figures[0]}    {figures[1]}", flush=True)


if __name__ == "__main__":
    main()
