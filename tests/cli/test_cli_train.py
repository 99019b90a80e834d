"""`fastcifar train`: its output, its run folder, and what can be wrong with either."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from helpers import QUICK, TINY, Call, Cli, few_shapes, make_folder

from fastcifar.data.store import save_dataset


def test_a_piped_run_is_plain_lines(cli: Cli, tmp_path: Path) -> None:
    done = cli(*TINY)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "FLOPs on" in lines[0] and lines[1].startswith("epoch 1, CPU time")
    assert any(line.startswith("accuracy") for line in lines)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("tiny-0-")


def test_json_and_quiet(call: Call) -> None:
    document = call(*TINY, "--json")
    assert document.document["recipe"] == "tiny" and "FLOPs on" in document.err
    quiet = call(*TINY, "--quiet", "--out", "quiet")
    assert quiet.out.splitlines()[0].startswith("accuracy")


def test_a_run_on_other_content_says_so(call: Call, tmp_path: Path) -> None:
    call("download", "--from", make_folder(tmp_path / "pets", count=30))
    settings = ("--set", "training.batch_size=20", "--set", "network.widths=[8, 8, 8]")
    done = call("train", "tiny", "--dataset", "pets", *settings, "--out", "run")
    assert done.code == 0, done.err
    assert "not a published dataset" in done.out
    assert json.loads(Path("run/run.json").read_text())["published_dataset"] is False


@pytest.mark.parametrize(("dataset", "recipe"), [("cifar10", "quick90"), ("cifar100", "quick100")])
def test_the_default_recipe_is_that_of_the_dataset(dataset: str, recipe: str, call: Call) -> None:
    save_dataset(dataclasses.replace(few_shapes(60, 20), name=dataset))
    settings = [*QUICK, "--set", "training.batch_size=20"]
    done = call("train", "--dataset", dataset, *settings, "--device", "cpu", "--out", "run", "--json")
    assert done.code == 0 and done.document["recipe"] == recipe, done.err
    profiled = call("profile", "--dataset", dataset, *settings, "--device", "cpu", "--steps", "2", "--json")
    assert profiled.code == 0 and profiled.document["recipe"] == recipe, profiled.err
    assert call(*TINY[:2], "--dataset", dataset, *settings, "--out", "tiny", "--json").document["recipe"] == "tiny"


def test_a_recipe_that_does_not_parse(call: Call) -> None:
    Path("broken.toml").write_text("[training\nepochs = 3")
    done = call("train", "broken.toml", "--dataset", "shapes")
    assert done.code == 2 and "not valid TOML" in done.err


def test_an_existing_run_is_not_written_over(call: Call, trained: Path) -> None:
    before = (trained / "checkpoint.pt").read_bytes()
    done = call(*TINY, "--out", trained)
    assert done.code == 2 and "--force" in done.err
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_force_writes_over_it(call: Call) -> None:
    assert call(*TINY, "--out", "run", "--quiet").code == 0
    assert call(*TINY, "--out", "run", "--quiet", "--force", "--seed", "1").code == 0
    assert json.loads(Path("run/run.json").read_text())["seed"] == 1


def test_a_run_folder_that_cannot_be_made(call: Call) -> None:
    Path("file").write_text("")
    done = call(*TINY, "--out", "file/run")
    assert done.code == 3 and "cannot be written" in done.err


def test_a_run_that_fails_leaves_no_folder(call: Call) -> None:
    done = call(*TINY, "--out", "run", "--set", "optimizer.head.lr=1e30", "--set", "optimizer.filters.lr=1e30")
    assert done.code == 4 and "loss is not finite" in done.err and not Path("run").exists()


def test_a_finished_run_cannot_be_resumed(call: Call, trained: Path) -> None:
    done = call("train", "--resume", trained)
    assert done.code == 3 and "is finished" in done.err


def test_a_full_disk_is_told(call: Call, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        done = call(*TINY, "--out", small / "run")
        assert done.code == 3 and "cannot be written" in done.err and "Traceback" not in done.err
        assert not [path for path in (small / "run").iterdir() if path.name.endswith((".tmp", ".pt"))]
    finally:
        subprocess.run(["umount", small], check=True)
