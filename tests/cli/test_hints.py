"""Names that people know from other programs lead to ours."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import Call

from fastcifar.cli.app import COMMANDS
from fastcifar.cli.display.screen import Screen
from fastcifar.cli.options import WITH_SETTINGS, Session, usage_hint
from fastcifar.errors import FOREIGN, UsageError, nearest
from fastcifar.recipes.parse import recipe_keys
from fastcifar.system.device import pick_device
from fastcifar.training.engine import choose_engine


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train tiny --epochs 4", "No such option: --epochs; use --set training.epochs=4."),
        ("train tiny --epochs=4", "use --set training.epochs=4."),
        ("bench tiny --lr 0.1", "No such option: --lr; use --set optimizer.filters.lr=0.1."),
        ("profile tiny --batch-size 100", "use --set training.batch_size=100."),
        ("profile tiny --batch_size 100", "use --set training.batch_size=100."),
        ("train tiny --optimizer sgd", "use --set optimizer.filters.method=sgd."),
        ("train tiny --optimizer adam", "use --set optimizer.filters.method=VALUE."),
        ("train tiny --precision fp16", "use --set training.precision=half."),
        ("train tiny --lr", "use --set optimizer.filters.lr=VALUE."),
        ("train tiny --widths [8,8,8]", "use --set network.widths='[8,8,8]'."),
        ("train tiny --gpu 0", "No such option: --gpu; use --device cuda."),
        ("train tiny --workers 3", "use --threads."),
        ("eval x --output-dir y", "use --out."),
        ("train tiny --wibble", "No such option: --wibble."),
        ("eval x --epochs 3", "No such option: --epochs ("),
    ],
)
def test_an_option_of_other_programs_leads_to_ours(arguments: str, said: str, call: Call) -> None:
    done = call(*arguments.split())
    assert done.code == 2 and said in done.err


def test_other_messages_are_sentences() -> None:
    assert usage_hint("Missing argument 'RECIPES'") == "Missing argument 'RECIPES'."
    assert usage_hint("Did you mean that?") == "Did you mean that?"


def test_the_table_leads_to_what_there_is() -> None:
    keys = set(recipe_keys())
    assert {ours for ours in FOREIGN.values() if "." in ours} <= keys
    assert set(WITH_SETTINGS) <= COMMANDS.keys()


def test_a_device_by_another_name() -> None:
    for name in ("gpu", "GPU", "gpu:1", "nvidia"):
        with pytest.raises(UsageError, match="did you mean 'cuda'"):
            pick_device(name)
    assert nearest("gpu", ("cpu", "mps")) == "did you mean 'cpu'?", "ours is only named where it is there"


def test_quiet_keeps_only_warnings_about_the_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = dataclasses.replace(choose_engine("eager", torch.device("cpu")), note="There is no compiler.")
    monkeypatch.setattr("fastcifar.training.engine.choose_engine", lambda name, device: engine)
    for quiet in (True, False):
        screen = Screen(quiet=quiet)
        Session(screen, torch.device("cpu")).engine("eager")
        screen.warn("Times are not its own.")
        err = capsys.readouterr().err
        assert ("no compiler" in err) is not quiet and "Times are not its own" in err
