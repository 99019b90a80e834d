"""One server that is alone: it stalls, breaks off, lies, answers nonsense, or does what it should."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import CONTENT, Server, remote, serving

from fastcifar.data.fetch import fetch
from fastcifar.data.server import Limits
from fastcifar.errors import DataError

HALF = len(CONTENT) // 2
QUICK = Limits(silence=0.5)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar.gz"


@pytest.fixture
def part(target: Path) -> Path:
    """Where an unfinished download is kept."""
    return target.with_name(target.name + ".part")


def test_a_whole_download_with_progress(server: Server, target: Path, part: Path) -> None:
    states: list[tuple[str, int, int | None]] = []
    assert fetch(remote(server.url), target, lambda *state: states.append(state)) == server.url
    assert target.read_bytes() == CONTENT
    assert states[0] == ("downloading", 0, len(CONTENT)) and states[-1] == ("downloading", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in states] == sorted(done for _, done, _ in states)
    assert not part.exists()


def test_a_broken_download_resumes_by_itself(server: Server, target: Path) -> None:
    server.cut_after = HALF
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT
    assert server.requested == [0, HALF]


def test_a_download_that_breaks_too_often_resumes_next_time(server: Server, target: Path, part: Path) -> None:
    server.cut_after = 100_000
    with pytest.raises(DataError, match="broke off 3 times; run it again to resume"):
        fetch(remote(server.url), target)
    assert part.read_bytes() == CONTENT[:300_000]
    server.cut_after = None
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT and server.requested[-1] == 300_000


def test_a_part_that_was_whole_already(server: Server, target: Path, part: Path) -> None:
    part.write_bytes(CONTENT)
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT and server.requested == []


@pytest.mark.parametrize("length", [1000, len(CONTENT), len(CONTENT) + 5])
def test_a_part_of_another_file_is_downloaded_anew(length: int, server: Server, target: Path, part: Path) -> None:
    part.write_bytes(b"x" * length)
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT and server.requested[-1] == 0


def test_other_content_is_refused(server: Server, target: Path, part: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match="another file than the published one"):
        fetch(remote(server.url), target)
    assert not target.exists() and not part.exists()
    assert server.requested == [0]


def test_the_right_md5_is_not_enough(server: Server, target: Path) -> None:
    with pytest.raises(DataError, match="another file than the published one"):
        fetch(replace(remote(server.url), sha256="0" * 64), target)
    assert not target.exists()


def test_silence_ends_at_the_timeout(server: Server, target: Path) -> None:
    server.stall_after = 0
    begin = time.monotonic()
    with pytest.raises(DataError, match="stalled: nothing came for 0.5 seconds"):
        fetch(remote(server.url), target, limits=QUICK)
    assert time.monotonic() - begin < 4


def test_a_slow_server_that_is_alone_is_not_left(server: Server, target: Path) -> None:
    server.rate = 400_000
    fetch(remote(server.url), target, limits=Limits(slow=1e12, window=0.1))
    assert target.read_bytes() == CONTENT and server.requested == [0]


@pytest.mark.parametrize("status", [404, 500, 403])
def test_a_server_that_refuses(status: int, server: Server, target: Path) -> None:
    server.status = status
    with pytest.raises(DataError, match=f"answered {status}.*--from PATH.*--url.*--dataset shapes"):
        fetch(remote(server.url), target)


def test_what_a_server_says_cannot_move_the_cursor(server: Server, target: Path) -> None:
    server.status, server.reason = 503, "no\x1b[2J" + "o" * 500
    with pytest.raises(DataError) as caught:
        fetch(remote(server.url), target)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_web_page(server: Server, target: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DataError, match="sent a web page"):
        fetch(remote(server.url), target)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://no-such-host.invalid/x", "nonsense", "ftp://"])
def test_an_address_without_a_server(url: str, target: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match="cannot be reached"):
        fetch(remote(url), target)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[::1", "http://a:b/", "http:///x"])
def test_an_address_that_is_nonsense(url: str, target: Path) -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        fetch(remote(url), target)


# --------------------------------------------------------------------------------------------- nonsense in headers


@pytest.mark.parametrize("length", [None, "-5", "many", "12, 12", "9" * 5000])
def test_a_length_that_is_nonsense_is_ignored(length: str | None, server: Server, target: Path) -> None:
    server.headers["Content-Length"] = length
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT


def test_a_length_of_another_file(server: Server, target: Path, part: Path) -> None:
    server.headers["Content-Length"] = "1000"
    with pytest.raises(DataError, match="has another file than the published one .1,000 bytes, not 1,024,002."):
        fetch(remote(server.url), target)
    assert not part.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "items 1-2/3",
        "bytes",
        f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}",  # another part than the one that is lacking
        f"bytes */{len(CONTENT)}",
    ],
)
def test_a_range_that_is_nonsense(answer: str, server: Server, target: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:HALF])
    server.headers["Content-Range"] = answer
    with pytest.raises(DataError, match="broke off"):  # on each new request from the beginning, which is cut short
        server.cut_after = 10
        fetch(remote(server.url), target)
    assert part.read_bytes() == CONTENT[:HALF] and server.requested[:2] == [HALF, 0]
    server.cut_after = None
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT


def test_a_range_that_is_not_there_or_of_another_file(server: Server, target: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:HALF])
    server.headers["Content-Range"] = f"bytes {HALF}-{HALF + 9}/{HALF + 10}"
    with pytest.raises(DataError, match="has another file"):
        fetch(remote(server.url), target)
    server.headers["Content-Range"] = None  # no word of where it begins: the checksums decide
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT


def test_a_part_that_nobody_requested(server: Server, target: Path) -> None:
    server.status = 206
    server.headers["Content-Range"] = f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"
    with pytest.raises(DataError, match="a part of the file that was not requested"):
        fetch(remote(server.url), target)


def test_a_server_that_ignores_ranges_starts_again_and_loses_nothing(server: Server, target: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:HALF])
    server.ranges, server.cut_after = False, 1000
    server.headers["Accept-Ranges"] = "none"
    with pytest.raises(DataError, match="broke off"):
        fetch(remote(server.url), target)
    assert part.read_bytes() == CONTENT[:HALF]
    server.cut_after = None
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_says_416_to_every_range(server: Server, target: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:HALF])
    server.content = CONTENT[: HALF - 1]  # shorter than what is here
    with pytest.raises(DataError, match="has another file"):
        fetch(remote(server.url), target)
    assert server.requested == [HALF, 0] and part.exists()


def test_a_stream_of_unknown_length_that_breaks_off_resumes(server: Server, target: Path) -> None:
    server.chunked, server.cut_after = True, HALF
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT and server.requested == [0, HALF]


def test_a_stream_that_never_ends(server: Server, target: Path) -> None:
    server.chunked = True
    server.content = CONTENT + b"x" * 10_000_000
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "nonsense"])
def test_an_archive_that_is_labelled_as_compressed_is_kept_as_it_is(
    encoding: str, server: Server, target: Path
) -> None:
    server.headers["Content-Encoding"] = encoding
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT


def test_an_archive_that_is_compressed_once_more(server: Server, target: Path) -> None:
    server.headers["Content-Encoding"] = "gzip"
    server.content = gzip.compress(CONTENT)
    with pytest.raises(DataError, match="has another file"):
        fetch(remote(server.url), target)


def test_a_captive_portal_that_says_it_sends_bytes(server: Server, target: Path, part: Path) -> None:
    server.content, server.chunked = b"<html>Accept our terms first.</html>", True
    with pytest.raises(DataError, match="sent something else, not an archive"):
        fetch(remote(server.url), target)
    assert not part.exists() or not part.stat().st_size


@pytest.mark.parametrize("status", [204, 203, 299])
def test_an_answer_that_is_no_file(status: int, server: Server, target: Path) -> None:
    server.status = status
    with pytest.raises(DataError, match=f"answered {status}"):
        fetch(remote(server.url), target)


# ------------------------------------------------------------------------------------------------ redirects, TLS


def test_a_redirect_is_followed_with_the_range(server: Server, target: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:HALF])
    with serving(Server()) as first:
        first.location = server.url
        fetch(remote(first.url), target)
    assert target.read_bytes() == CONTENT and server.requested == [HALF]


@pytest.mark.parametrize("location", ["/archive.tar.gz", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[x", ""])
def test_a_redirect_to_itself_or_to_nowhere(location: str, server: Server, target: Path) -> None:
    server.location = location
    with pytest.raises(DataError, match="redirects in circles|cannot be reached") as caught:
        fetch(remote(server.url), target)
    assert "\n" not in str(caught.value)


def test_a_certificate_that_nobody_vouches_for(target: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    try:
        subprocess.run([*command, "-keyout", certificate, "-out", tmp_path / "c"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c", certificate)
    with serving(Server()) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(DataError, match="its certificate is not valid: self.signed certificate"):
            fetch(remote(server.url.replace("http:", "https:")), target)


def test_a_server_without_tls(server: Server, target: Path) -> None:
    with pytest.raises(DataError, match="cannot be reached .*SSL"):
        fetch(remote(server.url.replace("http:", "https:")), target)


# ------------------------------------------------------------------------------------------------ writing the part


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        fetch(remote(server.url), tmp_path / "file" / "archive")


def test_a_limit_on_the_size_of_files(server: Server, target: Path, part: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written: File too large; raise the limit.*ulimit -f"):
            fetch(remote(server.url), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fetch(remote(server.url), target)
    assert target.read_bytes() == CONTENT and server.requested[-1] > 0


def test_ctrl_c_keeps_the_part_and_nothing_else(server: Server, no_home: Path) -> None:
    server.stall_after = 200_000
    server.headers["Content-Length"] = None
    command = [sys.executable, "-m", "fastcifar", "download", "--url", server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    part = no_home / "cifar-10-python.tar.gz.part"
    for _ in range(600):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in err and "Traceback" not in err
    assert [path.name for path in no_home.iterdir() if not path.name.startswith(".")] == [part.name]
