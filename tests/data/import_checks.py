"""What several tests of imports use: an import that must be refused, and a pickle that must not be opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fastcifar.data.store import import_dataset
from fastcifar.errors import DataError


def nothing_left(home: Path) -> bool:
    """Whether a failure left no dataset and no unfinished file."""
    return not home.exists() or not [path for path in home.iterdir() if path.name.endswith((".pt", ".tmp"))]


def refuse(path: Path, message: str, home: Path, **arguments: Any) -> None:
    """Check that an import raises DataError with one sentence and leaves nothing behind."""
    with pytest.raises(DataError, match=message) as caught:
        import_dataset(path, **arguments)
    assert "\n" not in str(caught.value)
    assert nothing_left(home)


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))
