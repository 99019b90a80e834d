"""The live views of bench and search, drawn from fixed states."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch
from bench_helpers import run
from rich.console import Console, RenderableType

from fastcifar.bench.plan import BenchPlan, parse_contenders
from fastcifar.bench.records import Task
from fastcifar.bench.runner import Progress
from fastcifar.bench.search import load_candidates, plan_search
from fastcifar.cli.display.bench import BenchView, SearchView
from fastcifar.cli.display.screen import Screen
from fastcifar.data.store import load_dataset
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.engine import choose_engine
from fastcifar.training.trainer import Status

CPU = torch.device("cpu")


def drawn(renderable: RenderableType) -> str:
    console = Console(file=StringIO(), width=80, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture
def plan() -> BenchPlan:
    recipes, _ = parse_contenders(["tiny", "b=tiny"], ["b:training.epochs=2"])
    engines = dict.fromkeys(recipes, choose_engine("eager", CPU))
    return BenchPlan(recipes, engines, load_dataset("shapes"), CPU, range(4))


def test_a_bench_shows_what_is_done_and_what_runs(plan: BenchPlan) -> None:
    view = BenchView(Screen(), plan)
    assert "starting" in drawn(view.draw())
    progress = Progress(8, [run("tiny", 0, 0.9, 2.0), run("b", 0, None)])
    progress.task, progress.status = Task("b", 1), Status(total_steps=40, steps_per_epoch=20, steps_done=7)
    view.update(progress)
    screen = drawn(view.draw())
    assert "90.00" in screen and "1 (1 diverged)" in screen
    assert "2 of 8 runs; b, seed 1, step 7 of 40; " in screen and "to go" in screen
    progress.runs += [run("tiny", seed, 0.9) for seed in range(1, 7)]
    assert "8 of 8 runs" in drawn(view.draw()) and "step" not in drawn(view.draw())


def test_in_a_pipe_a_bench_has_a_line_a_new_run(plan: BenchPlan) -> None:
    view = BenchView(Screen(), plan)
    assert list(view.lines()) == []
    progress = Progress(8, [run("tiny", 0, 0.9)], before=1)
    view.update(progress)
    assert list(view.lines()) == [], "an earlier process made that one"
    progress.runs += [run("b", 0, None), run("b", 1, 0.95, 2.5, fraction=0.5), run("b", 2, None, error="Out of memory")]
    assert list(view.lines()) == [
        "b, seed 0: diverged",
        "b at 0.5, seed 1: 95.00 % in 2.50 s",
        "b, seed 2: Out of memory",
    ]
    assert list(view.lines()) == []


def test_a_search_shows_its_rungs_and_the_time_left(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[a]\ntraining.epochs = 2\n")
    recipes = load_candidates(tmp_path / "c.toml", load_recipe("tiny"))
    search = plan_search(recipes, load_dataset("shapes"), CPU, choose_engine("eager", CPU), 2.0)
    view = SearchView(Screen(), search)
    assert "starting" in drawn(view.draw())
    runs = [run(name, 1000, 0.9, at=at, fraction=0.25, wall_s=10.0) for name, at in (("base", 10.0), ("a", 20.0))]
    progress = Progress(0, [*runs, run("base", 1000, 0.93, 2.0, at=30.0, fraction=0.5, wall_s=10.0)])
    progress.task = Task("a", 1001, 0.25)
    view.update(progress)
    screen = drawn(view.draw())
    assert "at 0.25" in screen and "relative cost" in screen and "90.00" in screen
    assert "3 runs; a at 0.25, seed 1001; 90 s to go" in screen
