"""Images of a few pixels on a page, each in the page itself as PNG data."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from markupsafe import Markup
from torch import Tensor

from fastcifar.data.images import to_png


def image(pixels: Tensor, side: int, words: str, tip: str = "") -> Markup:
    """An RGB image, uint8 (3, height, width), on a square of `side` pixels; `words` for those who do not see it."""
    data = base64.b64encode(to_png(pixels.numpy())).decode()
    return Markup(
        '<img class="pixels" src="data:image/png;base64,{}" width="{}" height="{}" alt="{}" title="{}">'
    ).format(data, side, side, words, tip or words)


def figure(images: Sequence[Markup], title: str = "", lines: Sequence[str] = ()) -> Markup:
    """Images one above the other, with a title and lines below."""
    caption = Markup("")
    if title:
        below = Markup("").join(Markup("<span>{}</span>").format(line) for line in lines)
        caption = Markup("<figcaption><strong>{}</strong>{}</figcaption>").format(title, below)
    return Markup("<figure>{}{}</figure>").format(Markup("").join(images), caption)


def figures(shown: Sequence[Markup], small: bool = False) -> Markup:
    """Figures side by side, in as many rows as needed."""
    kind = "images small" if small else "images"
    return Markup('<div class="{}">\n{}\n</div>\n').format(kind, Markup("\n").join(shown))


def as_colours(weights: Tensor) -> Tensor:
    """Filters (N, 3, height, width) as images, uint8: grey is zero, and each filter's largest weight is full colour."""
    scale = weights.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return (127.5 + 127.5 * weights / scale).round().clamp(0, 255).to(torch.uint8)
