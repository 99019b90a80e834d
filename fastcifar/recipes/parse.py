"""Recipes are read from TOML files into the dataclasses of `schema`.

A recipe that extends another holds only what differs; `--set section.key=value` overrides single values. Every key,
type and range is checked here, and what depends on several keys in `consistency`, so that the rest of the program can
trust what it reads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from fastcifar.errors import DataError, UsageError, known_as, nearest
from fastcifar.recipes.consistency import check_whole
from fastcifar.recipes.schema import Recipe
from fastcifar.system.text import read_text

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """The names of the built-in recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


DEFAULTS = {"cifar10": ("fast94", "quick90"), "cifar100": ("fast100", "quick100")}  # on a GPU, and elsewhere
CLASSES = {"cifar10": 10, "cifar100": 100}


def extended_recipe(name: str) -> str | None:
    """The recipe that a built-in one extends; None for one that extends none."""
    parent: str | None = tomllib.loads(read_text(FOLDER / f"{name}.toml")).get("extends")
    return parent


def default_recipe(device: str, dataset: str = "cifar10") -> str:
    """The recipe used where none is named, by the type of the device and the name of the dataset.

    CIFAR-100 has recipes of its own; any other dataset gets those of CIFAR-10.
    """
    on_gpu, elsewhere = DEFAULTS.get(dataset, DEFAULTS["cifar10"])
    return on_gpu if device == "cuda" else elsewhere


def intended_dataset(recipe: str) -> tuple[str, int]:
    """The dataset that a recipe of this name is for, and its classes: that whose default it is, else CIFAR-10."""
    name = next((dataset for dataset, names in DEFAULTS.items() if recipe in names), "cifar10")
    return name, CLASSES[name]


def load_recipe(recipe: str | Recipe, *overrides: str) -> Recipe:
    """The recipe of that name, or in the TOML file at that path (or the one given), with overrides such as
    `training.epochs=2` applied in order.

    Raises UsageError for an unknown recipe, a file that does not parse or extends itself, an unknown key or a value
    of the wrong type or out of range; DataError for a file that cannot be read or is not in UTF-8.
    """
    tree = recipe_to_dict(recipe) if isinstance(recipe, Recipe) else _read(recipe, ())
    name = recipe.name if isinstance(recipe, Recipe) else recipe_title(recipe)
    for text in overrides:
        _merge(tree, _parse_override(text))
    return recipe_from_dict({"name": name, **tree}, where=f"recipe '{name}'")


def recipe_keys() -> list[str]:
    """The dotted keys that `--set` can override, in the order of the schema."""

    def keys(tree: Mapping[str, Any], prefix: str) -> Iterable[str]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")
            elif prefix:  # outside the sections are the name and the summary
                yield prefix + key

    return list(keys(recipe_to_dict(Recipe()), ""))


def key_elsewhere(word: str) -> str | None:
    """The dotted key of recipes that a word means without its section (`epochs`), or in other programs (`bs`)."""
    keys = recipe_keys()
    ours = known_as(word)
    if ours in keys:
        return ours
    same = [key for key in keys if key.rpartition(".")[2] == word.strip("-").lower().replace("-", "_")]
    return same[0] if len(same) == 1 else None


def stored_evidence() -> dict[str, dict[str, Any]]:
    """The summary of the results in `evidence/`, by recipe: `flops` of a run, mean `accuracy` (a fraction of one), its
    `ci95` [low, high] and the number of `runs`; `bench.evidence` writes it. A recipe, or all but its FLOPs, may be
    missing.
    """
    path = FOLDER / "evidence" / "summary.json"
    if not path.is_file():
        return {}
    summary: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return summary


def eval_split(recipe: Recipe) -> str:
    """Human-readable name of the evaluation split."""
    return f"{recipe.data.holdout:,} held-out training images" if recipe.data.holdout else "the test images"


