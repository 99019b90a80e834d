"""The keys of a recipe: one frozen dataclass for each section, each key with its type, range and default."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from fastcifar.recipes.schedule import Points

CONSTANT: Points = ((0.0, 1.0),)
LINEAR: Points = ((0.0, 1.0), (1.0, 0.0))
SIDE = 32  # pixels of an image, in each direction
SMALLEST_SIDE = 16  # pixels; three groups can pool no smaller images
Activation = Literal["gelu", "silu", "celu"]
Views = Literal["none", "flip", "full"]


@dataclass(frozen=True)
class Range:
    """The allowed range of a number, both ends included; part of the annotation of a key."""

    low: float
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"at least {self.low:g}" if self.high == math.inf else f"in {self.low:,}..{self.high:,}"


@dataclass(frozen=True)
class Training:
    """Length, batches and loss of a run."""

    epochs: Annotated[float, Range(1e-6, 10_000)] = 8.0  # may be a fraction: the last epoch is cut short
    batch_size: Annotated[int, Range(1, 1_000_000)] = 2000  # images; an epoch's last, smaller batch is dropped
    label_smoothing: Annotated[float, Range(0, 0.999)] = 0.2
    precision: Literal["half", "bfloat16", "float32"] = "half"  # on CUDA; float32 everywhere else


@dataclass(frozen=True)
class Data:
    """Which training images are used, how they are augmented, and their resolution."""

    flip: Literal["none", "random", "alternating"] = "alternating"  # alternating: every second epoch the mirror image
    translate: Annotated[int, Range(0, 31)] = 2  # pixels, in each direction, over a reflected border
    cutout: Annotated[int, Range(0, 32)] = 0  # side in pixels of a square of mean colour; 0: none
    brightness: Annotated[float, Range(0, 10)] = 0.0  # largest shift, in standard deviations of the training set
    contrast: Annotated[float, Range(0, 1)] = 0.0  # largest change of scale
    resolution: Points = ((0.0, float(SIDE)),)  # schedule of the side of the training images, in pixels
    antialias: bool = True  # whether smaller images are filtered before they are resampled (bilinear)
    holdout: Annotated[int, Range(0, 1_000_000)] = (
        0  # training images held out and evaluated on instead of the test set
    )


@dataclass(frozen=True)
class Whiten:
    """The first convolution, set from the covariance of image patches and never trained."""

    kernel: Annotated[int, Range(1, 8)] = 2
    padding: Annotated[int, Range(0, 7)] = 0
    # Those of the patches' largest variances; 0: all, three for each pixel of the kernel.
    filters: Annotated[int, Range(0, 192)] = 0
    signs: Annotated[int, Range(1, 2)] = 2  # 2: each filter twice, the second time negated
    bias: bool = True
    activation: Activation = "gelu"  # after it, where there is no projection
    eps: Annotated[float, Range(0, 1)] = 5e-4  # added to the eigenvalues
    centered: bool = False  # true: covariance about the mean patch; false: second moment
    images: Annotated[int, Range(1, 10_000_000)] = 5000  # random training images that the covariance is estimated from

    @property
    def all_filters(self) -> int:
        """As many as a patch has numbers."""
        return 3 * self.kernel**2

    @property
    def channels(self) -> int:
        """What the convolution gives."""
        return self.signs * (self.filters or self.all_filters)


@dataclass(frozen=True)
class Norm:
    """Batch normalisation, with a trained bias and no trained scale."""

    momentum: Annotated[float, Range(0, 1)] = 0.4  # as in PyTorch: weight of the newest batch in the running statistics
    eps: Annotated[float, Range(0, 1)] = 1e-12
    ghost: Annotated[int, Range(0, 1_000_000)] = (
        0  # images of a ghost batch, which share statistics in training; 0: the whole batch
    )
    precision: Literal["float32", "same"] = "float32"  # of its statistics and bias; same: the network's


@dataclass(frozen=True)
class Head:
    """The last linear layer."""

    scale: Annotated[float, Range(0)] = 0.0  # factor on the logits; 0: one over the number of inputs
    unit_std: bool = True  # initial weights scaled to a standard deviation of one


@dataclass(frozen=True)
class Network:
    """The layers, from the image to the logits."""

    whiten: Whiten = Whiten()
    project: Annotated[int, Range(0, 4096)] = 0  # channels of a 1x1 convolution with norm after whitening; 0: none
    widths: tuple[Annotated[int, Range(1, 8192)], ...] = (64, 256, 256)  # channels of each conv group
    convs: tuple[Annotated[int, Range(1, 16)], ...] = (2, 2, 2)  # convolutions in each conv group
    # Kernel size of each convolution, a list for each group; none: 3 everywhere. Even ones shrink the map by a pixel.
    kernels: tuple[tuple[Annotated[int, Range(1, 5)], ...], ...] = ()
    # Bottleneck: channels between the convolutions behind a group's first, for each group; none: as wide as the group.
    bottlenecks: tuple[Annotated[int, Range(1, 8192)], ...] = ()
    residual: bool = False  # add the input of a group's second convolution to the output of its last
    squeeze_excite: Annotated[int, Range(0, 1024)] = (
        0  # reduction ratio, in groups of two or more convolutions; 0: none
    )
    activation: Activation = "gelu"
    dirac: bool = True  # Dirac initialisation: filters of the groups start as the identity on their input channels
    pool: Literal["max", "max_mean"] = "max"  # global pooling before the head: the maximum, or maximum plus mean
    norm: Norm = Norm()
    head: Head = Head()
    factory: str = ""  # user code, as module:name, called with this section and the number of classes

    def last_side(self, side: int) -> int:
        """The side, in pixels, of what is left of images of `side` pixels after all groups."""
        side += 2 * self.whiten.padding - self.whiten.kernel + 1
        for first, *others in self.kernel_sizes():
            side = (side - shrinkage(first)) // 2 - sum(map(shrinkage, others))
        return side

    def kernel_sizes(self) -> tuple[tuple[int, ...], ...]:
        """The kernel size of each convolution, group by group."""
        return self.kernels or tuple((3,) * convs for convs in self.convs)

    def channels(self, group: int) -> tuple[int, ...]:
        """What each convolution of a group (the first is 0) gives: the group's width, its bottleneck between."""
        width, convs = self.widths[group], len(self.kernel_sizes()[group])
        inner = self.bottlenecks[group] if self.bottlenecks else width
        return (width, *(inner,) * (convs - 2), width)[:convs]


