"""Shell completion, requested as bash does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcifar.cli.app import COMMANDS
from fastcifar.cli.completion import DATASETS, complete_dataset, complete_recipe, complete_setting
from fastcifar.data.dataset import EMBEDDED, PUBLISHED
from fastcifar.recipes.parse import recipe_keys, recipe_names

CODE = """
import sys
from fastcifar.cli.app import main
try:
    main()
finally:
    print("loaded:", *({"torch", "numpy", "rich"} & set(sys.modules)), file=sys.stderr)
"""


def complete(words: str, **environment: str) -> list[str]:
    """What bash is offered for the last of the words, by a process that loads no torch."""
    parts = words.split(" ")
    environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(parts) - 1), "_FASTCIFAR_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0 and done.stderr == "loaded:\n", done.stderr
    return done.stdout.split()


def test_commands_and_options() -> None:
    assert complete("fastcifar ") == list(COMMANDS)
    assert complete("fastcifar train --re") == ["--resume"]
    assert complete("fastcifar train --engine ") == ["eager", "compiled", "graph", "auto"]


def test_recipes() -> None:
    assert complete("fastcifar train ") == recipe_names()
    assert complete("fastcifar recipes hlb-") == ["hlb-3x3", "hlb-first", "hlb-nose"]


@pytest.mark.parametrize("command", ["profile hlb --vs", "bench tiny", "search"])
def test_recipes_of_other_commands(command: str) -> None:
    assert complete(f"fastcifar {command} air") == ["air94"]


def test_datasets(home: Path) -> None:
    (home / "pets.pt").write_bytes(b"")
    (home / ".pets.pt.1.tmp").write_bytes(b"")
    assert complete("fastcifar train tiny --dataset ") == ["cifar10", "cifar100", "pets", "shapes"]
    assert complete("fastcifar train tiny --dataset p") == ["pets"]


def test_keys_of_a_recipe() -> None:
    keys = [f"training.{key}=" for key in ("epochs", "batch_size", "label_smoothing", "precision")]
    for command in ("train tiny", "profile", "bench tiny", "search", "recipes tiny"):
        assert complete(f"fastcifar {command} --set training.") == keys


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert complete("fastcifar train --dataset s", FASTCIFAR_HOME=str(tmp_path / "file" / "home")) == ["shapes"]


def test_names_before_recipes_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("")
    Path("runs").mkdir()
    Path("runs/old.toml").write_text("")
    assert {"air94", "mine.toml"} <= set(complete_recipe("m")) and "runs/old.toml" in complete_recipe("runs/o")
    assert "slow=air94" in complete_recipe("slow=") and "slow=mine.toml" in complete_recipe("slow=m")
    assert complete_setting("slow:opt") == [f"slow:{key}=" for key in recipe_keys()]


def test_the_datasets_of_completion_are_those_there_are() -> None:
    assert set(DATASETS) == {*PUBLISHED, EMBEDDED} and set(DATASETS) <= set(complete_dataset(""))
