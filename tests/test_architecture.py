"""The architecture: what a file of fastcifar may import, and what must not be loaded at once.

Each rule is a function of the package's folder and returns one sentence for each breach, so that it can be tried on a
copy with one wrong import. Imports inside functions and under `TYPE_CHECKING` count, but for `slow_starts`; modules
that are imported by a name made at run time are not seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fastcifar"

# From the top to the bottom: a file imports its own folder, or one of a lower row.
ORDER = (
    ("__init__", "__main__"),
    ("cli",),
    ("cli.display",),
    ("bench", "profiling"),
    ("training",),
    ("model.kernels",),
    ("model",),
    ("data",),
    ("recipes",),
    ("system",),
    ("errors", "stats", "version"),
)
ROW = {folder: row for row, folders in enumerate(ORDER) for folder in folders}

ANYWHERE = {"torch", "numpy", "filelock"}
PLACES = {  # the only folder that imports a package
    "typer": "cli",
    "rich": "cli.display",
    "jinja2": "cli.display",
    "markupsafe": "cli.display",
    "torchvision": "data",
    "PIL": "data",
    "pyarrow": "data",
    "triton": "model.kernels",
}

# What must start at once, and the packages that take seconds: torch and those that import it.
AT_ONCE_FOLDERS = {"__init__", "__main__", "cli", "recipes", "errors", "stats", "version"}
AT_ONCE_FILES = {"fastcifar.bench.records", "fastcifar.bench.results", "fastcifar.bench.report"}
SLOW = {"torch", "torchvision", "triton"}

MOST_LINES = 400


@dataclass(frozen=True)
class Import:
    """One module that a file imports; `at_once` where that happens when the file itself is imported."""

    module: str
    line: int
    at_once: bool


def modules(package: Path) -> dict[str, Path]:
    """The files of the package by the names of their modules."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def folder_of(module: str) -> str | None:
    """The folder of the order that a module of fastcifar belongs to, a file of its own at the top; None outside."""
    parts = module.split(".")[1:] or ["__init__"]
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in ROW), None)


