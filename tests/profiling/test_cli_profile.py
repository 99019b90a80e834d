"""The command `profile`."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import Call, Cli
from profiling_helpers import assert_adds_up

PROFILE = ["profile", "tiny", "--dataset", "shapes", "--batch", "8", "--steps", "2", "--threads", "1"]


def test_the_command_in_a_pipe(cli: Cli, tmp_path: Path) -> None:
    done = cli(*PROFILE, "--trace", "step.json", "--svg", "step.svg", COLUMNS="40")
    assert done.code == 0 and max(map(len, done.out.splitlines()[1:])) <= 40
    assert not {"USDT", "STAGE", "kineto"} & set(done.err.split()), "messages of PyTorch's recorder"
    assert all(line.startswith("Warning: Others keep") for line in done.err.splitlines())
    ET.parse(tmp_path / "step.svg")
    events = [e for e in json.loads((tmp_path / "step.json").read_text())["traceEvents"] if e["ph"] == "X"]
    named = [e for e in events if "layer" in e.get("args", {})]
    assert {e["args"]["phase"] for e in named} == {"forward", "loss", "backward"}
    by_thread = defaultdict(list)
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        if event.get("cat") in ("cpu_op", "user_annotation"):
            stack = by_thread[event["tid"]]
            while stack and stack[-1] <= event["ts"] + 0.01:
                stack.pop()
            assert not stack or event["ts"] + event["dur"] <= stack[-1] + 0.01, "slices must nest"
            stack.append(event["ts"] + event["dur"])


def test_the_document_of_one_recipe(call: Call) -> None:
    document = call(*PROFILE, "--json").document
    assert {"command", "version", "torch", "device", "recipe", "batch", "steps", "engine", "roofline"} <= set(document)
    assert document["batch"] == 8 and document["steps"] == 2
    assert document["recipe"] == "tiny" and document["dataset"] == "shapes"
    assert_adds_up(document)


def test_the_document_of_two_recipes(call: Call) -> None:
    overrides = ["--set", "b:network.whiten.kernel=3", "--set", "network.widths=[8, 8, 8]"]
    document = call(*PROFILE, "--vs", "tiny", *overrides, "--engine", "b:compiled", "--json").document
    for side in ("a", "b"):
        assert_adds_up(document[side])
    assert [document[side]["engine"] for side in ("a", "b")] == ["eager", "compiled"]
    outputs = [next(x["output"] for x in document[side]["layers"] if x["name"] == "whiten") for side in ("a", "b")]
    assert outputs == [[8, 24, 31, 31], [8, 54, 30, 30]]
    comparison = document["comparison"]
    assert comparison["ci95"][0] <= comparison["step_ratio"] <= comparison["ci95"][1]
    whiten = next(layer for layer in comparison["layers"] if layer["name"] == "whiten")
    assert whiten["difference_ms"] == pytest.approx(whiten["b_ms"] - whiten["a_ms"])


def test_a_whole_run_is_shown_with_its_kinds(call: Call) -> None:
    run = ["--set", "training.epochs=2", "--set", "data.resolution=[[0, 16], [0.5, 16], [0.5, 32]]"]
    done = call(*PROFILE, *run, "--whole-run", "--by", "phase")
    assert done.code == 0 and "kinds; the mean step of a run" in " ".join(done.out.split())


def test_a_checkpoint_is_profiled(call: Call) -> None:
    quick = ["--set", "network.widths=[8, 8, 8]", "--set", "training.epochs=0.05", "--set", "evaluation.views=none"]
    assert call("train", "tiny", "--dataset", "shapes", *quick, "--out", "run", "--quiet").code == 0
    document = call("profile", "--checkpoint", "run", "--batch", "8", "--steps", "2", "--json").document
    assert document["recipe"] == "tiny"
    assert next(x for x in document["layers"] if x["name"] == "group1.conv2")["output"] == [8, 8, 15, 15]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--by", "layers"], 2, "'layer'"),
        (["--sort", "totl"], 2, "'total'"),
        (["--vs", "tyni"], 2, "did you mean 'tiny'"),
        (["--vs", "tiny", "--set", "c:training.epochs=3"], 2, "'c'"),
        (["--vs", "tiny", "--svg", "x.svg"], 2, "--vs"),
        (["--steps", "1"], 2, "--steps"),
        (["--batch", "0"], 2, "--batch"),
        (["--engine", "grap"], 2, "did you mean 'graph'"),
        (["--engine", "graph"], 4, "CUDA"),
        (["--engine", "b:compiled"], 2, "--engine 'b:compiled' is for 'b', which is not here"),
        (["--device", "cuda:9"], 4, "cuda:9"),
        (["--dataset", "nowhere"], 3, "nowhere"),
        (["--svg", "no/such/folder/x.svg"], 3, "x.svg"),
        (["--trace", "/dev/full"], 3, "/dev/full"),
        (["--checkpoint", "run"], 2, "--checkpoint"),
    ],
)
def test_an_error_says_what_is_wrong(call: Call, arguments: list[str], code: int, words: str) -> None:
    done = call("profile", "tiny", *([] if "--dataset" in arguments else ["--dataset", "shapes"]), *arguments)
    assert done.code == code and words in done.err and "Traceback" not in done.err
    lines = [line for line in done.err.strip().splitlines() if not line.startswith("Warning: Others keep")]
    assert len(lines) == 1


def test_out_of_memory_names_a_batch_that_fits(tmp_path: Path) -> None:
    """With a real limit on the memory of a real process."""
    limited = (
        "import resource, sys; from fastcifar.cli import app; import torch; from fastcifar.profiling import plan;"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096;"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 1000 * 2**20,) * 2);"
        "sys.argv = ['fastcifar', *sys.argv[1:]]; app.main()"
    )
    arguments = ["profile", "tiny", "--dataset", "shapes", "--batch", "6000", "--threads", "1"]
    command = [sys.executable, "-c", limited, *arguments, "--set", "network.widths=[4, 4, 4]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 4, done.stderr
    assert "Out of memory on cpu with 6000 images a step" in done.stderr and "--batch " in done.stderr
    assert int(done.stderr.split("--batch ")[1].split()[0]) in (3000, 1500, 750, 375)
