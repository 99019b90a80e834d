"""What `doctor` finds where something is wrong, with real folders, files, processes and limits, and what follows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import few_shapes

from fastcifar.data.dataset import Dataset
from fastcifar.data.store import dataset_path, save_dataset
from fastcifar.errors import DataError, FastcifarWarning
from fastcifar.profiling import findings as find
from fastcifar.profiling.diagnosis import REQUIRED, Findings, judge, look
from fastcifar.profiling.findings import Finding
from fastcifar.system import processors
from fastcifar.system.device import prepare_device

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says")


def fails(error: BaseException) -> Callable[[], Finding]:
    def check() -> Finding:
        raise error

    return check


# ------------------------------------------------------------------------------------------- what becomes a finding


def test_an_exception_is_a_finding() -> None:
    assert look(fails(DataError("It is gone; get it."))) == Finding("It is gone; get it.", "impossible")
    assert look(fails(RuntimeError("broken\nin many lines"))) == Finding("RuntimeError: broken", "impossible")
    assert look(fails(MemoryError())).text == "MemoryError: "
    with pytest.raises(KeyboardInterrupt):
        look(fails(KeyboardInterrupt()))


def test_a_warning_is_part_of_a_finding(recwarn: pytest.WarningsRecorder) -> None:
    def check(finding: Finding) -> Finding:
        for _ in range(2):
            warnings.warn("Nothing is kept.", FastcifarWarning, stacklevel=1)
        warnings.warn("a library's own", stacklevel=1)
        return finding

    assert look(lambda: check(Finding("done"))) == Finding("done", "warning", "Nothing is kept.")
    failed = look(lambda: check(Finding("failed", "impossible", "Try again.")))
    assert (failed.status, failed.advice) == ("impossible", "Try again. Nothing is kept.")
    assert not recwarn.list


# ------------------------------------------------------------------------------------------------------ the verdict


def healthy() -> Findings:
    """Findings of a machine on which all is well, but for what it need not have."""
    found: Findings = {group: {} for group, _ in REQUIRED}
    for group, label in REQUIRED:
        found[group][label] = Finding("fine")
    found["machine"]["device"] = Finding("cpu", values={"type": "cpu", "name": "a processor"})
    found["engines"] |= {"eager": Finding("fine"), "compiled": Finding("fine"), "graph": Finding("none", "impossible")}
    found["engines"]["auto"] = Finding("takes compiled", values={"engine": "compiled"})
    found["gpu"] = {"cuda": Finding("none", "impossible")}
    return found


def test_what_need_not_be_there_is_not_in_the_way() -> None:
    verdict = judge(healthy(), None)
    threads = torch.get_num_threads()
    assert verdict.status == "ok" and verdict.values == {"recipe": "quick90", "engine": "compiled", "threads": threads}
    assert verdict.text.startswith("fit: `fastcifar train` would run quick90 (the default here) with the compiled")
    assert "`fastcifar train --device cpu`" in judge(healthy(), "cpu").text


def test_a_gpu_has_another_default() -> None:
    found = healthy()
    found["machine"]["device"] = Finding("cuda:0", values={"type": "cuda", "name": "NVIDIA H100"})
    assert judge(found, None).text.endswith(
        "would run fast94 (the default here) with the compiled engine on NVIDIA H100."
    )


@pytest.mark.parametrize(("group", "label"), [*REQUIRED, ("engines", "compiled")])
def test_what_must_be_there_is(group: str, label: str) -> None:
    found = healthy()
    found[group][label] = replace(found[group][label], text="It is broken.", status="impossible", advice="Mend it.")
    verdict = judge(found, None)
    assert (verdict.status, verdict.advice) == ("impossible", "Mend it.")
    assert verdict.text == "not fit: `fastcifar train` would not run here: It is broken."


def test_warnings_are_counted() -> None:
    found = healthy()
    found["datasets"]["pets"] = found["gpu"]["others"] = Finding("careful", "warning")
    verdict = judge(found, None)
    assert (verdict.status, verdict.advice) == ("warning", "2 warnings above.")


# ------------------------------------------------------------------------------------- machine: folders, processors

# A user id that the system does not know; it may read everything, so that it finds Python wherever that is installed.
STRANGER = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
READER = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
CODE = """
import os, sys
from fastcifar.profiling import findings
from fastcifar.profiling.diagnosis import look
def say(check):
    finding = look(check)
    print(finding.status, finding.text, finding.advice, sep=" | ")
