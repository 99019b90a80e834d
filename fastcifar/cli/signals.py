"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is finished is kept. A second signal ends it at once.

All three raise KeyboardInterrupt in the main thread. While a module is imported it is raised again and again until it
has got through: PyTorch's modules catch every exception of some modules that they try to import, and go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from _thread import interrupt_main
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SAME = 0.5  # seconds in which further signals are the first one again: `timeout` and closed terminals send several
RETRY = 0.05  # seconds after which KeyboardInterrupt is raised again during an import
IMPORTING = "<frozen importlib._bootstrap>"  # the file name of the frames that import a module


class Received:
    """The first signal that asked this process to end."""

    number: int | None = None
    at = 0.0  # of time.monotonic()
    caught = False  # the command has ended because of it
    scheduled = False  # the handler will be called again
    again = False  # the next call of the handler is a retry of this signal, not a second one


received = Received()


def install() -> None:
    """Handle the signals that ask a process to end; one that the parent has this process ignore (nohup) stays so."""
    global received
    if threading.current_thread() is not threading.main_thread():
        return  # Python sets handlers in the main thread alone
    received = Received()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    sys.unraisablehook = retry_if_dropped


def exit_code() -> int:
    """128 and the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (received.number or signal.SIGINT)


def caught() -> None:
    """Stop raising KeyboardInterrupt: the command has ended."""
    received.caught = True


def end(number: int, frame: FrameType | None) -> None:
    """The handler: raises KeyboardInterrupt; a second signal ends the process at once."""
    now = time.monotonic()
    if received.number is None:
        received.number, received.at = number, now
        release_terminal()
    elif received.again:
        received.again = received.scheduled = False
    elif now - received.at > SAME:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    else:
        return
    if importing(frame):
        retry()
    if not (received.caught or handled(sys.exception())):
        raise KeyboardInterrupt


def handled(error: BaseException | None) -> bool:
    """Whether this is a KeyboardInterrupt, or came while one was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or one that called it."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False


def retry() -> None:
    """Have the handler called again in a moment, in the main thread."""

    def call() -> None:
        if not received.caught:
            received.again = True
            interrupt_main(signal.Signals(received.number or signal.SIGINT))

    if received.scheduled:
        return
    received.scheduled = True
    timer = threading.Timer(RETRY, call)
    timer.daemon = True
    timer.start()


def retry_if_dropped(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise a KeyboardInterrupt again that Python dropped, since it came in a finalizer."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt) and not sys.is_finalizing():
        retry()
    else:
        sys.__unraisablehook__(unraisable)


def release_terminal() -> None:
    """Send what is still printed nowhere, where the terminal is gone: writing to it would fail."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
