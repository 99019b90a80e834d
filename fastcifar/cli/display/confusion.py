"""What a confusion matrix says: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_CLASSES = 20  # that a matrix is drawn of; of more the pairs confused most are listed


@dataclass(frozen=True)
class Confused:
    """Images of one class that were taken for another."""

    true: str
    taken_for: str
    images: int
    share: float  # of the images of the true class


def most_confused(matrix: Sequence[Sequence[int]], classes: Sequence[str], count: int | None = None) -> list[Confused]:
    """The pairs of classes confused most, by their images: all, or the first `count`.

    `matrix` has a row for each true class.
    """
    pairs = [
        Confused(classes[i], classes[j], images, images / sum(row))
        for i, row in enumerate(matrix)
        for j, images in enumerate(row)
        if images and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair.images)[:count]
