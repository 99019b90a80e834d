"""The command line as a whole: help, exit codes, JSON errors, and outputs that cannot be written."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from helpers import TINY, Call, Cli

from fastcifar import errors
from fastcifar.cli import app
from fastcifar.recipes import parse


def test_help_and_version(cli: Cli, call: Call) -> None:
    shown = cli("--help")
    assert shown.code == 0
    for name in app.COMMANDS:
        assert f"\n  {name} " in shown.out
        assert "Example: fastcifar" in call(name, "--help").out
    assert call().out == shown.out
    assert call("--version").out.startswith("fastcifar ")


def test_help_lists_options_in_groups(call: Call) -> None:
    lines = call("train", "--help").out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Options:", "Machine:", "Output:"]
    groups = {
        option: max((lines.index(heading), heading) for heading in headings if lines.index(heading) < number)[1]
        for number, line in enumerate(lines)
        for option in ("--seed", "--threads", "--json")
        if line.lstrip().startswith(option)
    }
    assert groups == {"--seed": "Options:", "--threads": "Machine:", "--json": "Output:"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["doctor", "--help"], ["recipes"], ["train", "--sed"]]
)
def test_what_must_start_at_once_does_not_load_torch(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["fastcifar", *{arguments}]
from fastcifar.cli.app import main
try:
    main()
finally:
    print("loaded:", *({{"torch", "numpy", "PIL"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.UsageError("wrong"), 2, "wrong"),
        (errors.DataError("gone"), 3, "gone"),
        (errors.Diverged("nan"), 4, "nan"),
        (errors.Interrupted("kept"), 130, "kept"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (BrokenPipeError(), 0, ""),
        (OSError(errno.ENOSPC, "full"), 3, "no space"),
        (typer.BadParameter("not a number"), 2, "not a number. See `fastcifar --help`."),
        (OSError(errno.EIO, "odd"), 1, "please report it"),
        (KeyError("x"), 1, "please report it"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back where `explain` gives it up
    exit_code, message = app.explain(error)
    assert exit_code == code and said in message and bool(message) == bool(said)
    assert (type(error).__name__ in capsys.readouterr().err) == (code == errors.BUG), "a traceback for a bug only"


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
        (["download", "--url", "http://127.0.0.1:9/x", "--quiet"], 3, "cannot be reached"),
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


@pytest.mark.parametrize("arguments", ["recipes", "recipes --json", "--help"])
def test_a_reader_that_leaves_is_no_error(arguments: str, tmp_path: Path) -> None:
    script = f"{sys.executable} -m fastcifar {arguments} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


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
    monkeypatch.setattr(parse, "recipe_names", lambda: 1 / 0)
    done = call("recipes")
    assert done.code == 1 and "ZeroDivisionError" in done.err and "please report it" in done.err