say(findings.home_folder)
say(findings.run_folder)
os.environ["FASTCIFAR_HOME"] = sys.argv[1]
say(findings.home_folder)
say(lambda: findings.dataset("cifar10"))
"""


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """A user without a home folder, in a folder that is another's, and that folder as FASTCIFAR_HOME."""
    locked = tmp_path / "locked"
    (locked / "tmp").mkdir(parents=True)
    (locked / "tmp").chmod(0o777)
    locked.chmod(0o755)
    variables = ("-u", "FASTCIFAR_HOME", "-u", "HOME", f"TMPDIR={locked / 'tmp'}")
    command = ["env", "-C", str(locked), *variables, *STRANGER, *READER]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot become another one")
    command += [sys.executable, "-c", CODE, str(locked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    none, runs, read_only, dataset = done.stdout.splitlines()
    assert none.startswith(f"warning | {locked}/tmp/fastcifar-54321, ") and "no home folder to write to" in none
    assert runs.startswith(f"impossible | {locked} cannot be written | Change to a folder of yours")
    assert read_only.startswith(f"warning | {locked} cannot be written: nothing is kept | Set FASTCIFAR_HOME")
    assert dataset.startswith("impossible | cifar10 is not here, and cannot be stored | Set FASTCIFAR_HOME")
    assert done.stderr == ""


def test_a_home_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_HOME", "/proc/nowhere")
    finding = look(find.home_folder)
    assert finding.status == "impossible" and "set FASTCIFAR_HOME" in finding.text


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(find, "ROOM", 2**70)
    finding = find.home_folder()
    assert finding.status == "warning" and "make room" in finding.advice and str(home) in finding.text


@LINUX
def test_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "START", processors.processor_times())  # watched from now on
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(1)
        finding = find.others_at_work()
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert finding.status == "warning" and finding.text.startswith("Others keep ") and "(python" in finding.advice


@LINUX
def test_own_work_is_not_named() -> None:
    def work() -> None:
        while not done:
            sum(range(1000))

    done: list[bool] = []
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    comm.write_text("checks-itself")
    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert "checks-itself" in [name for _, name, _ in processors.process_stats()]
        assert "checks-itself" not in processors.busiest_others(0.3)
    finally:
        done.append(True)
        worker.join()
        comm.write_text(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_threads_that_an_affinity_limits() -> None:
    before, machine = os.sched_getaffinity(0), os.cpu_count() or 1
    os.sched_setaffinity(0, {min(before)})
    try:
        prepare_device(CPU, None)
        said = find.threads().text
    finally:
        os.sched_setaffinity(0, before)
    assert machine == 1 or said == f"1 on {machine} processors, limited by affinity to 1 of {machine} processors"


def test_threads_that_the_environment_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_device(CPU, 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert find.threads().text == "1 on 4 processors, limited by OMP_NUM_THREADS=1"


# ---------------------------------------------------------------------------------------------------- GPU, compiler


def test_a_gpu_that_pytorch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA T4\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = find.no_gpu()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    assert finding.status == "warning" and finding.text.endswith(
        f"NVIDIA T4, which PyTorch cannot use: this torch is built for {built}"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides it" in find.no_gpu().text
    program.unlink()
    assert find.no_gpu() == Finding("PyTorch finds no CUDA device", "impossible")


@pytest.mark.gpu
def test_a_gpu_is_described() -> None:
    device = torch.device("cuda:0")
    assert find.gpu(0).values["memory"] > 2**30
    assert look(lambda: find.gpu_driver(device)).text and look(lambda: find.others_on_gpu(device)).text


def test_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "mine"
    compiler.write_text("#!/bin/sh\necho mine 1.2\necho more\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    assert find.compiler().text == "mine 1.2" and find.compiler().values["path"] == str(compiler)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = find.compiler()
    assert finding.status == "impossible" and "no C++ compiler" in finding.text and "Install g++" in finding.advice


# ------------------------------------------------------------------------------------------------ datasets, engines


def test_a_dataset_that_is_whole_and_one_that_is_not() -> None:
    few = few_shapes(40, 10)
    kept = save_dataset(Dataset.build("mine", few.classes, few.train, few.test, "drawn"))
    path = dataset_path("mine")
    assert find.dataset("mine").text == "40 train and 10 test images, whole"
    content = bytearray(path.read_bytes())
    at = content.index(kept.train.images[3].numpy().tobytes())
    del kept  # its memory is the file
    content[at] ^= 1
    path.unlink()
    path.write_bytes(bytes(content))
    damaged = look(lambda: find.dataset("mine"))
    assert damaged.status == "impossible" and "its content has changed: remove it with" in damaged.text
    path.write_bytes(content[:1000])
    assert "is damaged" in look(lambda: find.dataset("mine")).text


def test_the_embedded_dataset() -> None:
    assert find.dataset("shapes").text == "10,000 train and 2,000 test images, whole, embedded"


def test_a_dataset_that_is_not_here() -> None:
    finding = find.dataset("cifar10")
    assert finding.status == "warning" and "170 MB" in finding.text and "fastcifar download" in finding.advice


def test_an_engine_that_disagrees_is_not_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcifar.training.self_check import SelfCheck

    monkeypatch.setattr(find, "check_engine", lambda *_: SelfCheck("head.weight, step 3", 0.5, 0.01))
    finding = find.engine("eager", CPU)
    assert finding.status == "impossible" and "50 % off" in finding.text and "--engine eager" in finding.advice
