"""The embedded dataset: the same everywhere, and not too easy."""

from __future__ import annotations

import torch

from fastcifar.data.shapes import make_shapes
from fastcifar.data.store import load_dataset


def test_shapes_are_the_same_bytes_everywhere() -> None:
    shapes = make_shapes()
    assert shapes.digest == "3d2529dd74ee410068c8b9e53a56cfba877244c66da0f81f2585e569c24be04d"
    assert (len(shapes.train.images), len(shapes.test.images), shapes.published) == (10_000, 2_000, False)
    assert torch.bincount(shapes.train.labels).tolist() == [1000] * 10
    assert make_shapes(1).digest != shapes.digest


def test_a_linear_classifier_is_not_enough_for_shapes() -> None:
    shapes = load_dataset("shapes")
    torch.manual_seed(0)
    x, y = shapes.train.images.flatten(1).float() / 255 - 0.5, shapes.train.labels
    layer = torch.nn.Linear(3072, 10)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
    for _ in range(5):
        for rows in torch.randperm(len(x)).split(250):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
    test = shapes.test.images.flatten(1).float() / 255 - 0.5
    assert float((layer(test).argmax(1) == shapes.test.labels).float().mean()) < 0.6
