"""Whole steps with our Triton kernels, interpreted on the CPU: in a process of its own, for Triton reads its variable
TRITON_INTERPRET when kernels are defined."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # an interpreted step takes seconds
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not here")
def test_interpreted() -> None:
    script = Path(__file__).with_name("interpreted_engine.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(script)]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
