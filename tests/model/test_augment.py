"""Plan and render, held against a slow, obvious reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from fastcifar.model.augment import AugmentPlan, AugmentSampler, augment, reflect
from fastcifar.model.kernels.augment import augment_cpu
from fastcifar.recipes.schema import Data

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def slow_render(images: torch.Tensor, plan: AugmentPlan, cutout: int) -> torch.Tensor:
    """One image, one pixel at a time."""
    out = torch.empty(len(plan.index), 3, 32, 32)
    for i, row in enumerate(plan.index.tolist()):
        padded = torch.nn.functional.pad(images[row].float(), (31,) * 4, mode="reflect")
        down, right = plan.shift[i].tolist() if plan.shift is not None else (0, 0)
        crop = padded[:, 31 + down : 63 + down, 31 + right : 63 + right]
        if plan.flip is not None and plan.flip[i]:
            crop = crop.flip(-1)
        x = (crop / 255 - MEAN[:, None, None]) / STD[:, None, None]
        if plan.brightness is not None:
            x = x + plan.brightness[i]
        if plan.contrast is not None:
            x = x * plan.contrast[i]
        if plan.box is not None:
            top, left = plan.box[i].tolist()
            x[:, top : top + cutout, left : left + cutout] = 0
        out[i] = x
    return out


@settings(max_examples=40, deadline=None)
@given(
    flip=st.sampled_from(["none", "random", "alternating"]),
    translate=st.integers(0, 31),
    cutout=st.integers(0, 32),
    brightness=st.floats(0, 1),
    contrast=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3),
)
def test_render_agrees_with_the_reference(
    flip: str, translate: int, cutout: int, brightness: float, contrast: float, seed: int, epoch: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = Data(flip, translate, cutout, brightness, contrast)  # type: ignore[arg-type]
    plan = AugmentSampler(data, len(images), generator).sample(epoch).batch(3, 6)
    fast = augment(images, plan, MEAN, STD, torch.float32, cutout)
    torch.testing.assert_close(fast, slow_render(images, plan, cutout), atol=2e-6, rtol=1e-5)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    kernel = augment_cpu(images, plan, MEAN, STD, torch.float32, cutout)
    torch.testing.assert_close(kernel, fast, atol=4e-6, rtol=1e-5)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("side", [16, 18, 20, 25, 31, 32, 40])
def test_the_kernel_makes_images_smaller_as_pytorch_does(side: int, antialias: bool) -> None:
    generator = torch.Generator().manual_seed(side)
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=generator)
    plan = AugmentSampler(Data("random", 3), len(images), generator).sample(0).batch(2, 5)
    expected, found = (
        each(images, plan, MEAN, STD, torch.float32, side=side, antialias=antialias) for each in (augment, augment_cpu)
    )
    torch.testing.assert_close(found, expected, atol=4e-6, rtol=1e-5)
    plain = F.interpolate(augment(images, plan, MEAN, STD, torch.float32), (side, side), mode="bilinear")
    assert torch.allclose(expected, plain, atol=1e-5) == (not antialias or side >= 32)


def test_reflect_mirrors_about_the_outermost_pixel() -> None:
    assert reflect(torch.tensor([-2, -1, 0, 31, 32, 33])).tolist() == [2, 1, 0, 31, 30, 29]


def plans(data: Data, epochs: int, images: int = 1000) -> list[AugmentPlan]:
    planner = AugmentSampler(data, images, torch.Generator().manual_seed(3))
    return [planner.sample(epoch) for epoch in range(epochs)]


def by_image(plan: AugmentPlan, values: torch.Tensor) -> torch.Tensor:
    return values[plan.index.argsort()]


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    first, second, third = plans(Data(flip="alternating"), 3)
    flips = [by_image(plan, plan.flip) for plan in (first, second, third) if plan.flip is not None]
    assert torch.equal(flips[0], ~flips[1]) and torch.equal(flips[0], flips[2])
    assert 400 < int(flips[0].sum()) < 600


def test_random_flip_is_drawn_anew() -> None:
    first, second = (by_image(plan, plan.flip) for plan in plans(Data(flip="random"), 2) if plan.flip is not None)
    assert 400 < int((first != second).sum()) < 600


def test_an_epoch_shows_every_image_once_in_a_new_order() -> None:
    first, second = plans(Data(), 2)
    assert sorted(first.index.tolist()) == list(range(1000)) == sorted(second.index.tolist())
    assert first.index.tolist() != second.index.tolist()


def test_every_shift_and_every_place_of_the_box_comes_up() -> None:
    (plan,) = plans(Data(translate=2, cutout=30), 1)
    assert plan.shift is not None and plan.box is not None
    assert {tuple(pair) for pair in plan.shift.tolist()} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    assert {tuple(pair) for pair in plan.box.tolist()} == {(a, b) for a in range(3) for b in range(3)}


def test_nothing_is_drawn_for_what_the_recipe_does_not_ask() -> None:
    (plan,) = plans(Data(flip="none", translate=0), 1)
    assert [item.name for item in dataclasses.fields(plan) if getattr(plan, item.name) is not None] == ["index"]


def test_a_plain_plan_only_normalises() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = (images / 255 - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(augment(images, AugmentPlan(torch.arange(4)), MEAN, STD, torch.float32), expected)


@pytest.mark.parametrize("side", [16, 20, 27])
def test_smaller_images_are_those_that_pillow_makes(side: int) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    small = augment(images, AugmentPlan(torch.arange(2)), torch.zeros(3), torch.ones(3), torch.float32, side=side)
    assert small.shape == (2, 3, side, side) and small.is_contiguous(memory_format=torch.channels_last)
    for image, found in zip(images.flatten(0, 1), small.flatten(0, 1), strict=True):
        picture = Image.fromarray(image.float().div(255).numpy()).resize((side, side), Image.Resampling.BILINEAR)
        torch.testing.assert_close(found, torch.from_numpy(np.array(picture)), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_render_on_cuda_equals_render_on_the_cpu() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    (plan,) = plans(Data("random", 3, 5, 0.1, 0.1), 1, images=64)
    moved = AugmentPlan(**{k: v.cuda() for k, v in dataclasses.asdict(plan).items()})
    here = augment(images, plan, MEAN, STD, torch.float32, 5)
    there = augment(images.cuda(), moved, MEAN.cuda(), STD.cuda(), torch.float32, 5)
    torch.testing.assert_close(there.cpu(), here)
