"""The share of the processors that others use."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fastcifar.system.processors import ProcessorTimes, processor_times


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_is_busy_without_us_is_the_load_of_others() -> None:
    before = ProcessorTimes(total=1000, busy=500, own=100)
    assert ProcessorTimes(total=1200, busy=600, own=150).other_load(before) == pytest.approx(50 / 200)
    assert ProcessorTimes(total=1200, busy=550, own=151).other_load(before) == 0, "clocks are coarse"
    assert before.other_load(before) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says")
def test_own_work_is_not_anothers() -> None:
    before = processor_times()
    spin(0.3)
    after = processor_times()
    assert before and after
    assert after.own - before.own >= 0.28 * os.sysconf("SC_CLK_TCK")
    assert after.busy > before.busy and after.total > before.total
    load = after.other_load(before)
    assert load is not None and 0 <= load <= 1
    assert load <= (after.busy - before.busy) / (after.total - before.total)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says")
def test_ranks_of_one_torchrun_count_as_one() -> None:
    code = (
        "from fastcifar.system.processors import processor_times as p\n"
        "import subprocess, sys, time\n"
        "alone, together = p().own, p(siblings=True).own\n"
        "print(together - alone)"
    )
    spinning = "import time\nwhile time.process_time() < 1: pass\ntime.sleep(60)"
    sibling = subprocess.Popen([sys.executable, "-c", spinning])
    try:
        time.sleep(2)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finally:
        sibling.kill()
        sibling.wait()
    assert float(done.stdout) >= 0.3 * os.sysconf("SC_CLK_TCK")
