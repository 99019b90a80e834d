"""Inference with test-time augmentation, and what can be said of the logits.

A view of an image is a plan for it, so that views are rendered by the very code that training uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcifar.model.augment import AugmentPlan, augment
from fastcifar.recipes.schema import Evaluation

VIEWS = {"none": 1, "flip": 2, "full": 6}
CUDA_BATCH = 5000  # images evaluated at once on CUDA, at least: small batches leave a GPU idle, larger ones gain little


@dataclass(frozen=True)
class Logits:
    """Logits (N, classes) of every image, float32: from the image as it is, and averaged over its views."""

    plain: Tensor
    averaged: Tensor


def views(kind: str, shifted_weight: float) -> list[tuple[bool, int, float]]:
    """The views of an image as (mirrored, shift, weight): the plain one first, the weights adding up to one."""
    if kind == "none":
        return [(False, 0, 1.0)]
    if kind == "flip":
        return [(False, 0, 0.5), (True, 0, 0.5)]
    straight, shifted = (1 - shifted_weight) / 2, shifted_weight / 4
    shifts = [(shift, weight) for shift, weight in ((0, straight), (-1, shifted), (1, shifted))]
    return [(mirrored, shift, weight) for shift, weight in shifts for mirrored in (False, True)]


@torch.no_grad()
def infer(
    network: nn.Module,
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    recipe: Evaluation,
    augment_images: Callable[..., Tensor] = augment,
) -> Logits:
    """The logits of uint8 `images` (N, 3, 32, 32), in batches of the recipe's size, with the recipe's views.

    Where only a share of the images gets more views, it is the one whose likeliest class is least likely
    (hiverge, cifar10-speedrun). The network is in evaluation mode afterwards.
    """
    network.eval()
    (_, _, weight), *others = views(recipe.views, recipe.shifted_weight)
    dtype = next(network.parameters()).dtype
    size = max(recipe.batch_size, CUDA_BATCH) if images.is_cuda else recipe.batch_size

    def logits_of(plan: AugmentPlan) -> Tensor:
        """Logits (n, classes), float32, of the planned images (n)."""
        parts = [plan.batch(start, size) for start in range(0, len(plan.index), size)]
        return torch.cat([network(augment_images(images, part, mean, std, dtype)).float() for part in parts])

    everything = torch.arange(len(images), device=images.device)
    plain = logits_of(AugmentPlan(everything))
    if not others:
        return Logits(plain, plain)
    averaged, chosen = plain.clone(), everything
    if recipe.uncertain < 1:
        confidence = plain.softmax(1).amax(1)
        chosen = confidence.topk(int(recipe.uncertain * len(images)), largest=False, sorted=False).indices
    if len(chosen):
        each = logits_of(plan_views(chosen, others))
        total = plain[chosen] * weight
        for view, logits in zip(others, torch.split(each, len(chosen)), strict=True):
            total += view[2] * logits
        averaged[chosen] = total
    return Logits(plain, averaged)


def plan_views(index: Tensor, kinds: list[tuple[bool, int, float]]) -> AugmentPlan:
    """The plan of several views of the images at `index` (n,), view by view: together they fill larger batches."""
    mirrored = torch.empty(len(kinds), len(index), dtype=torch.bool, device=index.device)
    shifted = torch.empty(len(kinds), len(index), 2, dtype=torch.int64, device=index.device)
    for number, (flip, shift, _) in enumerate(kinds):  # filled on the device: a CUDA graph can hold no copy from here
        mirrored[number].fill_(flip)
        shifted[number].fill_(shift)
    return AugmentPlan(index.repeat(len(kinds)), mirrored.flatten(), shifted.flatten(0, 1))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is that of the label."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def group_logits(logits: Tensor, groups: Tensor) -> Tensor:
    """Logits (N, groups) of groups of classes, each that of its likeliest class, from the number of each class's group,
    int64 (classes,): the likeliest group is the one of the likeliest class."""
    count = int(groups.max()) + 1
    return torch.stack([logits[:, groups == group].amax(1) for group in range(count)], dim=1)


def images_evaluated(recipe: Evaluation, images: int) -> int:
    """How many views of how many images the network sees in all."""
    more = images if recipe.uncertain >= 1 else int(recipe.uncertain * images)
    return images + more * (VIEWS[recipe.views] - 1)


def per_class(logits: Tensor, labels: Tensor) -> list[float | None]:
    """The accuracy on the images of each class; None for a class without images."""
    matrix = confusion(logits, labels)
    return [row[i] / sum(row) if any(row) else None for i, row in enumerate(matrix)]


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """How many images of each true class (rows) were taken for each class (columns)."""
    classes = logits.size(1)
    pairs = labels.cpu() * classes + logits.argmax(1).cpu()
    counts: list[list[int]] = torch.bincount(pairs, minlength=classes**2).view(classes, classes).tolist()
    return counts
