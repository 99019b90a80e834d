"""`fastcifar eval` with a checkpoint that is damaged, of something else, or malicious."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from helpers import Call


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
