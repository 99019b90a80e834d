"""Text files as editors on other systems write them: byte order marks, UTF-16, other ends of lines. Needs no torch."""

from __future__ import annotations

import codecs
from pathlib import Path

from fastcifar.errors import DataError

MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def read_text(path: Path) -> str:
    """The text in a file in UTF-8, or in the encoding that its byte order mark declares; lines end in `\\n`.

    Raises OSError where it cannot be read, DataError where it is in another encoding.
    """
    content = to_utf8(path.read_bytes(), path)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    if "\0" in text:  # UTF-16 without a mark
        raise not_utf8(path)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def to_utf8(content: bytes, path: Path) -> bytes:
    """What a file holds, in UTF-8 without a byte order mark; content without a mark is not changed.

    Raises DataError where it is not in the encoding that its mark declares; `path` stands in the message.
    """
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            unmarked = content[len(mark) :]
            try:
                return unmarked if mark == codecs.BOM_UTF8 else unmarked.decode(encoding).encode()
            except UnicodeDecodeError:
                raise not_utf8(path) from None
    return content


def not_utf8(path: Path) -> DataError:
    """The error for a text file in an unknown encoding."""
    return DataError(f"{path} is no text in UTF-8: save it as UTF-8 in your editor.")
