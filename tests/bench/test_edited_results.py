"""Results files, run folders and profiles that were edited by hand, or saved by editors on other systems."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import FIXTURES, header, run, write
from conftest import Call

from fastcifar.bench.results import ResultsFile, load
from fastcifar.bench.search import load_candidates
from fastcifar.errors import DataError
from fastcifar.recipes.parse import load_recipe

NAN, INFINITY = float("nan"), float("inf")
BROKEN: list[tuple[dict[str, Any], str]] = [
    *(({key: ...}, f"lacks '{key}'") for key in ("name", "recipe", "seed", "accuracy", "train_s")),
    *(({"train_s": value}, "'train_s' is") for value in ("4.2", NAN, INFINITY, -1, True, [1], {"s": 1}, 10**400)),
    *(({key: "1"}, f"'{key}' is '1'") for key in ("wall_s", "at", "eval_s", "epochs_s", "flops", "peak_memory")),
    *(({key: None}, f"'{key}' is None") for key in ("wall_s", "at")),
    *(({"accuracy": value}, "'accuracy' is") for value in (94.1, -0.1, NAN, "0.94", [0.9])),
    *(({"fraction": value}, "the fraction") for value in (0, 2, None, "x", NAN)),
    *(({"seed": value}, "'seed' is") for value in (-1, 1.0, True, None, "0")),
    ({"name": "tiny@x"}, "the fraction 'x'"),
    ({"name": "other"}, "'other' is not among those of the first line"),
    ({"name": 3}, "'name' is 3"),
    ({"accuracy": None}, "one of 'accuracy' and 'train_s' is null"),
    ({"accuracy": None, "train_s": None}, "'diverged' must be true where"),
    ({"diverged": True}, "'diverged' must be true where"),
    ({"error": 3}, "'error' is 3"),
]


def edited(line: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The line with other values; without the keys whose value is `...`."""
    return {key: value for key, value in {**line, **changes}.items() if value is not ...}


@pytest.mark.parametrize(("changes", "said"), BROKEN, ids=str)
def test_a_line_that_is_no_run_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", header("tiny"), [run("tiny", 0, 0.9), run("tiny", 1, 0.9)])
    first, second, third = path.read_text().splitlines()
    path.write_text("\n".join([first, "", json.dumps(edited(json.loads(second), changes)), third, ""]))
    with pytest.raises(DataError) as caught:
        load(path)
    assert f"Line 3 of {path} is broken" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "3", '{"name": ', "[" * 100_000, '"größer"'])
def test_a_line_that_is_no_object_is_named(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", header("tiny"), [run("tiny", 0, 0.9)])
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, text.encode("latin-1"), second, b""]))
    with pytest.raises(DataError, match=r"Line 2 of .*r\.jsonl is broken \(it is no JSON object in UTF-8\)"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({key: ...}, f"lacks '{key}'") for key in ("version", "code", "torch", "device", "threads", "engine")),
        *(({key: ...}, f"lacks '{key}'") for key in ("dataset", "recipes")),
        *(({key: []}, "wrongly nested") for key in ("engine", "dataset", "recipes")),
        ({"engine": {}}, "lacks 'tiny'"),
        ({"engine": {"tiny": 3}}, "'engine of 'tiny'' is 3"),
        ({"precision": {"other": "half"}}, "lacks 'tiny'"),
        ({"torch": 2.14}, "'torch' is 2.14"),
        ({"device": None}, "'device' is None"),
        ({"threads": "2"}, "'threads' is '2'"),
        ({"dataset": {"name": "cifar10"}}, "lacks 'digest'"),
        ({"dataset": {"name": 3, "digest": "d", "published": True}}, "'name of the dataset' is 3"),
        ({"recipes": {"tiny": 3}}, "The recipe in 'tiny' of"),
        ({"recipes": {"tiny": {"training": 3}}}, "'training' is a section"),
    ],
    ids=str,
)
def test_a_first_line_edited_wrongly_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", header("tiny"), [run("tiny", 0, 0.9)])
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(edited(json.loads(first), changes)), second, ""]))
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(path) in str(caught.value) and said in str(caught.value)


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "no last end of line": lambda text: text.rstrip("\n").encode(),
    "blank lines": lambda text: text.encode() + b"\n\n",
}


@pytest.mark.parametrize("form", ENCODINGS)
def test_results_are_read_and_added_to_as_editors_save_them(form: str, tmp_path: Path) -> None:
    runs = [run("tiny", 0, 0.5), run("tiny", 1, 0.6)]
    path = write(tmp_path / "r.jsonl", header("tiny"), runs)
    path.write_bytes(ENCODINGS[form](path.read_text()))
    before = path.read_bytes()
    assert load(path).runs == runs
    if "utf-16" in form:
        with pytest.raises(DataError, match="in UTF-16: save it as UTF-8"), ResultsFile(path, header("tiny")):
            pass
        assert path.read_bytes() == before
        return
    with ResultsFile(path, header("tiny")) as file:
        file.add(run("tiny", 2, 0.7))
    assert path.read_bytes().startswith(before.rstrip())
    assert load(path).runs == [*runs, run("tiny", 2, 0.7)]


@pytest.mark.parametrize("form", ["mark", "utf-16-le", "utf-16-be", "crlf"])
def test_recipes_candidates_and_run_folders_are_read_as_editors_save_them(
    form: str, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "mine.toml").write_bytes(ENCODINGS[form]('extends = "tiny"\nsummary = "größer"\n'))
    assert load_recipe(str(tmp_path / "mine.toml")).summary == "größer"
    (tmp_path / "some.toml").write_bytes(ENCODINGS[form]("[wide]\nnetwork.widths = [8, 8, 8]\n"))
    assert list(load_candidates(tmp_path / "some.toml", load_recipe("tiny"))) == ["base", "wide"]
    text = (FIXTURES / "format1" / "run" / "run.json").read_text()
    (tmp_path / "run.json").write_bytes(ENCODINGS[form](text))
    assert load(tmp_path) == load(tmp_path / "run.json") and load(tmp_path).runs[0].seed == 3
    done = call("report", str(tmp_path), "--json")
    assert done.code == 0 and json.loads(done.out) == json.loads(text)


def test_latin_1_is_to_be_saved_as_utf_8(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes('summary = "größer"\n'.encode("latin-1"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        load_recipe(str(tmp_path / "mine.toml"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        load_candidates(tmp_path / "mine.toml", load_recipe("tiny"))


@pytest.mark.parametrize("changes", [{"accuracy": "x"}, {"train_s": ...}, {"setup_s": None}, {"checkpoint": 3}])
def test_a_run_folder_edited_by_hand_is_no_bug(changes: dict[str, Any], tmp_path: Path, call: Call) -> None:
    document = json.loads((FIXTURES / "format1" / "run" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(edited(document, changes)))
    done = call("report", str(tmp_path))
    assert done.code == 3 and str(tmp_path) in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("document", [{}, {"step_ms": "x"}, {"comparison": 3}, {"comparison": {}}])
def test_a_profile_edited_by_hand_is_no_bug(document: dict[str, Any], tmp_path: Path, call: Call) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"command": "profile", **document}))
    done = call("report", str(tmp_path / "p.json"))
    assert done.code == 3 and "no whole document of `profile`" in done.err
