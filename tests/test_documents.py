"""README and the documents in the package: README's length, and where their links lead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
