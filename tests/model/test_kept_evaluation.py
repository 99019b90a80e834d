"""The logits that a checkpoint keeps of a run's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Call

from fastcifar.data.store import load_dataset
from fastcifar.errors import DataError
from fastcifar.model.checkpoint import kept_evaluation, load_checkpoint, pack_evaluation

CLASSES = {"dataset": {"classes": ["a", "b", "c"]}}


def test_a_run_keeps_the_logits_it_was_judged_by(trained: Path, call: Call) -> None:
    tree = load_checkpoint(trained)
    kept = kept_evaluation(tree)
    assert kept is not None and tree["evaluation"]["logits"].dtype == torch.float16
    logits, labels = kept
    assert torch.equal(labels, load_dataset("shapes").test.labels)
    assert float((logits.argmax(1) == labels).double().mean()) == tree["metrics"]["accuracy"]
    assert sum(part.nbytes for part in tree["evaluation"].values()) == 2000 * (10 * 2 + 4)
    assert "logits" not in (trained / "run.json").read_text(), "the record is for reading"


def test_half_precision_keeps_the_likeliest_class_and_the_probabilities() -> None:
    logits = 500 + 20 * torch.randn(5000, 10, generator=torch.Generator().manual_seed(0))
    close = logits.amax(1) - 2e-3
    logits[:, 0] = torch.where(
        logits.argmax(1) == 0, logits[:, 0], close
    )  # close to the largest, of values of hundreds
    assert not torch.equal(logits.half().argmax(1), logits.argmax(1)), "rounding as they are would move some"
    labels = torch.arange(5000) % 10
    kept = kept_evaluation({"dataset": {"classes": list(range(10))}, "evaluation": pack_evaluation(logits, labels)})
    assert kept is not None and torch.equal(kept[1], labels)
    assert torch.equal(kept[0].argmax(1), logits.argmax(1))
    assert torch.allclose(kept[0].softmax(1), logits.softmax(1), atol=2e-3)


def test_logits_beyond_half_precision() -> None:
    kept = kept_evaluation(
        {**CLASSES, "evaluation": pack_evaluation(torch.tensor([[1e6, -1e6, 2e6]]), torch.tensor([1]))}
    )
    assert kept is not None and kept[0].softmax(1).tolist() == [[0.0, 0.0, 1.0]]


def test_an_earlier_checkpoint_has_none() -> None:
    assert kept_evaluation(CLASSES) is None


@pytest.mark.parametrize(
    "evaluation",
    [
        {},
        [],
        {"logits": torch.zeros(4, 3).half(), "labels": torch.zeros(5)},
        {"logits": torch.zeros(4, 2).half(), "labels": torch.zeros(4)},
        {"logits": torch.zeros(4, 3).half(), "labels": torch.full((4,), 3)},
        {"logits": torch.zeros(0, 3).half(), "labels": torch.zeros(0)},
        {"logits": "text", "labels": torch.zeros(4)},
    ],
    ids=str,
)
def test_damaged_logits(evaluation: Any) -> None:
    with pytest.raises(DataError, match="damaged"):
        kept_evaluation({**CLASSES, "evaluation": evaluation})
