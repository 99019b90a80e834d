"""The screen and its views: what is printed where, and a reader of the output that leaves."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

import pytest

from fastcifar.cli.display.screen import PERIOD, Screen, View


class Count(View):
    """Prints a new line at each look."""

    calls = 0

    def lines(self) -> Iterable[str]:
        self.calls += 1
        yield f"line {self.calls}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Python ignores SystemExit there
def test_a_reader_that_leaves_ends_the_view_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work goes on, since its results are kept."""
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    screen = Screen()
    with Count(screen) as view:
        time.sleep(3 * PERIOD)
    assert view.calls == 1 and sys.stdout is None
    screen.result("done", {})
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as left:
        screen.result("done", {})
    assert left.value.code == 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # for what is left in the buffer
    stream.close()


def test_lines_in_a_pipe_and_none_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Count(Screen()):
        pass
    assert capsys.readouterr().out == "line 1\n"
    with Count(Screen(quiet=True)) as view:
        time.sleep(2 * PERIOD)
    assert view.calls == 0 and capsys.readouterr().out == ""


def test_json_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(as_json=True)
    with Count(screen):
        screen.note("a note")
    screen.warn("careful")
    screen.result("drawn", {"key": 1})
    out, err = capsys.readouterr()
    assert out == '{\n  "key": 1\n}\n'
    assert err == "a note\nline 1\nWarning: careful\n"
