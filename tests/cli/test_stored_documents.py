"""Stored documents: whatever is wrong with one is said where it is read, and what goes wrong later is a bug."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Call
from page_checks import Parsed, check_page
from rich.console import Console

from fastcifar.cli.display import profile_page as pages
from fastcifar.cli.display.icicle import icicle
from fastcifar.cli.display.profile import report_from_document
from fastcifar.cli.display.profile_page import profile_page
from fastcifar.cli.display.run_page import run_page
from fastcifar.cli.display.screen import json_text
from fastcifar.cli.display.training import summary_from_document
from fastcifar.cli.report import stored_document
from fastcifar.errors import DataError

EARLIER = Path(__file__).parents[1] / "bench" / "fixtures" / "format1"
NAN, INFINITY = float("nan"), float("inf")
GONE: Any = object()  # in place of a value: the key is removed
OTHERS = (GONE, None, "x", -1, 0, 1e300, NAN, [], {})


def profile() -> dict[str, Any]:
    """A profile of the earlier version, but for most of its layers, with items and figures as this version has."""
    document: dict[str, Any] = json.loads((EARLIER / "profile.json").read_text())
    document |= {key: document[key][:3] for key in ("layers", "kernels", "ops")}
    document["layers"][0] |= dict.fromkeys(("forward_flops", "forward_bytes", "activation_bytes"), 10)
    document["items"] = [
        {"phase": "forward", "layer": "whiten", "kernel": "k", "op": "o", "ms": 1.0, "std": 0.1, "count": 2.0},
        {"phase": None, "layer": None, "kernel": "k", "op": "o", "ms": 1.0, "std": 0.1, "count": 2.0},
    ]
    return document | {"peak_memory": 10, "held_memory": 5, "activation_bytes": 3}


def comparison() -> dict[str, Any]:
    """A comparison of it with itself."""
    side = profile()
    layer = {"name": "whiten", "a_ms": 1.0, "b_ms": 2.0, "difference_ms": 1.0, "ci95": [0.5, 1.5], "ratio": 2.0}
    compared = {"step_ratio": 1.0, "ci95": [0.9, 1.1], "layers": [layer, {**layer, "a_ms": None, "ratio": None}]}
    return {**side, "a": side, "b": side, "comparison": compared}


def training() -> dict[str, Any]:
    """A run of the earlier version on images that are not here."""
    document: dict[str, Any] = json.loads((EARLIER / "run" / "run.json").read_text())
    return document | {"dataset": "gone", "at": 1.8e9, "other_load": 0.1, "dataset_digest": "d"}


def leaves(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values of a tree stand; of a list those of the first two items."""
    if path:
        yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree[:2]):
            yield from leaves(value, (*path, i))


def changed(document: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The document with another value at one place."""
    document = copy.deepcopy(document)
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return document


def show_profile(document: dict[str, Any], path: Path) -> None:
    """All that is made of a profile."""
    console = Console(file=io.StringIO(), width=140)
    for by in ("layer", "kernel"):
        console.print(report_from_document(document, 140, by))
    profile_page(document)
    if "comparison" not in document:
        icicle(document)


def show_training(document: dict[str, Any], path: Path) -> None:
    """All that is made of a run."""
    Console(file=io.StringIO()).print(summary_from_document(document))
    run_page(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "show"), [(profile, show_profile), (comparison, show_profile), (training, show_training)]
)
def test_a_document_with_any_wrong_value_is_refused_or_shown(
    make: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any], Path], None], tmp_path: Path
) -> None:
    document, path = make(), tmp_path / "d.json"
    skipped = ("b", "settings", "layer_times_ms", "step_times_ms", "command")
    if "comparison" in document:
        skipped = (*skipped, *profile())  # tried without --vs
    refused = 0
    for place in leaves({key: value for key, value in document.items() if key not in skipped}):
        for value in OTHERS:
            other = changed(document, place, value)
            path.write_text(json.dumps(other))
            try:
                stored = stored_document(path)
            except DataError as error:
                refused += 1
                assert str(path) in str(error)
            else:
                assert stored is not None
                show(stored, path)
    assert refused > 100


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    for change, words in (
        ({"step_ms": NAN}, "'step_ms' is nan, but must be a number of 0 to 1e+18"),
        ({"step_ms": True}, "'step_ms' is True"),
        ({"phases": {"data": 1}}, "it lacks 'phases.forward'"),
        ({"layers": []}, "'layers' is \\[\\], but must be a list that is not empty"),
        ({"layers": [{"name": "a"}]}, "it lacks 'layers\\[0\\].kind'"),
        ({"roofline": 3}, "'roofline' is 3, but must be a table"),
        ({"peak_memory": "x"}, "'peak_memory' is 'x', but must be a number of 0 to 1e\\+18 or null"),
        ({"a": {}, "comparison": {}}, "it lacks 'a.recipe'"),
    ):
        path.write_text(json.dumps({**profile(), **change}))
        with pytest.raises(DataError, match=words.replace("1e+18", "1e\\+18")):
            stored_document(path)


def test_a_bug_in_a_page_is_no_damaged_document(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(document: Any) -> Any:
        return document["nothing"]

    monkeypatch.setattr(pages, "bars_part", broken)
    done = call("report", EARLIER / "profile.json", "--html", tmp_path / "page.html")
    assert done.code == 1 and "TypeError: list indices" in done.err and "whole document" not in done.err


def diverged() -> dict[str, Any]:
    """A run whose loss is no number in its second epoch, and infinite in its third."""
    document = training()
    first = document["epochs"][0]
    losses = {2: NAN, 3: INFINITY}
    document["epochs"] += [{**first, "epoch": epoch, "train_loss": loss} for epoch, loss in losses.items()]
    return document


def test_a_run_that_diverged_is_shown_as_such(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(diverged()))
    done = call("report", tmp_path, "--html", "page.html", "--json")
    assert done.code == 0, done.err
    page = check_page(Path("page.html").read_text())
    assert "The training diverged: its loss is not finite in epoch 2" in page.text("h2")
    losses = [epoch["train_loss"] for epoch in done.document["epochs"]]
    assert losses == [diverged()["epochs"][0]["train_loss"], None, None]
    assert page.document["epochs"] == done.document["epochs"]
    assert not any("nan" in d["d"] or d["d"] == "M" for d in page.all("path"))


def test_json_has_no_nan() -> None:
    tree = {"a": [NAN, 1.5, (INFINITY, -INFINITY)], "b": {"c": NAN, "d": "NaN"}}
    assert json.loads(json_text(tree)) == {"a": [None, 1.5, [None, None]], "b": {"c": None, "d": "NaN"}}


def test_a_value_that_is_not_finite_is_sorted_last() -> None:
    from fastcifar.cli.display.html import Part, page, table

    rows = table(["a"], [[("nan", NAN)], [("inf", INFINITY)], [("1", 1.0)]])
    assert [cell["data-value"] for cell in Parsed(page("", "", [Part("", rows)])).all("td")] == ["", "", "1.0"]
