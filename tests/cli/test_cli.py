"""The command line: its outputs, its exit codes, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import Call, Cli, make_folder

from fastcifar.recipes import parse as recipe

QUICK = ["--set", "network.widths=[8, 8, 8]", "--set", "training.epochs=0.1", "--set", "evaluation.views=none"]
TINY = ["train", "tiny", "--dataset", "shapes", *QUICK]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on the embedded images."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    command = [sys.executable, "-m", "fastcifar", *TINY, "--out", str(folder), "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


# --------------------------------------------------------------------------------------------------- as it should be


def test_help_and_version(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    for name in ("download", "train", "eval", "recipes"):
        assert name in shown.out
        assert "Example: fastcifar" in cli(name, "--help").out
    assert cli().out == shown.out
    assert cli("--version").out.startswith("fastcifar ")


def test_help_does_not_wait_for_torch(cli: Cli) -> None:
    code = "import sys, fastcifar.cli.app; sys.exit(any(m in sys.modules for m in ('torch', 'rich', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_recipes_are_listed_and_printed(call: Call) -> None:
    listed = call("recipes", "--json")
    assert [item["name"] for item in json.loads(listed.out)] == recipe.recipe_names()
    assert "air94" in call("recipes").out
    printed = call("recipes", "air94", "--set", "training.epochs=4")
    Path("mine.toml").write_text(printed.out)
    assert tomllib.loads(printed.out)["training"]["epochs"] == 4.0
    mine = call("recipes", "mine.toml", "--json").document
    assert recipe.recipe_from_dict({**mine["recipe"], "name": "air94"}, "here") == recipe.load_recipe(
        "air94", *["training.epochs=4"]
    )
    assert mine["flops"] == pytest.approx(1.45e14, rel=0.1) and mine["optimizer_flops"] > 0


def test_an_import_and_a_removal(call: Call, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pets")
    done = call("download", "--from", folder, "--json")
    assert done.code == 0
    keys = ("dataset", "path", "images", "classes", "source", "verified", "command", "version", "torch", "device")
    assert set(done.document) >= set(keys)
    assert (done.document["dataset"], done.document["images"], done.document["verified"]) == ("pets", 12, False)
    assert "not a published dataset" in done.err
    assert call("download", "--dataset", "pets", "--remove").code == 0
    assert "nothing" in call("download", "--dataset", "pets", "--remove").out


def test_a_run_on_other_content_says_so(call: Call, tmp_path: Path) -> None:
    call("download", "--from", make_folder(tmp_path / "pets", count=30))
    arguments = [
        "train",
        "tiny",
        "--dataset",
        "pets",
        "--set",
        "training.batch_size=20",
        "--set",
        "network.widths=[8, 8, 8]",
    ]
    done = call(*arguments, "--out", "run")
    assert done.code == 0, done.err
    assert "not a published dataset" in done.out
    assert json.loads(Path("run/run.json").read_text())["published_dataset"] is False


def test_a_piped_run_reads_well_and_json_stands_alone(cli: Cli, tmp_path: Path) -> None:
    done = cli(*TINY)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "operations on" in lines[0] and lines[1].startswith("epoch 1, CPU time")
    assert any(line.startswith("accuracy") for line in lines)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("tiny-0-")
    document = cli(*TINY, "--json", "--out", "other")
    assert document.document["recipe"] == "tiny" and "operations on" in document.err
    quiet = cli(*TINY, "--quiet", "--out", "third")
    assert quiet.out.splitlines()[0].startswith("accuracy")


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trian"], 2, "train"),
        (["train", "--sed", "3"], 2, "--seed"),
        (["train", "air95"], 2, "did you mean 'air94'"),
        (["train", "tiny", "--dataset", "shapes", "--set", "training.epochs"], 2, "needs the form"),
        (["train", "tiny", "--dataset", "shapes", "--set", "training.epoch=3"], 2, "did you mean 'epochs'"),
        (["train", "tiny", "--dataset", "shapes", "--seed", "-1"], 2, "--seed -1"),
        (["train", "tiny", "--dataset", "shapes", "--seed", str(2**64)], 2, "must lie in"),
        (["train", "tiny", "--dataset", "shapes", "--target", "0.94"], 2, "in percent: 94 is meant"),
        (["train", "tiny", "--dataset", "shapes", "--target", "101"], 2, "between 1 and 100"),
        (["train", "tiny", "--dataset", "shapes", "--device", "gpu"], 2, "no device 'gpu'"),
        (["train", "tiny", "--dataset", "shapes", "--threads", "0"], 2, "--threads"),
        (["train", "--resume", "nowhere"], 3, "no interrupted run"),
        (["train", "--resume", __file__], 3, "no interrupted run"),
        (["train", "tiny", "--resume", "nowhere"], 2, "takes no recipe"),
        (["train", "tiny", "--dataset", "pets"], 3, "not on this machine"),
        (["train", "no.toml"], 2, "no recipe file"),
        (["recipes", "air94", "--set", "data.flip=3"], 2, "'data.flip' is 3"),
        (["eval", "nowhere.pt"], 3, "no file nowhere.pt"),
        (["download", "--dataset", "imagenet"], 2, "Only cifar10 and cifar100"),
        (["download", "--from", "nowhere"], 3, "no file or folder"),
        (["download", "--from", "x", "--url", "http://127.0.0.1:9/"], 2, "exclude each other"),
        (["download", "--url", "http://127.0.0.1:9/x"], 3, "cannot be reached"),
    ],
)
def test_wrong_calls(arguments: list[str], code: int, said: str, call: Call) -> None:
    plain = call(*arguments)
    assert (plain.code, plain.out) == (code, "")
    assert said in plain.err and "Traceback" not in plain.err
    assert len([line for line in plain.err.splitlines() if line.startswith("Error: ")]) == 1
    document = call(*arguments, "--json")
    assert document.document["exit_code"] == code == document.code
    assert said in document.document["error"]
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(call: Call) -> None:
    done = call(*TINY, "--device", "cuda")
    assert done.code == 4 and "There is no device 'cuda'" in done.err and "--device cpu" in done.err


def test_no_network_fails_within_seconds_and_falls_back_to_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from fastcifar.data import cifar as importing

    facts = dataclasses.replace(importing.published_facts("cifar10"), url="http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr(importing, "published_facts", lambda name: facts)
    begin = time.monotonic()
    done = call("train", "tiny")
    assert time.monotonic() - begin < 10
    assert done.code == 3
    for way in ("--from", "--url", "--dataset shapes"):
        assert way in done.err
    assert not Path("runs").exists()


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


class Bomb:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("boom",))


def damage(kind: str, good: bytes) -> bytes:
    if kind == "truncated":
        return good[: len(good) // 2]
    if kind == "empty":
        return b""
    if kind == "pickle":
        return pickle.dumps(Bomb())
    Path("made.pt").unlink(missing_ok=True)
    tree = torch.load(_kept(good), weights_only=True)
    if kind == "malicious":
        tree["x"] = Bomb()
    elif kind == "other network":
        tree["recipe"]["network"]["widths"] = [9, 9, 9]
    elif kind == "no recipe":
        tree["recipe"]["trainning"] = {}
    elif kind == "newer":
        tree["format"] = 99
    elif kind == "no dataset":
        del tree["dataset"]
    elif kind == "other kind":
        tree = {"hello": torch.zeros(2)}
    torch.save(tree, "made.pt")
    return Path("made.pt").read_bytes()


def _kept(content: bytes) -> str:
    Path("good.pt").write_bytes(content)
    return "good.pt"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "damaged"),
        ("empty", "damaged"),
        ("pickle", "nothing in it was run"),
        ("malicious", "nothing in it was run"),
        ("other network", "do not fit"),
        ("no recipe", "did you mean 'training'"),
        ("newer", "update fastcifar"),
        ("no dataset", "lacks 'dataset'"),
        ("other kind", "no checkpoint"),
    ],
)
def test_a_bad_checkpoint(kind: str, said: str, call: Call, trained: Path) -> None:
    Path("bad.pt").write_bytes(damage(kind, (trained / "checkpoint.pt").read_bytes()))
    done = call("eval", "bad.pt")
    assert done.code == 3 and said in done.err and "Traceback" not in done.err, done.err
    assert not Path("boom").exists()


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    script = f"{sys.executable} -m fastcifar recipes air94 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fastcifar", "recipes", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3 and "no space" in done.stderr and "Traceback" not in done.stderr


def test_an_output_that_is_closed() -> None:
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m fastcifar recipes >&-"], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_bug_shows_where_to_report_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "names", lambda: 1 / 0)
    done = call("recipes")
    assert done.code == 1 and "Traceback" in done.err and "please report it" in done.err
