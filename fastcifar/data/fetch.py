"""Downloading a published file from one of several servers.

A server that is down, slow or has another file is left for the next one, which goes on where the last one stopped:
all have the same file, whose size and checksums are known.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastcifar.data.dataset import Note, Progress, no_note, no_progress
from fastcifar.data.server import LIMITS, Limits, LostConnection, ServerError, SlowServer, receive, size_of
from fastcifar.errors import DataError
from fastcifar.system.files import SET_HOME, write_error

ALTERNATIVES = (
    "import a copy with `fastcifar download --from PATH`, name a mirror with --url, or use `--dataset shapes`"
)
EARLIER = "an earlier download"


@dataclass(frozen=True)
class RemoteFile:
    """A published file: addresses in the order they are tried, size in bytes, checksums (hexadecimal)."""

    urls: tuple[str, ...]
    size: int
    md5: str
    sha256: str

    def is_at(self, path: Path) -> bool:
        """Whether it is, byte for byte, the file at `path`."""
        if not path.is_file() or size_of(path) != self.size or md5_of(path) != self.md5:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


def fetch(
    remote: RemoteFile,
    path: Path,
    progress: Progress = no_progress,
    note: Note = no_note,
    limits: Limits = LIMITS,
) -> str:
    """Download a file to `path` and return the address that it came from, the last one where there were several.

    An unfinished file is kept as `<path>.part`, and the next call goes on there. Raises DataError where no server gives
    the file, or it cannot be written.
    """
    download = Download(remote, path.with_name(path.name + ".part"), progress, note, limits)
    try:
        if remote.is_at(path):  # downloaded before; the import was interrupted
            return remote.urls[0]
        url = download.run()
        os.replace(download.part, path)
    except OSError as error:
        raise write_error(download.part, error, SET_HOME) from None
    return url


class Download:
    """One download: the servers that are left to try, and why others were left."""

    def __init__(self, remote: RemoteFile, part: Path, progress: Progress, note: Note, limits: Limits) -> None:
        self.remote, self.part, self.progress, self.note, self.limits = remote, part, progress, note, limits
        self.untried = list(remote.urls)
        self.slow: dict[str, float] = {}  # servers that were left for being slow, in bytes per second
        self.failed: dict[str, str] = {}  # servers that were left for good, and why
        self.sources: set[str] = set()  # whose bytes are in the part
        self.alone: str | None = None  # the server that the file is downloaded anew from, after parts did not fit
        self.why = ""  # the last server was left

    def run(self) -> str:
        """Fill the part with the whole file; returns the address of the last server, raises DataError."""
        if self.remote.is_at(self.part):
            return self.remote.urls[0]
        if size_of(self.part) >= self.remote.size:
            self.part.unlink()
        elif size_of(self.part):
            self.sources.add(EARLIER)
        while self.untried or self.slow:
            url, patient = self.next_server()
            try:
                self.receive(url, patient)
            except SlowServer as error:
                self.slow[url] = error.rate
                self.why = f"{name_of(url)} {error}"
            except ServerError as error:
                self.leave(url, str(error))
            else:
                if self.is_whole(url):
                    return url
        raise DataError(self.failure())

    def next_server(self) -> tuple[str, bool]:
        """The next address, and whether the server may be slow: where it is the last, or the fastest of slow ones."""
        begin = "going on with" if size_of(self.part) else "downloading from"
        if self.untried:
            url = self.untried.pop(0)
            patient = url == self.alone or not (self.untried or self.slow)
            what = f"{begin} {name_of(url)}"
        else:
            url, patient = max(self.slow, key=self.slow.__getitem__), True
            rate = self.slow.pop(url)
            what = f"no other is left, back to {name_of(url)} ({rate / 1000:,.0f} kB/s)"
        self.note(f"{self.why}: {what}." if self.why else f"{what[0].upper()}{what[1:]}.")
        return url, patient

    def receive(self, url: str, patient: bool) -> None:
        """Receive the rest of the file from a server, reconnecting where the connection is lost; raises ServerError."""
        for _ in range(self.limits.attempts):
            before = size_of(self.part)
            try:
                return receive(url, self.part, self.remote.size, patient, self.progress, self.limits)
            except LostConnection:
                if size_of(self.part) == before:
                    raise
            finally:
                if size_of(self.part) > before:
                    self.sources.add(url)
        raise LostConnection(f"broke off {self.limits.attempts} times")

    def is_whole(self, url: str) -> bool:
        """Whether the part, which `url` finished, is the published file; else it is removed.

        Where all of it came from one server, that server has another file. Where there were several, any could be
        wrong: once, the file is downloaded anew from the one that finished it.
        """
        if self.remote.is_at(self.part):
            return True
        self.part.unlink()
        sources, self.sources = self.sources, set()
        if sources == {url} or self.alone is not None:
            self.leave(url, "gave another file than the published one (its checksum is wrong)")
        else:
            self.alone = url
            others = [each for each in self.remote.urls if each in sources and each != url]
            self.untried = [url, *others, *self.untried]
            self.slow = {each: rate for each, rate in self.slow.items() if each not in self.untried}
            self.why = "What came in several parts is not the published file"
        return False

    def leave(self, url: str, reason: str) -> None:
        """Do not try a server again."""
        self.failed[url] = reason
        self.why = f"{name_of(url)} {reason}"

    def failure(self) -> str:
        """The error message: why each server was left, and what to do."""
        if len(self.failed) == 1:
            ((url, reason),) = self.failed.items()
            text = f"{url} {reason}"
        else:
            names = {
                why: [name_of(url) for url in self.failed if self.failed[url] == why] for why in self.failed.values()
            }
            reasons = "; ".join(f"{', '.join(names)} {why}" for why, names in names.items())
            text = f"None of {len(self.failed)} servers gave the file ({reasons})"
        return (
            f"{text}; run it again to resume, or {ALTERNATIVES}." if size_of(self.part) else f"{text}: {ALTERNATIVES}."
        )


def name_of(url: str) -> str:
    """The host of an address, for people."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or url
    except ValueError:
        return url


def md5_of(path: Path) -> str:
    """The MD5 of a file, hexadecimal: the checksum that is published; it does not protect against an attacker."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
