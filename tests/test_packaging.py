"""What is installed: a wheel holds every file of the package. A kernel that is missing would only make steps slower."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Kinds of files that may come to stand in any folder of the package.
FURTHER = (
    "recipes/air94.md",
    "recipes/evidence/air94.jsonl",
    "recipes/evidence/air94.csv",
    "recipes/evidence/summary.json",
    "training/sgd.cpp",
)


def test_a_wheel_holds_every_file(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a file that is to be deleted is listed until the commit
            (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "checkout" / name)
    package = tmp_path / "checkout" / "fastcifar"
    for name in FURTHER:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).touch()
    expected = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}

    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheel"]
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheel").glob("fastcifar-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fastcifar/")}
    assert expected - held == set(), "files that are not in the wheel: see package-data in pyproject.toml"
    assert held - expected == set(), "files of the wheel that are not in the checkout"
