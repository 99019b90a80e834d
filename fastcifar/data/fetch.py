"""A file over HTTP: as a stream, with a limit on silence, going on where an earlier try broke off."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fastcifar.data.dataset import Progress, no_progress
from fastcifar.errors import DataError

SILENCE = 15.0  # seconds without a byte after which the other side counts as gone
TRIES = 3  # in one call, as long as each brings something
CHUNK = 1 << 18
WAYS_OUT = "import a copy with `fastcifar download --from PATH`, name a mirror with --url, or use `--dataset shapes`"


class Broken(Exception):
    """The stream ended early; what came is kept."""


def fetch(url: str, path: Path, md5: str, progress: Progress = no_progress) -> None:
    """Download `url` to `path`, whose MD5 must be `md5`; an unfinished file is kept as `<path>.part` for the next try.

    Raises DataError where the server cannot be reached, stalls, refuses, or sends something else.
    """
    if path.is_file() and md5_of(path) == md5:  # an earlier import was interrupted
        return
    part = path.with_name(path.name + ".part")
    for _ in range(TRIES):
        before = part.stat().st_size if part.exists() else 0
        try:
            stream(url, part, progress)
            break
        except Broken as error:
            if not part.exists() or part.stat().st_size == before:
                raise DataError(f"The download of {url} {error}; run it again to go on, or {WAYS_OUT}.") from None
    else:
        raise DataError(f"The download of {url} broke off {TRIES} times; run it again to go on, or {WAYS_OUT}.")
    found = md5_of(part)
    if found != md5:
        part.unlink()
        raise DataError(
            f"What {url} sent is not the published file (MD5 {found}, not {md5}): it was thrown away; {WAYS_OUT}."
        )
    os.replace(part, path)


def stream(url: str, part: Path, progress: Progress) -> None:
    """Append what is missing of `url` to `part`; raises Broken where the stream ends before its time."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fastcifar", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or the part is of another file: the checksum tells
            return
        raise DataError(f"{url} answered {error.code} ({error.reason}): {WAYS_OUT}.") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url} cannot be reached ({reason}): {WAYS_OUT}.") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DataError(f"{url} sent a web page, not an archive: {WAYS_OUT}.")
        if response.status != 206:  # the server does not go on in the middle
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        write(response, part, have, total, progress)


def write(response: http.client.HTTPResponse, part: Path, have: int, total: int | None, progress: Progress) -> None:
    """Copy the stream to the file from byte `have` on."""
    progress("downloading", have, total)
    try:
        with open(part, "ab" if have else "wb") as file:
            for chunk in chunks(response):
                file.write(chunk)
                have += len(chunk)
                progress("downloading", have, total)
    except OSError as error:
        raise DataError(f"{part} cannot be written: {error.strerror}; make room, or set FASTCIFAR_HOME.") from None
    if total is not None and have < total:
        raise Broken("broke off")


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes; raises Broken where the connection breaks."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except TimeoutError:
            raise Broken(f"stalled: nothing came for {SILENCE:g} seconds") from None
        except (OSError, http.client.HTTPException):
            raise Broken("broke off") from None
        if not chunk:
            return
        yield chunk


def md5_of(path: Path) -> str:
    """The MD5 of a file, hexadecimal: the checksum that was published, no proof against an attacker."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
