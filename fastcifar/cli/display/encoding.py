"""Text on outputs whose encoding lacks some of our characters: each is replaced by ASCII ones, such as × by x."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from io import TextIOWrapper

HANDLER = "fastcifar"
REPLACEMENTS = {
    **dict.fromkeys("–—‒−─━╌╍┄┅┈┉╸╺╴╶", "-"),
    **dict.fromkeys("│┃╎╏┆┇┊┋║╵╷╹╻", "|"),
    **dict.fromkeys("█▉▊▋▌▐▓▒■▇▆▅", "#"),
    **dict.fromkeys("▍▎▏░▄▃▂▁▔", "."),
    **dict.fromkeys("·•∙", "."),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”″„", '"'),
    "…": "...",
    "±": "+-",
    "×": "x",
    "÷": "/",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "≠": "!=",
    "→": "->",
    "←": "<-",
    "↑": "^",
    "↓": "v",
    "▲": "^",
    "▼": "v",
    "✓": "ok",
    "✗": "no",
    "σ": "s",
    "Δ": "d",
    "µ": "u",
    "μ": "u",
    "ß": "ss",
}


def ascii_form(character: str) -> str:
    """What stands for a character on an output that cannot show it: `?` for one that has no similar ASCII form."""
    if character in REPLACEMENTS:
        return REPLACEMENTS[character]
    if "\u2500" <= character <= "\u257f":  # box drawing: corners and crossings
        return "+"
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def replace(error: UnicodeError) -> tuple[str, int]:
    """The handler of encoding errors, in the form that `codecs` defines."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(ascii_form, error.object[error.start : error.end])), error.end


def prepare_outputs() -> None:
    """Let stdout and stderr take any text, also where they are closed."""
    codecs.register_error(HANDLER, replace)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # It takes the number of the closed descriptor, which the next file to be opened would get otherwise.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
