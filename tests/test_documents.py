"""README and the documents in the package: README's length, and where their links lead."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import Call

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "fastcifar").rglob("*.md"))]


def headings(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, heading = link.partition("#")
        target = document.parent / name if name else document
        assert target.is_file(), f"{document}: {link}"
        assert not heading or heading in headings(target), f"{document}: {link}"


def test_readme_links_to_every_example() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [
        path.name for path in (ROOT / "tests" / "examples").iterdir() if f"(tests/examples/{path.name})" not in readme
    ]
    assert not missing


TABLES = [
    (document, command, table)
    for document in DOCUMENTS
    for command, table in re.findall(
        r"^```sh\nfastcifar (report [^\n]*evidence/[^\n]*--markdown)\n```\n\n((?:\|.*\n)+)",
        document.read_text(encoding="utf-8"),
        re.M,
    )
]


def test_there_are_tables_made_from_evidence() -> None:
    assert {path.name for path, _, _ in TABLES} >= {"quick90.md", "quick100.md"}


@pytest.mark.parametrize(("document", "command", "table"), TABLES, ids=lambda value: str(value)[-40:])
def test_tables_are_what_the_command_above_them_prints(document: Path, command: str, table: str, call: Call) -> None:
    paths = [str(ROOT / word) if word.endswith(".jsonl") else word for word in shlex.split(command)]
    printed = call(*paths)
    assert printed.code == 0 and table.strip() in printed.out