def merge_changes(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with a tree of changes, checked; `where` stands in the error messages."""
    tree = recipe_to_dict(recipe)
    _merge(tree, changes)
    return recipe_from_dict(tree, where)


def bind_overrides(settings: Iterable[str], names: Sequence[str], option: str = "--set") -> dict[str, list[str]]:
    """The overrides of each of several recipes: `name:section.key=value` is for one, `section.key=value` for all.

    Raises UsageError for a name that is none of theirs.
    """
    bound: dict[str, list[str]] = {name: [] for name in names}
    for setting in settings:
        name, colon, rest = setting.partition(":")
        if not colon or "=" in name:
            for overrides in bound.values():
                overrides.append(setting)
        elif name in bound:
            bound[name].append(rest)
        else:
            raise UsageError(f"{option} {setting!r} is for '{name}', which is not here; {nearest(name, names)}")
    return bound


def recipe_from_dict(tree: Mapping[str, Any], where: str) -> Recipe:
    """The recipe in a tree of plain values, as `recipe_to_dict` returns it; `where` stands in the error messages."""
    recipe: Recipe = _build(Recipe, tree, where, "")
    check_whole(recipe, where)
    return recipe


# For recipes stored by earlier versions, by dotted keys. A key added since then has its default, unless a value that
# leaves old results as they were stands here; a key removed since then may have the value here, which changed nothing.
ADDED: dict[str, Any] = {}
REMOVED: dict[str, Any] = {}


def stored_recipe(tree: Mapping[str, Any], where: str) -> Recipe:
    """The recipe in a tree that `recipe_to_dict` gave once, in this version of the program or an earlier one.

    Raises DataError where it uses a key or value that this version does not have; `where` stands in the message.
    """
    if not isinstance(tree, Mapping):
        raise DataError(f"The recipe in {where} is damaged.")
    current: dict[str, Any] = {}
    for key, value in ADDED.items():
        _merge(current, _nested(key, value))
    _merge(current, _without_removed(tree, where, ""))
    try:
        return recipe_from_dict(current, where)
    except UsageError as error:
        raise DataError(f"{error} It was stored by another version of fastcifar, which alone can use it.") from None


def _without_removed(tree: Mapping[str, Any], where: str, prefix: str) -> dict[str, Any]:
    """A copy of the tree without removed keys; raises DataError where one had an effect."""
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + key
        if name in REMOVED:
            if value != REMOVED[name]:
                raise DataError(f"In {where}, '{name}' is {value!r}, which this version of fastcifar no longer has.")
        else:
            kept[key] = _without_removed(value, where, f"{name}.") if isinstance(value, Mapping) else value
    return kept


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain nested dictionaries, lists and values."""
    return {key: _plain(value) for key, value in dataclasses.asdict(recipe).items()}


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe, fully resolved, as TOML that `load_recipe` reads back to the same recipe."""
    return "\n".join(_toml_lines(recipe_to_dict(recipe), "")).strip() + "\n"


def recipe_title(name: str) -> str:
    """The name of a recipe, or of the recipe in the TOML file at that path."""
    return Path(name).stem if _is_path(name) else name


def _is_path(name: str) -> bool:
    """Whether a recipe is named by the path of its file."""
    return name.endswith(".toml") or "/" in name or "\\" in name


def _read(name: str, seen: tuple[Path, ...], base: Path | None = None) -> dict[str, Any]:
    """The tree of a recipe, merged over that of the recipe that it extends; `seen` are the files that led here."""
    path = (base or Path()) / name if _is_path(name) else FOLDER / f"{name}.toml"
    if not _is_path(name) and not path.is_file():
        raise UsageError(f"There is no recipe '{name}'; {nearest(name, recipe_names())}")
    path = path.resolve()
    if path in seen:
        raise UsageError(f"Recipe file {path} extends itself, by way of {' -> '.join(p.stem for p in seen)}.")
    try:
        tree = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise UsageError(f"There is no recipe file {path}; `fastcifar recipes` lists the recipes.") from None
    except OSError as error:
        raise DataError(f"Recipe file {path} cannot be read: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"Recipe file {path} is not valid TOML: {error}.") from None
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise UsageError(f"In {path}, `extends` must be the name or path of one recipe, not {parent!r}.")
    merged = _read(parent, (*seen, path), path.parent)
    merged.pop("summary", None)
    merged.pop("name", None)
    _merge(merged, tree)
    return merged


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change a tree in place, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _parse_override(text: str) -> dict[str, Any]:
    """`a.b=value` as a tree; the value is TOML, and a bare word is a string."""
    path, equals, raw = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {text!r} needs the form section.key=value, for example training.epochs=4.")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return _nested(path.strip(), value)


def _nested(path: str, value: Any) -> dict[str, Any]:
    """A value by its dotted key, as a tree."""
    *sections, last = path.split(".")
    tree: dict[str, Any] = {last: value}
    for key in reversed(sections):
        tree = {key: tree}
    return tree


def _build(cls: type[Any], tree: Any, where: str, prefix: str) -> Any:
    """An instance of the dataclass `cls` from a tree; every key, type and range is checked."""
    if not isinstance(tree, Mapping):
        raise UsageError(f"In {where}, '{prefix.rstrip('.')}' is a section with keys of its own, not a value.")
    kinds = get_type_hints(cls, include_extras=True)
    values = {}
    for key, value in tree.items():
        if key not in kinds:
            what = "key" if prefix or not isinstance(value, Mapping) else "section"
            ours = key_elsewhere(key)
            hint = f"did you mean '{ours.removeprefix(prefix)}'?" if ours else nearest(key, kinds)
            raise UsageError(f"In {where}, there is no {what} '{prefix}{key}'; {hint}")
        name = prefix + key
        if dataclasses.is_dataclass(kinds[key]):
            values[key] = _build(kinds[key], value, where, name + ".")
        else:
            values[key] = _convert(kinds[key], value, where, name)
    return cls(**values)


def _convert(kind: Any, value: Any, where: str, name: str) -> Any:
    """The value as the key's type, in its range. An integer may stand for a float and a list for a tuple."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        converted, (allowed,) = _convert(arguments[0], value, where, name), kind.__metadata__
        if converted not in allowed:
            raise UsageError(f"In {where}, '{name}' is {converted:g}, but must be {allowed}.")
        return converted
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"In {where}, '{name}' is {value!r}; {nearest(str(value), arguments)}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            items = enumerate(zip(inner, value, strict=True))
            return tuple(_convert(part, item, where, f"{name}[{i}]") for i, (part, item) in items)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise UsageError(f"In {where}, '{name}' must be {_describe(kind)}, not {value!r}.")


def _describe(kind: Any) -> str:
    """The type in words, for error messages."""
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if kind in simple:
        return simple[kind]
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        return _describe(inner[0])
    if inner[-1] is Ellipsis:
        return f"a list, each item {_describe(inner[0])}"
    return f"a list of {len(inner)} values"


def _plain(value: Any) -> Any:
    """The value with lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _toml_lines(tree: Mapping[str, Any], prefix: str) -> Iterable[str]:
    """Values first, then sections: TOML has no way back to the values of a section."""
    for key, value in tree.items():
        if not isinstance(value, dict):
            yield f"{key} = {_toml_value(value)}"
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"\n[{prefix}{key}]"
            yield from _toml_lines(value, f"{prefix}{key}.")


def _toml_value(value: Any) -> str:
    """A value as TOML; control characters in texts are escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = re.sub(r'["\\\x00-\x1f\x7f]', lambda match: f"\\u{ord(match[0]):04x}", value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value)
