"""One HTTP server asked for a file from some byte on. What it answers is checked, never trusted."""

from __future__ import annotations

import re
import ssl
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

from fastcifar.data.dataset import Progress

CHUNK = 1 << 18  # bytes
GZIP = b"\x1f\x8b"  # how every archive begins
HANDLERS = (  # urllib's own, without those for ftp, file and data, to which a server could redirect
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)


@dataclass(frozen=True)
class Limits:
    """When a server is given up."""

    silence: float = 15.0  # seconds without a byte after which the connection counts as lost
    slow: float = 500e3  # bytes per second; a slower server is left where there is another
    window: float = 10.0  # seconds over which its speed is measured
    attempts: int = 3  # connections in a row, as long as each brings something


LIMITS = Limits()


class ServerError(Exception):
    """Why a server is left: a sentence without its subject, which is the server."""


class LostConnection(ServerError):
    """The connection ended before the file did; what has arrived is kept."""


class SlowServer(ServerError):
    """The server sends, but slowly."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"is slow ({rate / 1000:,.0f} kB/s)")
        self.rate = rate  # bytes per second


def size_of(path: Path) -> int:
    """The bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def receive(url: str, part: Path, size: int, patient: bool, progress: Progress, limits: Limits) -> None:
    """Write to `part` what it lacks of the file at `url`, which has `size` bytes.

    Raises ServerError: SlowServer (not with `patient`), LostConnection, or another where the server cannot give the
    file at all; OSError where `part` cannot be written.
    """
    response, done = request(url, size_of(part), size, limits)
    with response, open(part, "r+b" if part.exists() else "wb") as file:
        file.seek(done)
        progress("downloading", done, size)
        since, received = time.monotonic(), 0
        for chunk in chunks(response, limits):
            if done == 0 and not GZIP.startswith(chunk[: len(GZIP)]):
                raise ServerError("sent something else, not an archive")
            file.write(chunk[: size - done])
            done = min(done + len(chunk), size)
            received += len(chunk)
            progress("downloading", done, size)
            if done == size:
                return
            elapsed = time.monotonic() - since
            if elapsed >= limits.window:
                if not patient and received < limits.slow * elapsed:
                    raise SlowServer(received / elapsed)
                since, received = time.monotonic(), 0
    raise LostConnection("broke off")


def request(url: str, start: int, size: int, limits: Limits) -> tuple[HTTPResponse, int]:
    """The answer to a request for the file from byte `start` on, and the byte that it begins at: `start` or 0.

    Raises ServerError where the server cannot be reached, refuses, or has another file.
    """
    response = connect(url, start, limits)
    if start and (response is None or first_byte(response, start) not in (start, 0)):
        response, start = connect(url, 0, limits), 0  # a server whose ranges are nonsense
    if response is None:
        raise ServerError("answered 416 (Range Not Satisfiable)")
    first = first_byte(response, start)
    try:
        check_answer(response, size)
        if first not in (start, 0):
            raise ServerError("answered with a part of the file that was not requested")
    except ServerError:
        response.close()
        raise
    return response, first or 0


def connect(url: str, start: int, limits: Limits) -> HTTPResponse | None:
    """The answer of the server; None where it says that there is nothing from byte `start` on."""
    opener = urllib.request.OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    headers = {"User-Agent": "fastcifar", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response: HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=limits.silence)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:
            return None
        if 300 <= error.code < 400:
            raise ServerError(f"redirects in circles or to nowhere ({error.code})") from None
        raise ServerError(f"answered {error.code} ({printable(error.reason)})") from None
    except (OSError, HTTPException, ValueError) as error:
        raise ServerError(f"cannot be reached ({reason_of(error, limits)})") from None


def reason_of(error: Exception, limits: Limits) -> str:
    """What is behind an error of urllib."""
    inner = getattr(error, "reason", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {inner.verify_message}"
    if isinstance(inner, TimeoutError):
        return f"no answer in {limits.silence:g} seconds"
    return printable((inner.strerror if isinstance(inner, OSError) else None) or inner)


def printable(said: object) -> str:
    """What a server said, fit for a line in a terminal."""
    line = " ".join(str(said).split())
    return "".join(letter for letter in line if letter.isprintable())[:100]


def first_byte(response: HTTPResponse, start: int) -> int | None:
    """The byte of the file that an answer begins at; None where its header is nonsense."""
    if response.status != 206:
        return 0  # the whole file: the server ignores ranges
    header = response.headers.get("Content-Range")
    return start if header is None else content_range(header)[0]


def content_range(header: str) -> tuple[int | None, int | None]:
    """First byte and size of the file in a Content-Range header, each None where it is unknown or nonsense."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", header.strip(), re.ASCII)
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def check_answer(response: HTTPResponse, size: int) -> None:
    """Raise ServerError where an answer cannot be that of a file of `size` bytes."""
    if response.status not in (200, 206):
        raise ServerError(f"answered {response.status} ({printable(response.reason)})")
    if response.headers.get_content_type() == "text/html":
        raise ServerError("sent a web page, not an archive")
    total = response.length  # None where the header is missing or nonsense
    if response.status == 206:
        total = content_range(response.headers.get("Content-Range", ""))[1]
    if total not in (None, size):
        raise ServerError(f"has another file than the published one ({total:,} bytes, not {size:,})")


def chunks(response: HTTPResponse, limits: Limits) -> Iterator[bytes]:
    """The bytes of a response as they arrive; raises LostConnection where the connection is lost."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except TimeoutError:
            raise LostConnection(f"stalled: nothing came for {limits.silence:g} seconds") from None
        except (OSError, HTTPException, ValueError):
            raise LostConnection("broke off") from None
        if not chunk:
            return
        yield chunk
