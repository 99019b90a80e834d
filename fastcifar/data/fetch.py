"""Downloading a file over HTTP: resumed where an earlier attempt ended, with a timeout on silence and a checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fastcifar.data.dataset import Progress, no_progress
from fastcifar.errors import DataError

TIMEOUT = 15.0  # seconds without a byte after which the connection counts as lost
ATTEMPTS = 3  # in one call, as long as each brings something
CHUNK = 1 << 18  # bytes
ALTERNATIVES = (
    "import a copy with `fastcifar download --from PATH`, name a mirror with --url, or use `--dataset shapes`"
)


class IncompleteDownload(Exception):
    """The connection was lost before the end of the file; what has arrived is kept."""


def fetch(url: str, path: Path, md5: str, progress: Progress = no_progress) -> None:
    """Download `url` to `path`, whose MD5 must be `md5`; an unfinished file is kept as `<path>.part` and resumed.

    Raises DataError where the server cannot be reached, stalls, refuses, or sends something else.
    """
    if path.is_file() and md5_of(path) == md5:  # downloaded before; the import was interrupted
        return
    part = path.with_name(path.name + ".part")
    for _ in range(ATTEMPTS):
        before = size_of(part)
        try:
            resume(url, part, progress)
            break
        except IncompleteDownload as error:
            if size_of(part) == before:
                raise DataError(f"The download of {url} {error}; run it again to resume, or {ALTERNATIVES}.") from None
    else:
        raise DataError(f"The download of {url} broke off {ATTEMPTS} times; run it again to resume, or {ALTERNATIVES}.")
    checksum = md5_of(part)
    if checksum != md5:
        part.unlink()
        raise DataError(f"{url} sent another file than the published one (MD5 {checksum}, not {md5}): {ALTERNATIVES}.")
    os.replace(part, path)


def size_of(path: Path) -> int:
    """The bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def resume(url: str, part: Path, progress: Progress) -> None:
    """Append to `part` what it lacks of `url`; raises IncompleteDownload where the connection is lost."""
    have = size_of(part)
    headers = {"User-Agent": "fastcifar", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # range not satisfiable: `part` is whole, or of another file, which its checksum shows
            return
        raise DataError(f"{url} answered {error.code} ({error.reason}): {ALTERNATIVES}.") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url} cannot be reached ({reason}): {ALTERNATIVES}.") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DataError(f"{url} sent a web page, not an archive: {ALTERNATIVES}.")
        if response.status != 206:  # the server ignored the range and sends the file from its beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        append(response, part, have, total, progress)


def append(response: http.client.HTTPResponse, part: Path, have: int, total: int | None, progress: Progress) -> None:
    """Write the response to `part` from byte `have` on; raises DataError where it cannot be written."""
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
        raise IncompleteDownload("broke off")


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The bytes of a response as they arrive; raises IncompleteDownload where the connection is lost."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except TimeoutError:
            raise IncompleteDownload(f"stalled: nothing came for {TIMEOUT:g} seconds") from None
        except (OSError, http.client.HTTPException):
            raise IncompleteDownload("broke off") from None
        if not chunk:
            return
        yield chunk


def md5_of(path: Path) -> str:
    """The MD5 of a file, hexadecimal: the checksum that is published; it does not protect against an attacker."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
