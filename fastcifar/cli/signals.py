"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is finished is kept. A second signal ends it at once."""

from __future__ import annotations

import signal
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

received: list[int] = []  # the first signal that asked this process to end


def install() -> None:
    """Handle the signals that ask a process to end; one that the parent has this process ignore (nohup) stays so."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def exit_code() -> int:
    """128 and the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (received[0] if received else signal.SIGINT)


def _end(number: int, frame: FrameType | None) -> None:
    received.append(number)
    for each in ENDING:
        if signal.getsignal(each) is _end:
            signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt
