"""The superclasses of CIFAR-100 against the published coarse label of each class."""

from __future__ import annotations

import random

import pytest
import torch

from fastcifar.data.coarse import COARSE_NAMES, SUPERCLASSES, coarse_labels
from fastcifar.data.dataset import CLASSES
from fastcifar.errors import UsageError

# The coarse label of the fine labels 0 to 99, as the published batches pair them.
PUBLISHED = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
]  # fmt: skip


def test_every_class_has_its_published_superclass() -> None:
    assert coarse_labels(CLASSES["cifar100"]).tolist() == PUBLISHED
    assert coarse_labels(CLASSES["cifar100"]).dtype == torch.int64


def test_there_are_twenty_of_five_classes_in_the_published_order() -> None:
    assert len(COARSE_NAMES) == 20 and all(len(names.split()) == 5 for names in SUPERCLASSES.values())
    assert list(COARSE_NAMES) == sorted(COARSE_NAMES)


def test_classes_in_another_order() -> None:
    order = random.Random(0).sample(range(100), 100)
    assert coarse_labels([CLASSES["cifar100"][i] for i in order]).tolist() == [PUBLISHED[i] for i in order]


@pytest.mark.parametrize(
    "classes",
    [
        CLASSES["cifar10"],
        (),
        CLASSES["cifar100"][:99],
        (*CLASSES["cifar100"], "cat"),
        ("cat", *CLASSES["cifar100"][1:]),
        ("bed", *CLASSES["cifar100"][1:]),
    ],
)
def test_other_classes_have_none(classes: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="Only the 100 classes of CIFAR-100 have superclasses"):
        coarse_labels(classes)
