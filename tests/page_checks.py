"""What every page has to be: well-formed HTML that loads nothing, under a content security policy that fits it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "input", "hr"}
LOADING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "formaction"}


class Parsed(HTMLParser):
    """A page that was read; raises AssertionError where a tag is not closed, or closed where it was not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # the innermost element, and its text
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> str:
        """The text directly inside the elements of a tag, put together."""
        return "".join(text for name, text in self.texts if name == tag)

    @property
    def visible(self) -> str:
        """All text but scripts and styles."""
        return "".join(text for name, text in self.texts if name not in ("script", "style"))

    @property
    def document(self) -> Any:
        """The JSON that is embedded."""
        return json.loads(next(text for name, text in self.texts if name == "script"))


def check_page(text: str) -> Parsed:
    """Read a page, and assert that it is whole, loads nothing, and runs its own script alone."""
    assert text.startswith("<!DOCTYPE html>")
    parsed = Parsed(text)
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style", f"<{tag} {name}> is forbidden by the policy"
            assert name not in LOADING or value.startswith(("data:", "#")), f"<{tag} {name}={value}> loads something"
    assert len(parsed.all("script")) <= 2 and len(parsed.all("style")) == 1
    assert not re.search(r"@import|url\(", parsed.text("style"))
    (policy,) = (each["content"] for each in parsed.all("meta") if "http-equiv" in each)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    scripts = [text for name, text in parsed.texts if name == "script"]
    for rule, source in (("style-src", parsed.text("style")), ("script-src", scripts[-1])):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
    return parsed
