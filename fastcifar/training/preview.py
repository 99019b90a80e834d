"""What a recipe's augmentation does to images: the first ones of a run, before and after."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.data.dataset import Dataset
from fastcifar.model.augment import AugmentSampler, augment
from fastcifar.recipes.schema import Recipe
from fastcifar.training.step import resolutions


def first_images(recipe: Recipe, dataset: Dataset, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a run's first batch as they are stored, uint8 (count, 3, 32, 32), and augmented, uint8
    (count, 3, side, side).

    `dataset` is the one that the run saw, without the images that the recipe holds out. The images are those of a run
    on a CPU whose network is whitened; another device draws other numbers from the same seed.
    """
    images = dataset.train.images
    generator = torch.Generator().manual_seed(seed)
    sampler = AugmentSampler(recipe.data, len(images), generator)
    torch.randperm(len(images), generator=generator)  # the sample that the whitening is set from
    plan = sampler.sample(0).batch(0, count)
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    data, side = recipe.data, resolutions(recipe, 1)[0]
    shown = augment(images, plan, mean, std, torch.float32, data.cutout, side, data.antialias)
    pixels = (shown * std[:, None, None] + mean[:, None, None]) * 255
    return images[plan.index], pixels.round().clamp(0, 255).to(torch.uint8)
