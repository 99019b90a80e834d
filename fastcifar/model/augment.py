"""Batches on the device: a plan draws one epoch's random numbers, `augment` makes images of uint8 rows and a plan.

Nothing is kept between the two but the numbers: every engine sees the same augmentation, a CUDA graph can hold
`augment`, memory stays small, and a slow, obvious reference can check it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fastcifar.recipes.schema import SIDE, Data


@dataclass(frozen=True)
class AugmentPlan:
    """What happens to each image of an epoch (or of a batch), in the order of training; None: nothing of the kind."""

    index: Tensor  # int64 (N,): the row in the dataset
    flip: Tensor | None = None  # bool (N,): mirrored left to right
    shift: Tensor | None = None  # int64 (N, 2): down and right, in pixels of the source, before the flip
    box: Tensor | None = None  # int64 (N, 2): top and left of a square cut out
    brightness: Tensor | None = None  # float32 (N,): added, in standard deviations
    contrast: Tensor | None = None  # float32 (N,): factor

    def batch(self, start: int, size: int) -> AugmentPlan:
        """The slice of `size` images from `start` on."""
        return self.changed(lambda part: part[start : start + size])

    def changed(self, change: Callable[[Tensor], Tensor]) -> AugmentPlan:
        """The plan with each of its tensors changed in the same way, such as copied, cut or moved."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return AugmentPlan(**{name: change(part) for name, part in parts.items() if part is not None})


class AugmentSampler:
    """Draws the plans of a run from its generator, on the generator's device."""

    def __init__(self, data: Data, images: int, generator: Generator) -> None:
        self.data = data
        self.images = images
        self.generator = generator
        # Alternating flip (Jordan, airbench, 2024): a random half is mirrored in the first epoch, the other half in
        # the next, so that two epochs show each image both ways.
        self.mirrored = self._coins() if data.flip == "alternating" else None

    def _coins(self) -> Tensor:
        return torch.rand(self.images, generator=self.generator, device=self.generator.device) < 0.5

    def _between(self, low: float, high: float) -> Tensor:
        uniform = torch.rand(self.images, generator=self.generator, device=self.generator.device)
        return low + (high - low) * uniform

    def _pairs(self, low: int, high: int) -> Tensor:
        """Two whole numbers an image in `low`..`high`, ends included."""
        device = self.generator.device
        return torch.randint(low, high + 1, (self.images, 2), generator=self.generator, device=device)

    def sample(self, epoch: int) -> AugmentPlan:
        """The plan of epoch 0, 1, …; draws new numbers at each call."""
        data = self.data
        index = torch.randperm(self.images, generator=self.generator, device=self.generator.device)
        flip = None
        if self.mirrored is not None:
            flip = (self.mirrored ^ bool(epoch % 2))[index]
        elif data.flip == "random":
            flip = self._coins()
        return AugmentPlan(
            index,
            flip,
            shift=self._pairs(-data.translate, data.translate) if data.translate else None,
            box=self._pairs(0, SIDE - data.cutout) if data.cutout else None,
            brightness=self._between(-data.brightness, data.brightness) if data.brightness else None,
            contrast=self._between(1 - data.contrast, 1 + data.contrast) if data.contrast else None,
        )


def augment(
    images: Tensor,
    plan: AugmentPlan,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    cutout: int = 0,
    side: int = SIDE,
    antialias: bool = True,
) -> Tensor:
    """The planned images, augmented and normalised: (B, 3, side, side) of `dtype` in channels-last memory.

    `images` is the dataset, uint8 (N, 3, 32, 32); `mean` and `std` are float32 (3,) for pixels in 0..1. Shifts read
    over a border reflected about the outermost pixel. Crop and flip are one gather of uint8. Other sides are resampled
    bilinearly, with a filter against aliasing or without (fulcrumresearch/cifar-10-speedrun).
    """
    index, device = plan.index, images.device
    line = torch.arange(SIDE, device=device)
    rows = cols = line.expand(len(index), SIDE)
    if plan.flip is not None:
        cols = torch.where(plan.flip[:, None], SIDE - 1 - cols, cols)
    if plan.shift is not None:
        rows, cols = reflect(rows + plan.shift[:, :1]), reflect(cols + plan.shift[:, 1:])
    # Index tensors around a slice put the channels last: (B, 32, 32, 3), just the memory that is wanted.
    pixels = images[index[:, None, None], :, rows[:, :, None], cols[:, None, :]]
    x = pixels.float().sub_(mean * 255).div_(std * 255)
    if plan.brightness is not None:
        x += plan.brightness[:, None, None, None]
    if plan.contrast is not None:
        x *= plan.contrast[:, None, None, None]
    if plan.box is not None:
        inside = (line >= plan.box[..., None]) & (line < plan.box[..., None] + cutout)  # (B, 2, 32)
        x.masked_fill_((inside[:, 0, :, None] & inside[:, 1, None, :])[..., None], 0.0)
    x = x.permute(0, 3, 1, 2)
    if side != SIDE:
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=antialias)
    return x.to(dtype, memory_format=torch.channels_last)


def reflect(position: Tensor) -> Tensor:
    """Positions outside 0..31 mirrored back at the outermost pixel, which is not repeated."""
    return SIDE - 1 - (SIDE - 1 - position.abs()).abs()
