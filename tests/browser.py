"""Headless Chromium for tests of pages: opened, clicked and asked through its DevTools protocol over a pipe.

Debian's package `chromium`; tests skip where no such program is installed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
PATIENCE = 60.0  # seconds for an answer


class Browser:
    """One page of a browser, in a `with` block. `errors` holds what its console complained of, `requests` what the
    page asked for besides itself."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        self.count = 0
        self.answers: dict[int, dict[str, Any]] = {}
        self.unread = b""
        to_read, self.out = os.pipe()
        self.incoming, to_write = os.pipe()

        # Chromium reads commands from descriptor 3 and writes to 4.
        keep = (to_read, to_write)
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", shell, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [*command, "about:blank"], pass_fds=keep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for number in keep:
            os.close(number)
        self.session: str | None = None

    def __enter__(self) -> Self:
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in targets if each["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.incoming)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while self.count not in self.answers:
            self.receive()
        answer = self.answers.pop(self.count)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def receive(self) -> None:
        """Wait for the next messages and take them in."""
        ready, _, _ = select.select([self.incoming], [], [], PATIENCE)
        assert ready, "the browser does not answer"
        part = os.read(self.incoming, 1 << 20)
        assert part, "the browser has ended"
        *whole, self.unread = (self.unread + part).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self.answers[message["id"]] = message
            else:
                self.note(message["method"], message.get("params", {}))

    def note(self, method: str, event: dict[str, Any]) -> None:
        """Keep what a test may ask for."""
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(event["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.errors.append(str(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def open(self, page: Path, width: int = 1400, height: int = 1000, dark: bool = False) -> float:
        """Open a page at that size, in light or dark; returns the seconds until it was loaded and laid out."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded, self.errors, self.requests = False, [], []
        began = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        while not self.loaded:
            self.receive()
        self.ask("document.body.getBoundingClientRect().height")
        self.requests = [url for url in self.requests if url != page.as_uri() and not url.startswith("data:")]
        return time.monotonic() - began

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of an element in the window, after scrolling to it."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.ask(f"{found}.getBoundingClientRect().toJSON()")
        return box["left"], box["top"], box["right"], box["bottom"]

    def mouse(self, kind: str, x: float, y: float, pressed: bool = False) -> None:
        """One event of the mouse: moved, pressed or released."""
        button = {} if kind == "moved" and not pressed else {"button": "left", "clickCount": 1}
        buttons = int(pressed)
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind.capitalize()}", x=x, y=y, buttons=buttons, **button)

    def hover(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        left, top, right, bottom = self.place(selector)
        self.mouse("moved", (left + right) / 2, (top + bottom) / 2)

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        left, top, right, bottom = self.place(selector)
        x, y = (left + right) / 2, (top + bottom) / 2
        self.mouse("moved", x, y)
        self.mouse("pressed", x, y, pressed=True)
        self.mouse("released", x, y)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse from one place in the window to another."""
        self.mouse("moved", *start)
        self.mouse("pressed", *start, pressed=True)
        self.mouse("moved", *end, pressed=True)
        self.mouse("released", *end)

    def screenshot(self, path: Path) -> None:
        """A picture of the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))
