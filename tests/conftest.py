"""What tests share: a home of their own, the command line as a process and in this one, small datasets."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run side by side; PyTorch reads it when it is imported

import numpy as np
import pytest
import torch
from helpers import TINY, Call, Cli, Finished, Official, few_shapes, make_folder, tar_of

from fastcifar.cli.app import main
from fastcifar.data import cifar as importing
from fastcifar.data import store as data

__all__ = ["Call", "Cli", "Official", "few_shapes", "make_folder", "tar_of"]  # tests import them from here

# Shells start background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C would hang.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):  # children inherit what the parent ignores (nohup)
    signal.signal(number, signal.SIG_DFL)

SHARED = Path(os.environ.get("FASTCIFAR_SHARED", Path(__file__).resolve().parents[2] / "shared" / "cifar10"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests that need a GPU and did not run, so that nobody forgets them."""
    skipped = sum("gpu" in report.keywords for report in terminalreporter.stats.get("skipped", ()))
    if skipped:
        terminalreporter.write_line(f"{skipped} GPU tests were skipped: there is no CUDA device.")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests but those of the compile cache keep their kernels: compiling takes seconds."""
    folder = tmp_path_factory.mktemp("native")
    folder.chmod(0o700)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Path) -> Path:
    """A FASTCIFAR_HOME with no dataset in it."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    (folder / "native").symlink_to(compiled)
    monkeypatch.setenv("FASTCIFAR_HOME", str(folder))
    return folder


@pytest.fixture
def no_home(home: Path) -> Path:
    """A FASTCIFAR_HOME that does not exist yet."""
    (home / "native").unlink()
    home.rmdir()
    return home


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `fastcifar` as a process of its own in an empty folder, its output in pipes."""

    def run(*arguments: str | Path, **environment: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "fastcifar", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            timeout=300,
        )
        assert "\x1b" not in done.stdout + done.stderr, "control codes in a pipe"
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


def leave_main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command line in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["fastcifar", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Finished:
        capfd.readouterr()
        code = leave_main(monkeypatch, *arguments)
        out, err = capfd.readouterr()
        return Finished(code, out, err)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, compiled: Path) -> Path:
    """The folder of a short run on the embedded images."""
    root = tmp_path_factory.mktemp("trained")
    (root / "native").symlink_to(compiled)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FASTCIFAR_HOME", str(root))
        assert leave_main(monkeypatch, *TINY, "--out", root / "run", "--quiet") == 0
    return root / "run"


@pytest.fixture(scope="session")
def cifar10_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds the real CIFAR-10, imported once from an image folder."""
    if not SHARED.is_dir():
        pytest.skip(f"the real images are not here ({SHARED})")
    root = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, SHARED / "unpack.py", root / "png"], check=True, capture_output=True)
    environment = {**os.environ, "FASTCIFAR_HOME": str(root / "home")}
    command = [sys.executable, "-m", "fastcifar", "download", "--from", str(root / "png"), "--quiet"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return root / "home"


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets")


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Official]:
    """Two training batches and a test batch of random images, with their checksums in torchvision's place."""
    random = np.random.default_rng(1)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums: dict[str, str] = {}

    def put(name: str, tree: dict[str, Any]) -> None:
        content = pickle.dumps(tree)
        (folder / name).write_bytes(content)
        sums[name] = md5(content).hexdigest()

    for batch in ("data_batch_1", "data_batch_2", "test_batch"):
        labels = random.integers(0, 3, 20).tolist()
        names = [
            f"kind{label}_s_{number:06d}.png" for label, number in zip(labels, random.permutation(10**6), strict=False)
        ]
        put(batch, {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": labels, "filenames": names})
    put("batches.meta", {"label_names": ["kind0", "kind1", "kind2"]})
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    facts = importing.Published(
        url="http://127.0.0.1:9/cifar-10-python.tar.gz",
        folder=folder.name,
        archive=archive.name,
        archive_md5=md5(archive.read_bytes()).hexdigest(),
        train={name: sums[name] for name in ("data_batch_1", "data_batch_2")},
        test={"test_batch": sums["test_batch"]},
        meta={"batches.meta": sums["batches.meta"]},
        classes_key="label_names",
        labels_key="labels",
    )
    monkeypatch.setattr(importing, "published_facts", lambda name: facts)
    monkeypatch.setattr(data, "HASHES", {})
    yield Official(folder, archive, facts)
