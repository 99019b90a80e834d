"""What the digest of the code covers: a changed step, kernel or clock, and no reworded text."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fastcifar.bench.code_digest import PACKAGE, code_digest, digest_package, sources


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the program."""
    copy = tmp_path / "fastcifar"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def edited(package: Path, path: str, old: str, new: str) -> str:
    """The digest after a change in one file, which is taken back."""
    file = package / path
    before = file.read_text()
    assert old in before, f"{path} has changed: adapt this test"
    file.write_text(before.replace(old, new))
    digest_package.cache_clear()
    try:
        return digest_package(package)
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("training/step.py", "def train_step", "# A comment.\n\n\ndef train_step"),
        ("cli/bench.py", "Runs of each recipe.", "How many."),
        ("bench/report.py", "POWER = 0.8", "POWER = 0.9"),
        ("recipes/tiny.toml", "batch_size", "batch_sizes"),
        ("version.py", "__version__ =", "__version__  ="),
    ],
)
def test_what_changes_no_result_leaves_it(package: Path, path: str, old: str, new: str) -> None:
    digest_package.cache_clear()
    assert edited(package, path, old, new) == code_digest()


def test_reworded_docstrings_leave_it(package: Path) -> None:
    file = package / "training" / "step.py"
    lines = file.read_text().splitlines(keepends=True)
    opening = [line.lstrip().startswith('"""') and line.strip() != '"""' for line in lines]
    assert sum(opening) > 10
    reworded = (
        line.replace('"""', '"""Well: ', 1) if opens else line for line, opens in zip(lines, opening, strict=True)
    )
    file.write_text("".join(reworded))
    digest_package.cache_clear()
    assert digest_package(package) == code_digest()


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("training/step.py", "label_smoothing", "label_smoothed"),
        ("training/optim.py", "momentum", "momentums"),
        ("system/timing.py", "/ 1000", "/ 1001"),
        ("model/kernels/convolution.cpp", "float", "double"),
        ("model/kernels/vectors.h", "float", "double"),
        ("recipes/schema.py", "0.2", "0.3"),
        ("data/shapes.py", "SIDE", "SIZE"),
    ],
)
def test_what_may_change_results_changes_it(package: Path, path: str, old: str, new: str) -> None:
    digest_package.cache_clear()
    assert edited(package, path, old, new) != code_digest()


def test_where_a_file_lies_counts(package: Path) -> None:
    (package / "training" / "step.py").rename(package / "training" / "steps.py")
    digest_package.cache_clear()
    assert digest_package(package) != code_digest()


def test_it_covers_every_file_of_its_folders_and_is_fast() -> None:
    names = {path.relative_to(PACKAGE).as_posix() for path in sources(PACKAGE)}
    assert {"training/run.py", "model/kernels/build.py", "model/kernels/convolution.cpp", "system/timing.py"} <= names
    assert not any(name.startswith(("cli", "bench", "profiling")) or name.endswith((".toml", ".md")) for name in names)
    digest_package.cache_clear()
    before = time.process_time()
    code_digest()
    assert time.process_time() - before < 1  # 0.2 s; every bench waits for it
