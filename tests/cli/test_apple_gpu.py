"""An Apple GPU is the default only where it trains as the CPU does; other devices stand in for one here."""

from __future__ import annotations

import pytest
import torch

from fastcifar.cli.display.screen import Screen
from fastcifar.cli.options import checked_apple_gpu


def test_a_device_that_trains_as_the_cpu_does_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked_apple_gpu(torch.device("cpu"), Screen(False, False)) == torch.device("cpu")
    assert "Apple" not in capsys.readouterr().err


def test_a_device_that_cannot_do_it_is_left_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    # A device without memory fails as one without an operator does.
    assert checked_apple_gpu(torch.device("meta"), Screen(False, False)) == torch.device("cpu")
    said = capsys.readouterr()
    assert "The CPU is used in place of the Apple GPU: " in said.out + said.err
