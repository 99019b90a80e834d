"""What results depend on in the program's own code, as a digest: runs of different code are not mixed in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDERS = ("system", "recipes", "data", "model", "training")  # the recipes' TOML and the screens are not code of a run
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest() -> str:
    """The digest of this program, 16 hexadecimal digits; computed once a process."""
    return digest_package(PACKAGE)


@cache
def digest_package(package: Path) -> str:
    """The digest of the package in this folder: of its Python without comments, docstrings and formatting, and of the
    bytes of its C++, each with its path."""
    digest = sha256()
    for path in sources(package):
        content = path.read_bytes()
        code = python_code(content) if path.suffix == ".py" else content
        digest.update(f"{path.relative_to(package).as_posix()} {len(code)}\n".encode() + code)
    return digest.hexdigest()[:16]


def sources(package: Path) -> Iterable[Path]:
    """The files that results depend on, in the order of their paths."""
    files = (path for folder in FOLDERS for path in (package / folder).rglob("*"))
    return sorted(path for path in files if path.suffix in (".py", ".cpp", ".h"))


def python_code(source: bytes) -> bytes:
    """A Python file's syntax tree without docstrings, as text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree).encode()
