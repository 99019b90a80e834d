"""What `train` and `eval` show, drawn from fixed results at 80 columns and compared with golden files."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers import drawn, golden

from fastcifar.cli.display.screen import Screen
from fastcifar.cli.display.training import ProgressView, TrainView, evaluation_report, summary_from_document
from fastcifar.training.trainer import Epoch, Status

EPOCHS = [
    Epoch(1, 21.53, 2322.4, 1.61234, 0.60125, 0.0512, 0.6834),
    Epoch(2, 21.11, 2368.5, 1.10042, 0.81237, 0.0012, None),
]
LOSSES = [2.3, 1.9, 1.6, 1.5, 1.3, 1.2, 1.1, 1.05, 1.0, 0.98]
DOCUMENT: dict[str, Any] = {
    "command": "train",
    "version": "0.1.0",
    "torch": "2.14.1",
    "device": "AMD EPYC 7B13, 2 threads",
    "recipe": "quick90",
    "dataset": "cifar10",
    "seed": 7,
    "engine": "compiled",
    "flops": 12_345_678_901_234,
    "tflops_per_s": 0.1523,
    "accuracy": 0.9034,
    "accuracy_no_tta": 0.8971,
    "accuracy_on": "the test images",
    "train_s": 81.07,
    "epochs_s": 74.63,
    "eval_s": 6.44,
    "setup_s": 4.21,
    "wall_s": 86.9,
    "peak_memory": 1_503_238_553,
    "checkpoint": "runs/quick90-7-20261124-120000/checkpoint.pt",
}
EVALUATION: dict[str, Any] = {
    "accuracy": 0.9034,
    "images": 10_000,
    "tta": "full",
    "per_class": {"cat": 0.8123, "dog": 0.87, "ship": None},
    "confusion": [[812, 150, 38], [97, 870, 33], [0, 0, 0]],
}


def status(**values: Any) -> Status:
    """Half-way through the third of four epochs of 50 steps."""
    return Status(
        200,
        50,
        **{"steps_done": 125, "trained_s": 53.3, "loss": 0.98765, "epochs": list(EPOCHS), "losses": LOSSES, **values},
    )


@pytest.fixture
def view() -> TrainView:
    """The view of a training on a CPU with an evaluation after each epoch."""
    return TrainView(Screen(), "cpu", with_test=True)


def test_a_training(view: TrainView) -> None:
    screens = [drawn(view.draw())]
    for shown in (status(), status(stage="evaluating", steps_done=200), status(stage="done", steps_done=200)):
        view.update(shown)
        screens.append(drawn(view.draw()))
    golden("train_live.txt", "\n".join(screens))


def test_a_training_in_a_pipe(view: TrainView) -> None:
    view.update(status())
    lines = list(view.lines())
    assert len(lines) == 1, "the test accuracy of the second epoch is still to come"
    assert not list(view.lines()), "each epoch is printed once"
    view.update(status(stage="evaluating"))
    golden("train_lines.txt", "\n".join([*lines, *view.lines()]))


def test_a_summary() -> None:
    golden("train_summary.txt", drawn(summary_from_document(DOCUMENT)))


def test_an_evaluation() -> None:
    golden("eval.txt", drawn(evaluation_report(EVALUATION, ["cat", "dog", "ship"])))


@pytest.mark.parametrize("classes", [20, 21, 100])
def test_many_classes_are_listed_by_the_worst_and_the_best(classes: int) -> None:
    shares = {f"class{i}": (11 * i % classes) / classes for i in range(classes)}
    found = {**EVALUATION, "per_class": shares, "confusion": [[0] * classes] * classes}
    lines = [line.strip().split(maxsplit=1) for line in drawn(evaluation_report(found, list(shares))).splitlines()]
    rows = [words for words in lines if words and (words[0].startswith("class") or words[0] == "…")]
    if classes == 20:
        assert rows == [[name, f"{100 * share:.2f} %"] for name, share in shares.items()]
        return
    ranked = sorted(shares.items(), key=lambda row: row[1])
    expected = [[name, f"{100 * share:.2f} %"] for name, share in (*ranked[:10], *ranked[-10:])]
    assert rows == [*expected[:10], ["…", f"{classes - 20} more, which --json has"], *expected[10:]]


def test_of_many_classes_those_without_images_are_not_listed() -> None:
    shares = {f"class{i}": 0.25 if i in (7, 50) else None for i in range(100)}
    out = drawn(evaluation_report({"accuracy": 0.25, "images": 8, "tta": "none", "per_class": shares}, list(shares)))
    assert [line.split() for line in out.splitlines()[1:]] == [["class50", "25.00", "%"], ["class7", "25.00", "%"]]


def test_an_evaluation_of_single_images() -> None:
    probabilities = [{"class": "cat", "probability": 0.87654}, {"class": "dog", "probability": 0.1}]
    document = {"accuracy": None, "images": 1, "predictions": [{"file": "pets/tom.png", "classes": probabilities}]}
    assert drawn(evaluation_report(document, [])) == "pets/tom.png: cat 87.7 %, dog 10.0 %\n"


def test_downloads_and_other_tasks() -> None:
    view = ProgressView(Screen())
    view.update("downloading", 85_000_000, 170_498_071)
    view.update("hashing", 1, 2)
    screen = drawn(view.draw()).splitlines()
    assert screen[0].startswith("downloading ━") and "85.0/170.5 MB" in screen[0]
    assert screen[1].startswith("hashing ━") and screen[1].rstrip().endswith("1/2")
    view.update("hashing", 2, 2)
    assert list(view.lines()) == ["downloading …", "hashing …"] and not list(view.lines())


def test_the_latest_epochs_that_fit_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "24")
    view = TrainView(Screen(), "cpu", with_test=False)
    view.update(status(epochs=[dataclasses.replace(EPOCHS[0], epoch=number) for number in range(1, 101)]))
    live = drawn(view.draw()).splitlines()
    assert len(live) < 24 and any(line.split()[:1] == ["100"] for line in live) and "epoch" in live[1]
    view.ended = True
    numbers = [line.split()[0] for line in drawn(view.draw()).splitlines() if line.split()]
    assert [number for number in numbers if number.isdigit()] == [str(i) for i in range(1, 101)]


def test_the_curve_fits_a_narrow_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    view = TrainView(Screen(), "cpu", with_test=False)
    view.update(status(losses=[float(i) for i in range(100, 0, -1)]))
    curve = drawn(view.draw(), width=30).splitlines()[-1]
    assert curve == "loss 100.000 █▇▇▆▅▅▄▃▂▂▁ 1.000", "30 characters"


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]cat", "a:dog:", "[/]ship"]
    Screen().result(evaluation_report({**EVALUATION, "per_class": dict.fromkeys(names, 0.5)}, names), {})
    out = capsys.readouterr().out
    assert all(out.count(name) == 2 for name in names)
