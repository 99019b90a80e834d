"""`fastcifar doctor` as it is called: whole documents, exit codes, the screen."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Call, Cli, drawn, golden

from fastcifar.cli.display.doctor import TITLES, diagnosis_from_document


def line(text: str, status: str = "ok", advice: str = "") -> dict[str, Any]:
    return {"status": status, "text": text, "advice": advice}


DOCUMENT: dict[str, Any] = {
    "command": "doctor",
    "fit": True,
    "machine": {
        "device": line("cpu: AMD EPYC, 2 threads"),
        "memory": line("1.5 GiB of 4.0 GiB free", "warning", "End other programs."),
    },
    "processor": {"threads": line("2 on 8 processors, limited by a CPU quota of 2 processors")},
    "gpu": {"cuda": line("PyTorch finds no CUDA device", "impossible")},
    "engines": {"compiled": line("steps of quick90 are 1.9 % off those of eager, rounding alone makes 1.8 %")},
    "roofline": {"ceilings": line("float32 matrix product 0.141 TFLOP/s, copy 27.3 GB/s, empty kernel 4.9 µs")},
    "datasets": {"my [bold]pets": line("40 train and 10 test images, whole")},
    "verdict": line("fit: `fastcifar train` would run quick90.", "warning", "1 warning above."),
}


def test_the_screen() -> None:
    golden("doctor.txt", drawn(diagnosis_from_document(DOCUMENT)))


def test_a_whole_checkup(call: Call) -> None:
    done = call("doctor", "--json", "--device", "cpu")
    document = done.document
    assert done.code == 0, document["verdict"]
    assert [each for each in done.err.splitlines() if each.startswith("checking")] == [
        f"checking {group} …" for group in ("kernels", "engines", "roofline", "datasets")
    ]
    assert {"command", "version", "torch", "device", "fit", "seconds", "verdict", *TITLES} == set(document)
    assert document["fit"] is True and document["command"] == "doctor"
    for group in TITLES:
        for finding in document[group].values():
            assert {"status", "text", "advice"} <= set(finding) and finding["text"]
    assert document["engines"]["eager"]["difference"] == 0 and document["engines"]["compiled"]["agrees"]
    assert document["engines"]["graph"]["status"] == "impossible" and document["roofline"]["ceilings"]["tflops"] > 0
    assert document["datasets"]["cifar10"]["status"] == "warning" and document["datasets"]["shapes"]["status"] == "ok"
    assert document["verdict"]["recipe"] == "quick90" and document["verdict"]["engine"] == "compiled"
    screen = drawn(diagnosis_from_document(document), 300)
    assert all(finding["text"] in screen for group in TITLES for finding in document[group].values())


def test_no_compiler_and_a_damaged_dataset(cli: Cli, home: Path, tmp_path: Path) -> None:
    (home / "native").unlink()
    (home / "cifar10.pt").write_bytes(b"no dataset")
    done = cli("doctor", "--json", "--quiet", "--device", "cpu", PATH=str(tmp_path))
    document = done.document
    assert (done.code, done.err, document["fit"]) == (4, "", False)
    assert "no C++ compiler" in document["kernels"]["built"]["text"]
    assert document["engines"]["compiled"]["status"] == "impossible" and document["engines"]["eager"]["agrees"]
    assert document["engines"]["auto"]["status"] == "warning" and document["engines"]["auto"]["engine"] == "eager"
    assert document["datasets"]["cifar10"]["status"] == "impossible"
    assert (
        "would not run here" in document["verdict"]["text"] and "cifar10.pt is damaged" in document["verdict"]["text"]
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here(call: Call) -> None:
    done = call("doctor", "--device", "cuda")
    assert done.code == 4 and done.err.splitlines() == ["checking kernels …", "checking datasets …"]
    assert "✗  device" in done.out and "Roofline" not in done.out
    assert "not fit: `fastcifar train --device cuda` would not run here: There is no device 'cuda'" in " ".join(
        done.out.split()
    )


def test_a_device_that_is_none(call: Call) -> None:
    done = call("doctor", "--device", "gpu", "--json")
    assert done.code == 2 and done.document["exit_code"] == 2 and "no device 'gpu'" in done.document["error"]


@pytest.mark.slow
def test_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "fastcifar", "doctor"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr is not None
    timer = threading.Timer(120, process.kill)
    timer.start()
    while not process.stderr.readline().startswith("checking engines"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    timer.cancel()
    assert (process.returncode, out) == (130, "") and err.splitlines()[-1] == "Interrupted."
