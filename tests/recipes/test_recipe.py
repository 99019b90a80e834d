"""Recipes: the built-in ones, files, overrides, and an error for everything that can be wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastcifar.errors import DataError, UsageError
from fastcifar.recipes.parse import (
    load_recipe,
    recipe_from_dict,
    recipe_keys,
    recipe_names,
    recipe_to_dict,
    recipe_to_toml,
)
from fastcifar.recipes.schema import Recipe


@pytest.mark.parametrize("name", recipe_names())
def test_a_printed_recipe_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.toml"
    original = load_recipe(name)
    path.write_text(recipe_to_toml(original))
    assert load_recipe(str(path)) == original
    assert recipe_from_dict(recipe_to_dict(original), "here") == original
    assert original.summary


def test_kernel_sizes_are_written_and_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        recipe_to_toml(load_recipe("air94", "network.kernels=[[3, 1], [3, 1], [2, 3]]"))
    )
    assert load_recipe(str(tmp_path / "mine.toml")).network.kernel_sizes() == ((3, 1), (3, 1), (2, 3))
    assert load_recipe("air94", "network.convs=[1, 2, 1]").network.kernel_sizes() == ((3,), (3, 3), (3,))


def test_even_kernels_need_room() -> None:
    smallest = ("network.kernels=[[3, 3], [3, 3], [2, 2]]", "data.resolution=[[0, 16], [1, 32]]")
    with pytest.raises(UsageError, match="nothing is left of images of 16 pixels"):
        load_recipe("air94", *smallest)
    assert load_recipe("air94", smallest[0].replace("2, 2", "2, 1"), smallest[1]).network.last_side(16) == 1
    with pytest.raises(UsageError, match="'network.residual' needs odd 'network.kernels' behind the first"):
        load_recipe("air94", "network.kernels=[[3, 2], [3, 3], [3, 3]]", "network.residual=true")
    assert load_recipe("air94", "network.kernels=[[2, 3], [3, 3], [3, 3]]", "network.residual=true")


def test_the_recipes_of_the_design_are_there() -> None:
    assert {"hlb-first", "hlb", "hlb-3x3", "hlb-nose", "air94", "hive94", "fast94", "quick90", "tiny"} <= set(
        recipe_names()
    )
    assert {"fast100", "quick100"} <= set(recipe_names())


def test_overrides_apply_in_order() -> None:
    found = load_recipe(
        "air94", "training.epochs=4", "network.widths=[32, 64, 64]", "data.flip=random", "training.epochs=2.5"
    )
    assert (found.training.epochs, found.network.widths, found.data.flip) == (2.5, (32, 64, 64), "random")
    assert found.optimizer == load_recipe("air94").optimizer


def test_a_file_extends_a_recipe_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "air94"\nsummary = "base"\n[training]\nepochs = 3\n')
    (tmp_path / "mine.toml").write_text('extends = "./base.toml"\n[optimizer.filters]\nlr = 0.3\n')
    mine = load_recipe(str(tmp_path / "mine.toml"))
    assert (mine.name, mine.summary, mine.training.epochs, mine.optimizer.filters.lr) == ("mine", "", 3.0, 0.3)
    assert mine.optimizer.filters.momentum == load_recipe("air94").optimizer.filters.momentum


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs", "needs the form"),
        ("=3", "needs the form"),
        ("training.epoch=3", "did you mean 'epochs'"),
        ("trainning.epochs=3", "did you mean 'training'"),
        ("training.epochs=many", "must be a number"),
        ("training.epochs=true", "must be a number"),
        ("training.batch_size=2.5", "must be a whole number"),
        ("training.batch_size=0", "in 1..1,000,000"),
        ("training.label_smoothing=1.5", "must be in 0..0.999"),
        ("training.epochs=nan", "must be a number"),
        ("training=3", "is a section"),
        ("epochs=4", "did you mean 'training.epochs'"),
        ("lr=0.1", "did you mean 'optimizer.filters.lr'"),
        ("training.lr=0.1", "did you mean 'optimizer.filters.lr'"),
        ("batch-size=100", "did you mean 'training.batch_size'"),
        ("training.num_epochs=4", "did you mean 'epochs'"),
        ("training.precision=fp16", "did you mean 'half'"),
        ("training.precision=float16", "did you mean 'half'"),
        ("training.precision=16", "did you mean 'half'"),
        ("training.precision=bf16", "did you mean 'bfloat16'"),
        ("training.precision=FP32", "did you mean 'float32'"),
        ("data.flip=randon", "did you mean 'random'"),
        ("network.activation=relu", "'network.activation' is 'relu'; did you mean"),
        ("network.head.scale=-1", "must be at least 0"),
        ("network.widths=64", "must be a list"),
        ("network.widths=[64, 0, 64]", "in 1..8,192"),
        ("network.widths=[64, 64]", "same, nonzero length"),
        ("network.norm.ghost=33", "multiple of"),
        ("network.kernels=[[3, 1], [3, 1]]", "for example [[3, 3], [3, 3], [3, 3]]"),
        ("network.kernels=[[3, 1], [3, 1], [3]]", "one kernel size for each of 'network.convs'"),
        ("network.kernels=[[3, 1], 1, 2]", "'network.kernels[1]' must be a list, each item a whole number, not 1"),
        ("network.kernels=[[3, 1], [3, 1], [0, 3]]", "'network.kernels[2][0]' is 0, but must be in 1..5"),
        ("network.kernels=[[3, 1], [3, 1], [6, 3]]", "'network.kernels[2][0]' is 6, but must be in 1..5"),
        ("network.whiten.filters=13", "'network.whiten.kernel' of 2 has only 12"),
        ("network.bottlenecks=[8, 8]", "for example [64, 256, 256]"),
        ("network.bottlenecks=[8, 8, 8]", "at least 3 convolutions in 'network.convs'"),
        (
            "optimizer.freeze=[0.5, 1]",
            "for each of 'network.widths', none smaller than the one before, for example [0.8,",
        ),
        ("optimizer.freeze=[1, 0.5, 1]", "none smaller than the one before"),
        ("optimizer.freeze=[0.5, 1, 1.5]", "'optimizer.freeze[2]' is 1.5, but must be in 0..1"),
        ("network.pool=mean", "did you mean 'max_mean'"),
        ("optimizer.filters.newton_schulz=[[1, 2]]", "three numbers"),
        ("optimizer.filters.renormalize=[[0, 0]]", "at least 1 everywhere"),
        ("optimizer.filters.schedule=[[0.5, 1], [0.1, 0]]", "goes back"),
        ("optimizer.filters.schedule=[[0, 1, 2]]", "must be a list"),
    ],
)
def test_a_wrong_override_is_explained(override: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("air94", override)
    assert said in str(caught.value)


@pytest.mark.parametrize("key", recipe_keys())
def test_every_key_can_be_overridden(key: str) -> None:
    tree: Any = recipe_to_dict(Recipe())
    for part in key.split("."):
        tree = tree[part]
    value = f'"{tree}"' if isinstance(tree, str) else str(tree).lower()
    assert load_recipe("air94", f"{key}={value}")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'air94'"):
        load_recipe("air95")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training\nepochs = 3", "not valid TOML"),
        ('extends = "mine.toml"', "extends itself"),
        ("extends = 3", "name or path of one recipe"),
        ('extends = "air95"', "did you mean 'air94'"),
        ("[trainin]\nepochs = 3", "no section 'trainin'"),
        ("surprise = 3", "no section 'surprise'|no key 'surprise'"),
        ('extends = "./nowhere.toml"', "no recipe file"),
    ],
)
def test_a_wrong_file_is_explained(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        load_recipe(str(path))


def test_a_chain_that_comes_back_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "./b.toml"')
    (tmp_path / "b.toml").write_text('extends = "./a.toml"')
    with pytest.raises(UsageError, match="extends itself"):
        load_recipe(str(tmp_path / "a.toml"))


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.toml").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load_recipe(str(tmp_path / "x.toml"))


def test_odd_text_survives_toml(tmp_path: Path) -> None:
    odd = recipe_from_dict({"name": "odd", "summary": 'a "quoted" \\ line\nand another\x7f é'}, "here")
    (tmp_path / "odd.toml").write_text(recipe_to_toml(odd))
    assert load_recipe(str(tmp_path / "odd.toml")) == odd
