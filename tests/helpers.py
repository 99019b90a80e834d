"""What tests build and look at: small datasets in every packaging, finished processes, golden files."""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console, RenderableType

from fastcifar.data.cifar import Published
from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.store import load_dataset


@dataclass
class Finished:
    """What a process left: exit code and both outputs."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on standard output."""
        return json.loads(self.out)


# A run of the command line on the embedded images that takes a moment.
QUICK = ["--set", "network.widths=[8, 8, 8]", "--set", "training.epochs=0.1", "--set", "evaluation.views=none"]
TINY = ["train", "tiny", "--dataset", "shapes", *QUICK]

Cli = Callable[..., Finished]
Call = Callable[..., Finished]


@dataclass
class Official:
    """A small dataset in the official packaging, and the folder and archive that hold it."""

    folder: Path
    archive: Path
    facts: Published


def few_shapes(train: int, test: int) -> Dataset:
    """The first so many embedded images of each split."""
    whole = load_dataset("shapes")
    cut = [
        Split(part.images[:count], part.labels[:count]) for part, count in ((whole.train, train), (whole.test, test))
    ]
    return dataclasses.replace(whole, train=cut[0], test=cut[1])


def make_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 3, suffix: str = ".png") -> Path:
    """An image folder of random 32x32 images."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}_s_{i:06d}{suffix}")
    return root


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    """A gzipped tar archive with these members."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def drawn(renderable: RenderableType, width: int = 80) -> str:
    """What a terminal of that width shows, without colours."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def golden(name: str, text: str) -> None:
    """Compare a text with the golden file beside the test that calls, `golden/<name>`, ends of lines aside.

    After a change that is meant, `FASTCIFAR_UPDATE_GOLDEN=1 pytest ...` writes the files anew.
    """
    path = Path(sys._getframe(1).f_code.co_filename).parent / "golden" / name
    text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    if os.environ.get("FASTCIFAR_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8") if path.exists() else ""
    difference = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(path), "shown now", lineterm="")
    assert text == expected, "\n".join(difference)
