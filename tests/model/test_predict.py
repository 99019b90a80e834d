"""Views and metrics."""

from __future__ import annotations

import pytest
import torch
from conftest import few_shapes

from fastcifar.data.dataset import Dataset
from fastcifar.model.augment import AugmentPlan, augment
from fastcifar.model.predict import VIEWS, accuracy, confusion, group_logits, images_evaluated, infer, per_class
from fastcifar.recipes import schema
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.step import TrainState

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 8, 8]", "training.epochs=2.5", "training.batch_size=100", "network.whiten.images=200"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The first thousand embedded images."""
    return few_shapes(1000, 300)


def plain_views(
    network: torch.nn.Module, images: torch.Tensor, weights: tuple[float, float], kind: str
) -> torch.Tensor:
    """Test-time augmentation as airbench does it, on normalised images."""

    def mirrored(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * network(x) + 0.5 * network(x.flip(-1))

    if kind == "flip":
        return mirrored(images)
    padded = torch.nn.functional.pad(images, (1,) * 4, "reflect")
    shifted = 0.5 * mirrored(padded[:, :, 0:32, 0:32]) + 0.5 * mirrored(padded[:, :, 2:34, 2:34])
    return weights[0] * mirrored(images) + weights[1] * shifted


@pytest.mark.parametrize(("kind", "shifted"), [("none", 0.5), ("flip", 0.5), ("full", 0.5), ("full", 2 / 3)])
@pytest.mark.parametrize("uncertain", [1.0, 0.25])
@torch.no_grad()
def test_views_are_the_anchors_views(kind: str, shifted: float, uncertain: float, dataset: Dataset) -> None:
    training = TrainState(load_recipe("tiny", *SMALL), dataset, CPU, 0)
    training.whiten()
    training.network.eval()
    images = dataset.test.images[:80]
    settings = schema.Evaluation(views=kind, shifted_weight=shifted, uncertain=uncertain, batch_size=32)  # type: ignore[arg-type]
    found = infer(training.network, images, training.mean, training.std, settings)
    normal = augment(images, AugmentPlan(torch.arange(80)), training.mean, training.std, torch.float32)
    plain = training.network(normal)
    expected = plain if kind == "none" else plain_views(training.network, normal, (1 - shifted, shifted), kind)
    least = plain.softmax(1).amax(1).argsort()[: int(uncertain * 80)]
    mixed = plain.clone()
    mixed[least] = expected[least]
    torch.testing.assert_close(found.plain, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.averaged, mixed, atol=1e-5, rtol=1e-4)
    assert images_evaluated(settings, 80) == 80 + (VIEWS[kind] - 1) * len(least)


def test_confusion_and_per_class_count_every_image() -> None:
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 2, 1])
    assert confusion(logits, labels) == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert per_class(logits, labels) == [1.0, 0.5, 0.5]
    assert per_class(logits[labels != 1], labels[labels != 1])[1] is None
    assert accuracy(logits, labels) == 0.6


def test_the_likeliest_group_is_that_of_the_likeliest_class() -> None:
    logits = torch.tensor([[5.0, 4.0, 4.0, 4.0], [-9.0, -8.0, -7.0, -6.0]])
    grouped = group_logits(logits, torch.tensor([1, 0, 0, 0]))
    assert grouped.tolist() == [[4.0, 5.0], [-6.0, -9.0]], "no sum, by which three classes would outweigh the best"
