"""Downloads from a real local server that stalls, breaks off, lies, or does what it should."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Official

from fastcifar.data import cifar, fetch
from fastcifar.data.store import dataset_path, download_dataset
from fastcifar.errors import DataError

CONTENT = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves `content`, as its attributes say."""

    daemon_threads = True
    content = CONTENT
    status = 200
    kind = "application/gzip"
    ranges = True
    stall_after: int | None = None  # bytes, then silence
    cut_after: int | None = None  # bytes of one answer, then the connection breaks

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges_requested: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        server.ranges_requested.append(requested)
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        body = server.content[start:]
        if server.stall_after is not None:
            self.wfile.write(body[: server.stall_after])
            self.wfile.flush()
            time.sleep(5)
        elif server.cut_after is not None:
            self.wfile.write(body[: server.cut_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar.gz"


def sum_of(content: bytes) -> str:
    return md5(content).hexdigest()


def test_a_whole_download_with_progress(server: Server, target: Path) -> None:
    states: list[tuple[str, int, int | None]] = []
    fetch.fetch(server.url, target, sum_of(CONTENT), lambda *state: states.append(state))
    assert target.read_bytes() == CONTENT
    assert states[0] == ("downloading", 0, len(CONTENT)) and states[-1] == ("downloading", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in states] == sorted(done for _, done, _ in states)
    assert not target.with_name(target.name + ".part").exists()


def test_a_broken_download_resumes_by_itself(server: Server, target: Path) -> None:
    server.cut_after = len(CONTENT) // 2
    fetch.fetch(server.url, target, sum_of(CONTENT))
    assert target.read_bytes() == CONTENT
    assert server.ranges_requested == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_download_that_breaks_too_often_resumes_next_time(server: Server, target: Path) -> None:
    server.cut_after = 100_000
    with pytest.raises(DataError, match="broke off 3 times; run it again to resume"):
        fetch.fetch(server.url, target, sum_of(CONTENT))
    part = target.with_name(target.name + ".part")
    assert part.read_bytes() == CONTENT[:300_000]
    server.cut_after = None
    fetch.fetch(server.url, target, sum_of(CONTENT))
    assert target.read_bytes() == CONTENT and server.ranges_requested[-1] == "bytes=300000-"


def test_a_server_that_knows_no_ranges_starts_again(server: Server, target: Path) -> None:
    target.with_name(target.name + ".part").write_bytes(b"x" * 1000)
    server.ranges = False
    fetch.fetch(server.url, target, sum_of(CONTENT))
    assert target.read_bytes() == CONTENT


def test_a_part_that_was_whole_already(server: Server, target: Path) -> None:
    target.with_name(target.name + ".part").write_bytes(CONTENT)
    fetch.fetch(server.url, target, sum_of(CONTENT))
    assert target.read_bytes() == CONTENT


def test_a_part_of_another_file_is_removed(server: Server, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    part.write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="another file than the published one"):
        fetch.fetch(server.url, target, sum_of(CONTENT))
    assert not part.exists() and not target.exists()
    fetch.fetch(server.url, target, sum_of(CONTENT))


def test_other_content_is_refused(server: Server, target: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match="another file than the published one"):
        fetch.fetch(server.url, target, sum_of(CONTENT))
    assert not target.exists()


def test_silence_ends_at_the_timeout(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    server.stall_after = 0
    begin = time.monotonic()
    with pytest.raises(DataError, match="stalled: nothing came for 0.3 seconds"):
        fetch.fetch(server.url, target, sum_of(CONTENT))
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("status", [404, 500, 403])
def test_a_server_that_refuses(status: int, server: Server, target: Path) -> None:
    server.status = status
    with pytest.raises(DataError, match=f"answered {status}.*--from PATH.*--url.*--dataset shapes"):
        fetch.fetch(server.url, target, sum_of(CONTENT))


def test_a_web_page(server: Server, target: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DataError, match="sent a web page"):
        fetch.fetch(server.url, target, sum_of(CONTENT))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://no-such-host.invalid/x", "nonsense", "ftp://"])
def test_an_address_without_a_server(url: str, target: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match="cannot be reached"):
        fetch.fetch(url, target, sum_of(CONTENT))
    assert time.monotonic() - begin < 10


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        fetch.fetch(server.url, tmp_path / "file" / "archive", sum_of(CONTENT))


def test_download_from_a_mirror_gives_the_dataset(official: Official, server: Server, no_home: Path) -> None:
    server.content = official.archive.read_bytes()
    dataset = download_dataset("cifar10", server.url)
    assert dataset.published and len(dataset.train.labels) == 40
    assert [path.name for path in no_home.iterdir() if not path.name.startswith(".")] == ["cifar10.pt"]
    download_dataset("cifar10", server.url)  # on this machine already: nothing is requested again
    assert len(server.ranges_requested) == 1


def test_the_published_address_is_the_default(
    official: Official, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dataclasses.replace(official.facts, url=server.url)
    monkeypatch.setattr(cifar, "published_facts", lambda name: facts)
    server.content = official.archive.read_bytes()
    assert download_dataset("cifar10").source == server.url


class Chunked(BaseHTTPRequestHandler):
    """Names no length; breaks off in the middle of the first answer."""

    protocol_version = "HTTP/1.1"
    content = bytes(range(256)) * 1000

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        self.send_response(206 if start else 200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        part = self.content[start:] if start else self.content[:100_000]
        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if start:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@pytest.fixture
def chunked() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chunked)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar.gz"
    server.shutdown()
    server.server_close()


def test_a_stream_of_unknown_length_that_breaks_off_resumes(chunked: str, tmp_path: Path) -> None:
    fetch.fetch(chunked, tmp_path / "a", md5(Chunked.content).hexdigest())
    assert (tmp_path / "a").read_bytes() == Chunked.content


def test_an_archive_that_is_whole_is_not_downloaded_again(official: Official, no_home: Path) -> None:
    no_home.mkdir()
    (no_home / official.facts.archive).write_bytes(official.archive.read_bytes())
    dataset = download_dataset("cifar10")  # there is no server at the address
    assert dataset.source == official.facts.url
    assert not (no_home / official.facts.archive).exists()


def test_a_dataset_that_is_here_is_verified_not_trusted(official: Official, no_home: Path) -> None:
    no_home.mkdir()
    (no_home / official.facts.archive).write_bytes(official.archive.read_bytes())
    kept = dataset_path("cifar10")
    content = download_dataset("cifar10").train.images.numpy().tobytes()[:64]
    changed = bytearray(kept.read_bytes())
    changed[changed.index(content)] ^= 1
    kept.write_bytes(changed)
    with pytest.raises(DataError, match="content has changed"):
        download_dataset("cifar10", "http://127.0.0.1:9/mirror")


def test_ctrl_c_keeps_the_part_and_nothing_else(server: Server, no_home: Path) -> None:
    server.stall_after = 200_000
    command = [sys.executable, "-m", "fastcifar", "download", "--url", server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = no_home / "cifar-10-python.tar.gz.part"
    for _ in range(600):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in err and "Traceback" not in err
    assert [path.name for path in no_home.iterdir() if not path.name.startswith(".")] == [part.name]
