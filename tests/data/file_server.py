"""Real local HTTP servers with one file: good, slow, down, cut off, or answering nonsense."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fastcifar.data.fetch import RemoteFile

CONTENT = b"\x1f\x8b" + bytes(range(256)) * 4000
DOWN = "http://127.0.0.1:9/archive.tar.gz"  # nothing listens there


class Server(ThreadingHTTPServer):
    """Serves `content`, as its attributes say."""

    daemon_threads = True
    content = CONTENT
    status = 200
    reason: str | None = None
    kind = "application/gzip"
    ranges = True
    chunked = False
    cut_after: int | None = None  # bytes of one answer, then the connection breaks
    stall_after: int | None = None  # bytes of one answer, then silence
    rate: float | None = None  # bytes per second
    location: str | None = None  # redirect to this address

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.headers: dict[str, str | None] = {}  # in place of the right ones; None: left out
        self.requested: list[int] = []  # the first byte of each request

    @property
    def url(self) -> str:
        return f"http://{self.name}/archive.tar.gz"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may leave at any time."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        self.close_connection = True
        requested = self.headers.get("Range", "bytes=0-")
        start = int(requested.removeprefix("bytes=").removesuffix("-"))
        server.requested.append(start)
        if not server.ranges:
            start = 0
        if server.location is not None:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif start and start >= len(server.content):
            self.send_error(416)
        elif server.status >= 300:
            self.send_error(server.status, server.reason)
        else:
            self.send_file(start)

    def send_file(self, start: int) -> None:
        server, size = self.server, len(self.server.content)
        self.send_response(server.status if server.status != 200 else 206 if start else 200, server.reason)
        headers: dict[str, str | None] = {"Content-Type": server.kind, "Content-Length": str(size - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if server.chunked:
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        for name, value in (headers | server.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        end = next((start + most for most in (server.cut_after, server.stall_after) if most is not None), size)
        step = size if server.rate is None else max(1, int(server.rate / 50))
        for first in range(start, min(end, size), step):
            self.send_bytes(server.content[first : min(first + step, end)])
            if server.rate is not None:
                time.sleep(step / server.rate)
        if server.stall_after is not None:
            time.sleep(5)
        elif server.cut_after is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif server.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def send_bytes(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content) if self.server.chunked else content)
        self.wfile.flush()


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server, answering until the block ends."""
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def remote(*urls: str, content: bytes = CONTENT) -> RemoteFile:
    """The file with this content, at these addresses."""
    return RemoteFile(urls, len(content), hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest())
