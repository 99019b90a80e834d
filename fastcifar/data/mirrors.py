"""The servers that have the published archives, and what every copy must be: `mirrors.toml` and torchvision's facts."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fastcifar.data.cifar import published_facts
from fastcifar.data.fetch import RemoteFile

MIRRORS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("mirrors.toml").read_text("utf-8"))
OFFICIAL = "official"  # stands for torchvision's address in the list


def remote_archive(name: str, url: str | None = None) -> RemoteFile:
    """The archive of `cifar10` or `cifar100` on its servers in the order they are tried, or at `url` alone."""
    facts, copies = published_facts(name), MIRRORS[name]
    urls = [url] if url else [facts.url if each == OFFICIAL else each for each in copies["urls"]]
    return RemoteFile(tuple(urls), copies["size"], facts.archive_md5, copies["sha256"])
