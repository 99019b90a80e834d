"""The page of a stored document of `train` or `profile`: what the terminal shows of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from rich.console import Console, RenderableType

from fastcifar.cli.display.html import Part, page
from fastcifar.cli.display.screen import PIPE_WIDTH


def stored_page(document: Mapping[str, Any], shown: RenderableType) -> str:
    """The page of a document and of what the terminal shows of it."""
    console = Console(file=io.StringIO(), width=PIPE_WIDTH, highlight=False, markup=False, emoji=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    text = Markup('<div class="scroll"><pre>{}</pre></div>').format(console.file.getvalue())
    title = f"{document['recipe']}: `fastcifar {document['command']}`"
    return page(title, f"{document['device']}", [Part("As the terminal shows it", text)], document)
