"""Many runs: their order, their file, what survives a kill, several processes, and what the report says."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call, Cli

from fastcifar.bench.plan import Plan, named, remaining
from fastcifar.bench.report import summarize
from fastcifar.bench.results import Results
from fastcifar.cli.display.bench import markdown, remarks
from fastcifar.cli.display.svg import scatter
from fastcifar.data.store import load_dataset
from fastcifar.errors import DataError, UsageError

QUICK = ["--set", "network.widths=[4, 4, 4]", "--set", "training.epochs=0.05", "--set", "evaluation.views=none"]
SMALL = ["--dataset", "shapes", "--threads", "1", *QUICK]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(name: str, seed: int, accuracy: float | None, train_s: float = 1.0, at: float | None = None) -> dict[str, Any]:
    diverged = accuracy is None
    line = {"name": name, "recipe": "tiny", "seed": seed, "diverged": diverged, "accuracy": accuracy}
    return {**line, "train_s": None if diverged else train_s, "at": float(seed) if at is None else at}


def plan(*arguments: str, runs: int = 4, settings: tuple[str, ...] = ()) -> Plan:
    return Plan(named(arguments, settings)[0], load_dataset("shapes"), torch.device("cpu"), range(runs))


# --------------------------------------------------------------------------------------------------------------- order


def test_recipes_take_turns_with_the_same_seeds() -> None:
    tasks = remaining(plan("tiny", "b=tiny", settings=("b:training.epochs=2",)), [])
    assert tasks == [
        (n, s) for s, order in enumerate(["tb", "bt", "tb", "bt"]) for n in map({"t": "tiny", "b": "b"}.get, order)
    ]


def test_what_is_done_is_not_done_again_and_seeds_stay_together() -> None:
    wanted = plan("tiny", "b=tiny", runs=5, settings=("b:training.epochs=2",))
    done = [run("tiny", 0, 0.5), run("b", 0, 0.5), run("b", 1, 0.5)]
    shares = [remaining(wanted, done, rank, 2) for rank in range(2)]
    everything = sorted(shares[0] + shares[1])
    assert everything == sorted([("tiny", 1), *((name, seed) for name in ("tiny", "b") for seed in (2, 3, 4))])
    assert {seed for _, seed in shares[0]} & {seed for _, seed in shares[1]} == set()


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["tiny", "tiny"], [], "'tiny' is there twice"),
        (["a=tiny", "b=tiny"], [], "the same recipe"),
        (["a=tiny", "b=tiny"], ["c:training.epochs=2"], "'c'"),
        (["a=tyni"], [], "did you mean 'tiny'"),
        (["a b=tiny"], [], "is no name"),
    ],
)
def test_names_that_cannot_be(arguments: list[str], settings: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        named(arguments, settings)


# ------------------------------------------------------------------------------------------------------------ the file

HEADER = {"version": "0", "code": "x", "device": "a CPU", "recipes": {"tiny": {"training": {"epochs": 1.0}}}}


def test_a_broken_tail_is_cut_and_a_broken_middle_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with Results(path, HEADER) as file:
        file.add(run("tiny", 0, 0.5))
        file.add(run("tiny", 1, 0.6))
    whole = path.read_bytes()
    for tail in (b'{"name": "ti', b"\x00\x00\n", b"{}trash\n"):
        path.write_bytes(whole + tail)
        with Results(path, HEADER) as file:
            assert [each["seed"] for each in file.runs] == [0, 1]
        assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'{"name"', b"{broken", 1))
    with pytest.raises(DataError, match="Line 2"), Results(path, HEADER):
        pass


def test_what_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with Results(path, HEADER):
        pass
    other = {**HEADER, "device": "another", "recipes": {"tiny": {"training": {"epochs": 2.0}}, "b": {}}}
    words = "device was a CPU, is another.*'b' is not in it.*'tiny' differs in training.epochs"
    with pytest.raises(UsageError, match=words), Results(path, other):
        pass
    path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(DataError, match="another version"), Results(path, HEADER):
        pass
    path.write_text("something else\n")
    with pytest.raises(DataError, match="no results file"), Results(path, HEADER):
        pass


def test_a_file_in_use_or_on_a_full_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with Results(path, HEADER), pytest.raises(DataError, match="open in another bench"):
        Results(path, HEADER).__enter__()
    with pytest.raises(DataError, match="no regular file"), Results(Path("/dev/full"), HEADER):
        pass
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Results(path, HEADER) as file:
        file.add(run("tiny", 0, 0.5))
        before = path.read_bytes()
        try:  # no file may grow beyond that: as good as a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
            with pytest.raises(DataError, match="cannot be written"):
                file.add(run("tiny", 1, 0.5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


# ----------------------------------------------------------------------------------------------------------- for real


def test_a_bench_is_run_reported_and_continued(call: Call, tmp_path: Path) -> None:
    bound = ["slow=tiny", "--set", "slow:optimizer.filters.lr=0.01"]
    done = call("bench", "tiny", *bound, *SMALL, "--runs", "2", "--out", "r.jsonl", "--target", "99", "--json")
    assert done.code == 5, done.err
    document = done.document
    assert {"command", "version", "torch", "device", "runs", "recipes", "comparisons"} <= set(document)
    assert [r["name"] for r in document["recipes"]] == ["tiny", "slow"]
    assert all({"mean", "std", "ci95"} <= set(r["accuracy"]) and r["p_target"] > 0.5 for r in document["recipes"])
    (compared,) = document["comparisons"]
    assert {"a", "b", "accuracy_difference", "accuracy_ci95", "accuracy_p", "time_ratio", "time_ci95"} <= set(compared)
    assert compared["verdict"] and compared["pairs"] == 2
    first = lines_of(tmp_path / "r.jsonl")
    assert [(r["name"], r["seed"]) for r in first[1:]] == [("tiny", 0), ("slow", 0), ("slow", 1), ("tiny", 1)]
    done = call("bench", "tiny", *bound, *SMALL, "--runs", "3", "--out", "r.jsonl")
    assert done.code == 0 and "seed 2" in done.out and "seed 1:" not in done.out
    assert lines_of(tmp_path / "r.jsonl")[: len(first)] == first
    other = call("bench", "tiny", *SMALL, "--runs", "3", "--out", "r.jsonl")
    assert other.code == 2 and "'slow' is missing" in other.err
    shown = call("bench", "--report", "r.jsonl", "--markdown", "--svg", "r.svg", "--target", "2")
    assert shown.code == 0 and "| slow | 3 |" in shown.out
    circles = ET.parse(tmp_path / "r.svg").getroot().findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 6 + 2
    twice = call("bench", "--report", "r.jsonl", "r.jsonl")
    assert twice.code == 2 and "in another file too" in twice.err


def test_a_seed_of_a_bench_is_the_run_of_train(call: Call, tmp_path: Path) -> None:
    assert call("bench", "tiny", *SMALL, "--runs", "1", "--seed", "3", "--out", "r.jsonl").code == 0
    alone = call("train", "tiny", *SMALL, "--seed", "3", "--json").document
    assert lines_of(tmp_path / "r.jsonl")[1]["accuracy"] == alone["accuracy"]


def test_a_recipe_that_diverges_is_counted_and_the_others_go_on(call: Call) -> None:
    wild = ["wild=tiny", "--set", "wild:optimizer.head.lr=1e30", "--set", "wild:optimizer.biases.lr=1e30"]
    done = call("bench", "tiny", *wild, *SMALL, "--set", "training.batch_size=100", "--runs", "2", "--json")
    assert done.code == 0, done.err
    tiny, found = done.document["recipes"]
    assert (tiny["runs"], tiny["diverged"]) == (2, 0) and (found["runs"], found["diverged"]) == (2, 2)
    assert found["accuracy"] is None and done.document["comparisons"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tiny", "--runs", "0"], 2, "--runs"),
        (["tiny", "tiny"], 2, "twice"),
        (["tiny", "--target", "0.94"], 2, "percent"),
        (["tiny", "--out", "/proc/nowhere/r.jsonl"], 3, "cannot be written"),
        (["--report", "missing.jsonl"], 3, "missing.jsonl"),
        (["tiny", "--device", "cuda:7"], 4, "cuda:7"),
    ],
)
def test_what_cannot_be_is_said(call: Call, arguments: list[str], code: int, words: str) -> None:
    extra = [] if "--report" in arguments or "--device" in arguments else ["--dataset", "shapes"]
    done = call("bench", *arguments, *extra)
    assert done.code == code and words in done.err and "Traceback" not in done.err


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcifar", "bench", *arguments]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **pipes)


def finished(path: Path) -> int:
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def test_killed_at_random_moments_every_seed_ends_up_once(tmp_path: Path) -> None:
    arguments = ["tiny", "b=tiny", "--set", "b:data.translate=0", *SMALL, "--runs", "4", "--out", "r.jsonl"]
    path, moments = tmp_path / "r.jsonl", random.Random(0)
    for kill in range(3):
        process, before = start(tmp_path, *arguments), finished(path)
        while finished(path) < before + 1 + kill % 2 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert finished(path) >= before + 1
    process = start(tmp_path, *arguments)
    process.communicate(timeout=300)
    assert process.returncode == 0
    made = [(line["name"], line["seed"]) for line in lines_of(path)[1:]]
    assert sorted(made) == sorted((name, seed) for name in ("tiny", "b") for seed in range(4))


def test_ctrl_c_shows_what_is_there(tmp_path: Path) -> None:
    process = start(tmp_path, "tiny", *SMALL, "--runs", "1000", "--out", "r.jsonl")
    while finished(tmp_path / "r.jsonl") < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "accuracy" in out and "goes on" in err and "Traceback" not in err
    assert finished(tmp_path / "r.jsonl") >= 2


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes)


def test_two_ranks_share_the_seeds_and_one_is_killed(tmp_path: Path) -> None:
    arguments = ["-m", "fastcifar", "bench", "tiny", *SMALL, "--runs", "8", "--out", "r.jsonl", "--json"]
    process = torchrun(tmp_path, "--max-restarts", "2", *arguments)
    second = tmp_path / "r.rank1.jsonl"
    while finished(second) < 1 and process.poll() is None:
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert sorted(r["seed"] for r in document["runs"]) == list(range(8))
    made = [line["seed"] for rank in range(2) for line in lines_of(tmp_path / f"r.rank{rank}.jsonl")[1:]]
    assert sorted(made) == list(range(8))


def test_ranks_with_different_arguments_are_refused(tmp_path: Path) -> None:
    quick = " ".join(f"'{word}'" for word in SMALL)
    script = f"{sys.executable} -m fastcifar bench tiny {quick} --runs $((2 + RANK)) --out r.jsonl"
    process = torchrun(tmp_path, "--no-python", "bash", "-c", script)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "Rank 1 was started with other arguments than rank 0" in err
    assert finished(tmp_path / "r.rank0.jsonl") == finished(tmp_path / "r.rank1.jsonl") == 0


def test_train_under_torchrun_says_what_to_use(cli: Cli) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    done = cli("train", "tiny", "--dataset", "shapes", **ranks)
    assert done.code == 2 and "fastcifar bench" in done.err
    done = cli("bench", "tiny", "--dataset", "shapes", **ranks)
    assert done.code == 2 and "--out" in done.err


# ----------------------------------------------------------------------------------------------------------- the report


def benched(difference: float, runs: int = 40, names: tuple[str, ...] = ("a", "b")) -> list[dict[str, Any]]:
    """Runs of recipes that differ by so much, in steps of one image in 10,000."""
    noise = random.Random(1)
    made = []
    for seed in range(runs):
        for i, name in enumerate(names):
            accuracy = round(0.94 + i * difference + noise.gauss(0, 0.0015), 4)
            made.append(run(name, seed, accuracy, (1 + 0.5 * i) * noise.uniform(0.98, 1.02), at=2.0 * seed + i))
    return made


def test_the_report_says_what_differs() -> None:
    found = summarize(benched(0.004), ["a", "b"], 94.2)
    (compared,) = found.comparisons
    assert "b is more accurate than a" in compared.verdict and "times as long" in compared.verdict
    assert compared.accuracy_p is not None and compared.accuracy_p < 1e-6
    assert found.missed == ["a"]
    assert found.recipes[0].p_target is not None and found.recipes[0].p_target > 0.99
    assert found.recipes[1].p_target is not None and found.recipes[1].p_target < 0.01
    alike = summarize(benched(0.0), ["a", "b"], None).comparisons[0].verdict
    assert "No difference in accuracy shown" in alike and "runs each" in alike


def test_until_clear_stops_where_it_is_clear() -> None:
    open_ = summarize(benched(0.004, 2), ["a", "b"], None, margin=0.1)
    assert not open_.clear and open_.comparisons[0].accuracy_ci95 is None
    told = summarize(benched(0.004, 40), ["a", "b"], None, margin=0.1)
    assert told.clear and told.comparisons[0].sequential and told.comparisons[0].accuracy_p is None
    three = summarize(benched(0.002, 12, ("a", "b", "c")), ["a", "b", "c"], None, margin=0.1)
    two = summarize(benched(0.002, 12, ("a", "b", "c")), ["a", "c"], None, margin=0.1)
    widths = [c.accuracy_ci95[1] - c.accuracy_ci95[0] for c in (three.comparisons[1], two.comparisons[0])]  # type: ignore[index]
    assert widths[0] > widths[1], "several comparisons share the level"


def test_a_bench_until_clear_makes_no_more_runs_than_needed(call: Call, tmp_path: Path) -> None:
    same = ["b=tiny", "--set", "b:evaluation.shifted_weight=0.4"]  # without views it changes nothing
    done = call("bench", "tiny", *same, *SMALL, "--runs", "30", "--until-clear", "--out", "r.jsonl", "--json")
    assert done.code == 0, done.err
    assert finished(tmp_path / "r.jsonl") == 2 * 5  # five equal pairs: as accurate
    assert "as accurate" in done.document["comparisons"][0]["verdict"]


def test_outliers_and_drift_are_named() -> None:
    made = [run("a", seed, 0.94, 9.0 if seed == 7 else 1 + 0.02 * seed, at=seed) for seed in range(30)]
    found = summarize(made, ["a"], None)
    text = " ".join(remarks(found))
    assert "seed 7" in text and "longer" in text


def test_views_and_picture_stand_few_runs() -> None:
    for made in ([], [run("a", 0, 0.94)], [run("a", 0, None)], [run("a", 0, 0.9), run("b", 0, 0.9)]):
        found = summarize(made, ["a", "b"], 94.0)
        json.dumps(found.document(), allow_nan=False)
        markdown(found)
        ET.fromstring(scatter(made, found))