def padding(kernel: int) -> int:
    """The padding, in pixels, of a convolution of a conv group: an odd kernel keeps the side of the map.

    An even one shrinks it by a pixel: to keep it, PyTorch would first copy the map to pad it on one side.
    """
    return (kernel - 1) // 2


def shrinkage(kernel: int) -> int:
    """By how many pixels the side of a map shrinks in a convolution of a conv group."""
    return kernel - 1 - 2 * padding(kernel)


@dataclass(frozen=True)
class Sgd:
    """SGD with Nesterov momentum; parameters whose schedule reaches zero before the end are frozen from there."""

    lr: Annotated[float, Range(0)] = 0.1
    momentum: Annotated[float, Range(0, 0.9999)] = 0.85
    weight_decay: Annotated[float, Range(0)] = 0.0  # as in PyTorch: weight_decay * parameter is added to the gradient
    schedule: Points = LINEAR  # factor on lr


@dataclass(frozen=True)
class Filters(Sgd):
    """All weights but the head's, that is the convolution filters: Muon, or SGD."""

    method: Literal["muon", "sgd"] = "muon"
    # One [a, b, c] an iteration of Newton-Schulz: X <- a X + (b A + c A A) X with A = X X^T.
    newton_schulz: tuple[tuple[float, ...], ...] = ((3.4445, -4.7750, 2.0315),) * 3
    renormalize: Points = (
        CONSTANT  # weight normalisation: filters are rescaled to the norm of unit rows every so many steps
    )


@dataclass(frozen=True)
class Optimizer:
    """The optimizer of each group of parameters."""

    filters: Filters = Filters()
    head: Sgd = Sgd()
    biases: Sgd = Sgd()
    whiten_bias: Sgd = Sgd()
    # The fraction of the run after which each conv group is frozen, earlier groups no later than others; none: trained
    # to the end. Its schedules run in that time (Brock et al., "FreezeOut", 2017).
    freeze: tuple[Annotated[float, Range(0, 1)], ...] = ()
    factory: str = ""  # user code, as module:name, called with the network, this section and the number of steps

    def sections(self) -> dict[str, Sgd]:
        """What each group of parameters is trained with, by its name."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, Sgd)}


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of all weights and running statistics, in the last part of a run."""

    start: Annotated[float, Range(0, 1)] = 1.0  # fraction of the run; 1: no average
    decay: Annotated[float, Range(0, 1)] = 0.99
    every: Annotated[int, Range(1, 10_000)] = 1  # steps between two updates


@dataclass(frozen=True)
class Evaluation:
    """Test-time augmentation: one view; two with the mirror image; six with shifts by (-1, -1) and (1, 1)."""

    views: Views = "full"
    shifted_weight: Annotated[float, Range(0, 1)] = 0.5  # total weight of the four shifted views
    uncertain: Annotated[float, Range(0, 1)] = 1.0  # share of the images, least certain first, with more than one view
    batch_size: Annotated[int, Range(1, 1_000_000)] = 2000


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a run except its seed and device."""

    name: str = ""
    summary: str = ""
    training: Training = Training()
    data: Data = Data()
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    evaluation: Evaluation = Evaluation()
