"""Text files as editors on other systems write them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from fastcifar.errors import DataError
from fastcifar.system.text import read_text

TEXT = 'summary = "größer"\n[training]\nepochs = 3\n'
FORMS = {
    "plain": TEXT.encode(),
    "crlf": TEXT.replace("\n", "\r\n").encode(),
    "mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf-16-le": codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
    "utf-16-be": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-32-le": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
}
UNKNOWN = {
    "latin-1": TEXT.encode("latin-1"),
    "utf-16 without a mark": "epochs = 3".encode("utf-16-le"),
    "half a character": codecs.BOM_UTF16_LE + b"a",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_declared_encoding_is_read(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(FORMS[form])
    assert read_text(tmp_path / "a.toml") == TEXT


@pytest.mark.parametrize("form", UNKNOWN)
def test_any_other_is_to_be_saved_as_utf_8(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(UNKNOWN[form])
    with pytest.raises(DataError, match=r"a\.toml is no text in UTF-8: save it as UTF-8"):
        read_text(tmp_path / "a.toml")
