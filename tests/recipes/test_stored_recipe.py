"""Recipes in results files, run folders and checkpoints of earlier versions, read through today's keys."""

from __future__ import annotations

from typing import Any

import pytest

from fastcifar.errors import DataError
from fastcifar.recipes import parse
from fastcifar.recipes.parse import load_recipe, recipe_to_dict, stored_recipe


@pytest.fixture
def tree() -> dict[str, Any]:
    return recipe_to_dict(load_recipe("hlb"))


def test_todays_recipes_are_read_as_they_were(tree: dict[str, Any]) -> None:
    assert stored_recipe(tree, "here") == load_recipe("hlb")


def test_a_key_added_since_leaves_the_recipe_as_it_was(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lr = tree["optimizer"]["head"].pop("lr")
    assert stored_recipe(tree, "here").optimizer.head.lr == 0.1, "the default"
    monkeypatch.setattr(parse, "ADDED", {"optimizer.head.lr": lr})
    assert stored_recipe(tree, "here") == load_recipe("hlb"), "where the default would change something"
    tree["optimizer"]["head"]["lr"] = 0.7
    assert stored_recipe(tree, "here").optimizer.head.lr == 0.7, "what is stored counts"


def test_a_removed_key_may_have_the_value_that_changed_nothing(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parse, "REMOVED", {"data.mixup": 0.0})
    tree["data"]["mixup"] = 0.0
    assert stored_recipe(tree, "here") == load_recipe("hlb")
    tree["data"]["mixup"] = 0.5
    with pytest.raises(DataError, match=r"In here, 'data.mixup' is 0.5, which this version of fastcifar no longer has"):
        stored_recipe(tree, "here")


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("network", "activation", "mish", "'network.activation' is 'mish'.*another version"),
        ("data", "mixup", 0.0, "'data.mixup'.*another version"),
        ("training", "epochs", "many", "'training.epochs'"),
    ],
)
def test_what_this_version_cannot_express_is_said(
    tree: dict[str, Any], section: str, key: str, value: Any, words: str
) -> None:
    tree[section][key] = value
    with pytest.raises(DataError, match=words):
        stored_recipe(tree, "here")
    with pytest.raises(DataError, match="damaged"):
        stored_recipe(None, "here")  # type: ignore[arg-type]