def statements(node: ast.AST, at_once: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every statement below `node`, and whether it is executed when the file is imported."""
    for part in ("body", "handlers", "cases", "orelse", "finalbody"):
        now = at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.If) and part == "body":
            now = now and ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for child in getattr(node, part, ()):
            yield child, now
            yield from statements(child, now)


@cache
def written(text: str) -> list[tuple[int, str, str, int, bool]]:
    """The imports in the text of a file: `from <dots><base> import <name>`, its line, and whether it is run at once."""
    found = []
    for node, at_once in statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, "", node.lineno, at_once) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module or "", alias.name, node.lineno, at_once) for alias in node.names]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOMES":  # of the lazy public names
            homes = [value.partition(":")[0] for value in ast.literal_eval(node.value).values()]
            found += [(0, f"fastcifar.{home}", "", node.lineno, False) for home in homes]
    return found


def imports(module: str, files: dict[str, Path]) -> list[Import]:
    """All that a file imports; of `from package import name` the module `package.name` where there is one."""
    inside = module.split(".") if files[module].name == "__init__.py" else module.split(".")[:-1]
    found = []
    for dots, base, name, line, at_once in written(files[module].read_text(encoding="utf-8")):
        if dots:
            base = ".".join([*inside[: len(inside) - dots + 1], *filter(None, [base])])
        found.append(Import(f"{base}.{name}" if f"{base}.{name}" in files else base, line, at_once))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Tree:
    """The package as the rules see it: its files, and what each imports of it and of others."""

    files: dict[str, Path]
    inside: dict[str, list[Import]]
    outside: dict[str, list[Import]]

    def place(self, module: str, line: int | None = None) -> str:
        """Where a module stands, for people: `fastcifar/system/files.py:3`."""
        top = self.files["fastcifar"].parent.parent
        return self.files[module].relative_to(top).as_posix() + (f":{line}" if line else "")


def read(package: Path) -> Tree:
    """The imports of all files of the package."""
    files = modules(package)
    found = {module: imports(module, files) for module in files}
    inside = {
        module: [one for one in all_ if one.module.split(".")[0] == "fastcifar"] for module, all_ in found.items()
    }
    outside = {module: [one for one in all_ if one not in inside[module]] for module, all_ in found.items()}
    return Tree(files, inside, outside)


# --- The rules ---


def wrong_order(package: Path) -> list[str]:
    """Imports of a folder that is not below the file's own, of what is not there, and files outside the order."""
    tree = read(package)
    breaches = [f"{tree.place(file)} is in no folder of the order" for file in tree.files if folder_of(file) is None]
    for file, found in tree.inside.items():
        for one in found:
            here, there = folder_of(file), folder_of(one.module)
            where = f"{tree.place(file, one.line)} imports"
            if one.module not in tree.files:
                breaches.append(f"{where} {one.module}, which is not there")
            elif here and there and here != there and ROW[there] <= ROW[here]:
                breaches.append(f"{where} {tree.place(one.module)}: {there} is not below {here}")
    return breaches


def circles(package: Path) -> list[str]:
    """The first circle of imports, if there is one."""
    tree = read(package)
    graph = {file: {one.module for one in found if one.module != file} for file, found in tree.inside.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["a circle: " + " is imported by ".join(map(tree.place, error.args[1]))]
    return []


def misplaced_packages(package: Path) -> list[str]:
    """Imports of third-party packages outside their one folder, and of those that have none."""
    tree = read(package)
    breaches = []
    for file, found in tree.outside.items():
        for one in found:
            name = one.module.split(".")[0]
            if name in ANYWHERE or name in sys.stdlib_module_names:
                continue
            if name not in PLACES:
                breaches.append(f"{tree.place(file, one.line)} imports {name}, which has no place in the architecture")
            elif folder_of(file) != PLACES[name]:
                breaches.append(f"{tree.place(file, one.line)} imports {name}, which only {PLACES[name]} may")
    return breaches


def slow_starts(package: Path) -> list[str]:
    """Files that must start at once, and the chain of imports by which each loads torch all the same."""
    tree = read(package)
    must = [file for file in tree.files if folder_of(file) in AT_ONCE_FOLDERS or file in AT_ONCE_FILES]
    breaches = [f"{file} is not there" for file in AT_ONCE_FILES if file not in tree.files]
    for start in must:
        chains = [[start]]
        seen = {start}
        for chain in chains:  # grows while it is read: the shortest chain comes first
            last = chain[-1]
            slow = [one for one in tree.outside[last] if one.at_once and one.module.split(".")[0] in SLOW]
            if slow:
                names = [*map(tree.place, chain[:-1]), tree.place(last, slow[0].line), slow[0].module]
                breaches.append(f"{tree.place(start)} loads torch at once: " + " -> ".join(names))
                break
            parents = [last.rsplit(".", n)[0] for n in range(1, last.count(".") + 1)]  # run before the file itself
            loaded = [*parents, *(one.module for one in tree.inside[last] if one.at_once)]
            further = [module for module in dict.fromkeys(loaded) if module in tree.files and module not in seen]
            seen.update(further)
            chains += [[*chain, module] for module in further]
    return breaches


def taken_names(package: Path) -> list[str]:
    """Folders and files beside `__init__` with the name of a public function: once imported, they would replace it."""
    init = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    assigned = [node for node in init.body if isinstance(node, ast.Assign)]
    public = next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__all__")
    tops = {module.split(".")[1] for module in modules(package) if "." in module}
    return [f"fastcifar/{name} has the name of the public fastcifar.{name}" for name in public if name in tops]


def long_files(package: Path) -> list[str]:
    """Python files of too many lines."""
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(package).values()}
    return [
        f"{path.relative_to(package.parent).as_posix()} has {lines} lines: at most {MOST_LINES}"
        for path, lines in counts.items()
        if lines > MOST_LINES
    ]


RULES = [wrong_order, circles, misplaced_packages, slow_starts, taken_names, long_files]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(PACKAGE) == []


# --- Each rule finds what it is there for: one change to a copy of the package ---


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's Python files, for one change at a time."""
    folder = tmp_path_factory.mktemp("architecture") / "fastcifar"
    for path in modules(PACKAGE).values():
        to = folder / path.relative_to(PACKAGE)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
    return folder


@contextmanager
def changed(copy: Path, file: str, text: str) -> Iterator[Path]:
    """The copy with `text` at the end of one of its files, a new one where it is not there; afterwards as before."""
    path = copy / file
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n{text}\n", encoding="utf-8")
    try:
        yield copy
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")


def test_the_copy_keeps_the_rules(copy: Path) -> None:
    assert [rule(copy) for rule in RULES] == [rule(PACKAGE) for rule in RULES]


LATER = "def later():\n    "
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("file", "text", "rule", "breach"),
    [
        ("system/files.py", "import fastcifar.training.run", wrong_order, "imports fastcifar/training/run.py"),
        ("model/network.py", LATER + "from fastcifar.training import run", wrong_order, "training is not below model"),
        ("stats.py", TYPES + "from fastcifar.errors import DataError", wrong_order, "errors is not below stats"),
        ("bench/plan.py", LATER + "import fastcifar.profiling.plan", wrong_order, "profiling is not below bench"),
        ("cli/display/screen.py", LATER + "from .. import options", wrong_order, "cli is not below cli.display"),
        ("model/network.py", LATER + "from . import kernels", wrong_order, "imports fastcifar/model/kernels/__init__"),
        ("training/run.py", LATER + "from fastcifar import load", wrong_order, "__init__ is not below training"),
        ("training/run.py", LATER + "from fastcifar.bench.nothing import x", wrong_order, "fastcifar.bench.nothing"),
        ("helpers.py", "", wrong_order, "fastcifar/helpers.py is in no folder of the order"),
        ("bench/records.py", LATER + "from fastcifar.bench import report", circles, "fastcifar/bench/report.py"),
        ("bench/records.py", TYPES + "from fastcifar.bench.report import Report", circles, "fastcifar/bench/report.py"),
        ("version.py", LATER + "from fastcifar import train", circles, "fastcifar/__init__.py"),
        ("training/run.py", LATER + "from rich.text import Text", misplaced_packages, "rich, which only cli.display"),
        ("cli/options.py", TYPES + "from rich.text import Text", misplaced_packages, "rich, which only cli.display"),
        ("cli/display/screen.py", "import typer", misplaced_packages, "typer, which only cli may"),
        ("model/classifier.py", LATER + "import PIL.Image", misplaced_packages, "PIL, which only data may"),
        ("model/network.py", LATER + "import triton", misplaced_packages, "triton, which only model.kernels may"),
        ("data/store.py", LATER + "import pandas", misplaced_packages, "pandas, which has no place"),
        ("recipes/parse.py", "import torch", slow_starts, "fastcifar/recipes/parse.py loads torch"),
        ("cli/options.py", "try:\n    from torch import nn\nexcept ImportError:\n    pass", slow_starts, "-> torch"),
        ("bench/report.py", "from fastcifar.training import flops", slow_starts, "fastcifar/training/flops.py"),
        ("bench/__init__.py", "import torch", slow_starts, "bench/report.py -> fastcifar/bench/__init__.py"),
        ("errors.py", TYPES + "    pass\nelse:\n    import torch", slow_starts, "fastcifar/cli/app.py"),
        ("train/__init__.py", "", taken_names, "fastcifar/train has the name of the public fastcifar.train"),
        ("stats.py", "\n" * 400, long_files, "fastcifar/stats.py has"),
    ],
)
def test_one_wrong_change_is_named(
    copy: Path, file: str, text: str, rule: Callable[[Path], list[str]], breach: str
) -> None:
    with changed(copy, file, text):
        found = set(rule(copy)) - set(rule(PACKAGE))
    assert found and all(f"fastcifar/{file}".removesuffix("/__init__.py") in sentence for sentence in found)
    assert any(breach in sentence for sentence in found)


@pytest.mark.parametrize("text", [LATER + "import torch", TYPES + "import torch"], ids=["function", "type"])
def test_torch_may_be_imported_later(copy: Path, text: str) -> None:
    with changed(copy, "recipes/parse.py", text):
        assert slow_starts(copy) == slow_starts(PACKAGE)
