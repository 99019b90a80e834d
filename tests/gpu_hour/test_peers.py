"""What published scripts print is read, and a copy of them makes as many runs as it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_peers import Run, Turn, read_table, read_trials, run_copy, table

AIRBENCH = """
---------------------------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
---------------------------------------------------------------------------------
|  warmup  |      0  |     0.1010  |   0.1000  |               |       20.1000  |
|          |   eval  |     0.1010  |   0.1000  |       0.1000  |       21.1000  |
---------------------------------------------------------------------------------
|       0  |      0  |     0.5010  |   0.5000  |               |        0.3000  |
|          |      1  |     0.9010  |   0.9300  |               |        2.3000  |
|          |   eval  |     0.9010  |   0.9300  |       0.9405  |        2.5000  |
---------------------------------------------------------------------------------
Mean: 0.9405    Std: nan
"""
HIVERGE = """
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
|  warmup  |   eval  |     0.1010  |   0.1000  |       0.1000  |       21.1000  |
|       1  |   eval  |     0.9810  |   0.9310  |       0.9399  |        1.9000  |
Mean accuracy after 1 runs: 0.939900 | Mean time: 1.900000s\r\
|       2  |   eval  |     0.9800  |   0.9310  |       0.9401  |        1.8000  |
"""
FULCRUM = """[build] e1 on NVIDIA H100 80GB HBM3 in 61.02s
[trial 1/2 id=0] train=1.7000s honest=1.8000s acc=0.9410
[trial 2/2 id=1] train=1.7100s honest=1.8100s acc=0.9400
"""


def test_what_each_peer_prints_is_read() -> None:
    assert list(read_table(AIRBENCH.splitlines())) == [None, Run(0.9405, with_evaluation=2.5)]
    assert list(read_table(HIVERGE.splitlines())) == [None, Run(0.9399, 1.9), Run(0.9401, 1.8)]
    trials = [Run(0.941, without_evaluation=1.8), Run(0.94, without_evaluation=1.81)]
    assert list(read_trials(FULCRUM.splitlines())) == [None, *trials]
    assert list(read_table(["Traceback (most recent call last):", "| a | b |"])) == []


def test_a_copy_makes_other_numbers_of_runs(tmp_path: Path) -> None:
    script = tmp_path / "speedrun.py"
    script.write_text("print(len([i for i in range(200)]), 200)\n")
    copy = Path(run_copy(script, tmp_path, 0, 7)[-1])
    assert copy != script and copy.read_text() == "print(len([i for i in range(7)]), 200)\n"
    script.write_text("for run in range(100): pass\n")
    with pytest.raises(ValueError, match="number of runs"):
        run_copy(script, tmp_path, 0, 7)


def test_what_the_clock_leaves_out_is_shown() -> None:
    turns = [
        Turn("fast94", [Run(0.94, 1.0, 0.9), Run(0.942, 1.2, 1.1)], process_s=12.2),
        Turn("e1", [Run(0.941, None, 1.8)], process_s=91.8, ready_s=80.0),
        Turn("e1", [], process_s=5.0),
    ]
    rows = table(turns).splitlines()[2:]
    assert rows[0].startswith("| fast94 | 2 | 1.100 ± ") and rows[0].endswith("| 1.100 | 94.10 ± 1.27 % | 10.0 |")
    assert rows[1] == "| e1 | 1 |  | 1.800 | 1.800 | 94.10 % | 90.0, 5.0 |"
