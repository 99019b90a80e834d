"""A dataset in memory: its digest, its statistics, and what it may hold."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from fastcifar.data import dataset as datasets
from fastcifar.data.dataset import CLASSES, Dataset, Split, digest_of, pixel_statistics, sort_by_content


def random_split(count: int) -> Split:
    return Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % 2)


def test_statistics_are_those_of_all_pixels() -> None:
    images = random_split(50).images
    mean, std = pixel_statistics(images)
    plain = images.double() / 255
    assert mean == pytest.approx(plain.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(plain.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_the_digest_is_of_label_and_pixels_in_order() -> None:
    images = random_split(5).images
    labels = torch.tensor([3, 0, 9, 255, 1])
    content = b"".join(
        bytes([label]) + image.numpy().tobytes() for label, image in zip(labels.tolist(), images, strict=True)
    )
    assert digest_of(Split(images, labels)) == sha256(content).hexdigest()


def test_images_are_in_the_order_of_their_content_then_of_their_labels() -> None:
    images = random_split(6).images
    images[3] = images[1]
    labels = torch.tensor([4, 3, 2, 1, 0, 5])
    keys = [
        (sha256(image.numpy().tobytes()).digest(), label) for image, label in zip(images, labels.tolist(), strict=True)
    ]
    expected = sorted(range(6), key=keys.__getitem__)
    assert expected.index(3) == expected.index(1) - 1, "the smaller label comes first"
    for shuffled in (torch.arange(6), torch.tensor([5, 3, 0, 1, 4, 2])):
        made = sort_by_content(Split(images[shuffled], labels[shuffled]))
        assert torch.equal(made.images, images[expected]) and made.labels.tolist() == [keys[i][1] for i in expected]


def test_a_channel_without_variation_can_be_divided_by() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[:, 1, 0, 0] = 255
    mean, std = pixel_statistics(images)
    assert std[0] == std[2] == 1.0 and 0 < std[1] < 0.1 and mean[0] == 0.0


def test_the_digest_of_more_classes_than_a_byte_can_count() -> None:
    split = Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([1, 257]))
    assert digest_of(split) == sha256(b"\1\0" + bytes(3072) + b"\1\1" + bytes(3072)).hexdigest()


def test_content_that_hashes_like_cifar10_is_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = random_split(4), random_split(2)
    own = Dataset.build("numbers", ("0", "1"), train, test, "memory")
    assert (own.name, own.classes, own.published) == ("numbers", ("0", "1"), False)
    monkeypatch.setattr(
        datasets, "HASHES", {"cifar10": (digest_of(sort_by_content(train)), digest_of(sort_by_content(test)))}
    )
    known = Dataset.build("numbers", ("0", "1"), train, test, "memory")
    assert (known.name, known.classes, known.published) == ("cifar10", CLASSES["cifar10"], True)
    assert known.digest == own.digest


def test_what_a_dataset_may_hold() -> None:
    good = Dataset.build("numbers", ("0", "1"), random_split(4), random_split(2), "memory")
    good.validate()
    images, labels = good.test.images, good.test.labels
    for bad, message in (
        (replace(good, classes=(1, 2)), "text"),  # type: ignore[arg-type]
        (replace(good, std=(0.1,)), "three floats"),
        (replace(good, mean=(0, 0, 0)), "three floats"),
        (replace(good, test=Split(images[:1], labels)), "uint8"),
        (replace(good, test=Split(images.float(), labels)), "uint8"),
        (replace(good, test=Split(images[:0], labels[:0])), "uint8"),
        (replace(good, test=Split(images, labels.int())), "int64"),
        (replace(good, test=Split(images, labels - 1)), "numbers of classes"),
        (replace(good, test=Split(images, labels + 1)), "numbers of classes"),
    ):
        with pytest.raises(ValueError, match=message):
            bad.validate()
