"""The keys of a recipe: a frozen dataclass a section, each key with its type, range and default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fastcifar.recipes.schedule import Points

CONSTANT: Points = ((0.0, 1.0),)
LINEAR: Points = ((0.0, 1.0), (1.0, 0.0))
SIDE = 32  # pixels of an image, in each direction
SMALLEST_SIDE = 16  # what three groups can still pool
Activation = Literal["gelu", "silu", "relu", "celu"]
Views = Literal["none", "flip", "full"]


def bounded(default: Any, low: float, high: float = math.inf) -> Any:
    """A field whose value (each value, in a list) must lie in `low`..`high`, ends included."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Training:
    """Length, batches and loss of a run."""

    epochs: float = bounded(8.0, 1e-6, 10_000)  # may be a fraction: the last epoch is cut short
    batch_size: int = bounded(2000, 1, 1_000_000)  # images a step; the last, smaller batch of an epoch is dropped
    label_smoothing: float = bounded(0.2, 0, 0.999)
    precision: Literal["half", "bfloat16", "float32"] = "half"  # on CUDA; float32 everywhere else


@dataclass(frozen=True)
class Data:
    """Which training images are learned, how they are augmented and how large they are."""

    flip: Literal["none", "random", "alternating"] = "alternating"
    translate: int = bounded(2, 0, 31)  # pixels, in each direction, over a reflected border
    cutout: int = bounded(0, 0, 32)  # side of a square of mean colour, pixels; 0: none
    brightness: float = bounded(0.0, 0, 10)  # largest shift, in standard deviations of the training pixels
    contrast: float = bounded(0.0, 0, 1)  # largest change of scale
    resolution: Points = ((0.0, float(SIDE)),)  # side of the training images, pixels, over the run
    holdout: int = bounded(0, 0, 1_000_000)  # training images kept from training, to judge on in place of the test's


@dataclass(frozen=True)
class Whiten:
    """The first convolution, set from the covariance of image patches and never trained."""

    kernel: int = bounded(2, 1, 8)
    padding: int = bounded(0, 0, 7)
    signs: int = bounded(2, 1, 2)  # 2: each filter stands twice, the second time negated
    bias: bool = True
    activation: Activation = "gelu"  # behind it, where no projection follows
    eps: float = bounded(5e-4, 0, 1)  # added to the eigenvalues
    centered: bool = False  # covariance about the mean patch, or second moment
    images: int = bounded(5000, 1, 10_000_000)  # random training images it is estimated on


@dataclass(frozen=True)
class Norm:
    """Batch normalisation, with a trained bias and no trained scale."""

    momentum: float = bounded(0.4, 0, 1)  # weight of the newest batch in the running statistics
    eps: float = bounded(1e-12, 0, 1)
    ghost: int = bounded(0, 0, 1_000_000)  # images that share statistics in training; 0: the whole batch
    precision: Literal["float32", "same"] = "float32"  # of its statistics and bias: float32, or the network's


@dataclass(frozen=True)
class Head:
    """The last linear layer."""

    scale: float = bounded(0.0, 0)  # factor on the logits; 0: one over the number of inputs
    unit_std: bool = True  # initial weights scaled to a standard deviation of one


@dataclass(frozen=True)
class Network:
    """The layers, from the image to the logits."""

    whiten: Whiten = Whiten()
    project: int = bounded(0, 0, 4096)  # channels of a 1x1 convolution with norm after the whitening; 0: none
    widths: tuple[int, ...] = bounded((64, 256, 256), 1, 8192)  # channels of each conv group
    convs: tuple[int, ...] = bounded((2, 2, 2), 1, 16)  # convolutions in each conv group
    residual: bool = False  # add the input of a group's second convolution to its output
    squeeze_excite: int = bounded(0, 0, 1024)  # in groups of two or more: channels over this ratio; 0: none
    activation: Activation = "gelu"
    dirac: bool = True  # 3x3 filters begin as the identity on as many channels as come in
    norm: Norm = Norm()
    head: Head = Head()
    factory: str = ""  # code of one's own, as module:name, called with this section and the number of classes


@dataclass(frozen=True)
class Sgd:
    """SGD with Nesterov momentum; a schedule that ends at zero before the run does freezes the parameters there."""

    lr: float = bounded(0.1, 0)
    momentum: float = bounded(0.85, 0, 0.9999)
    weight_decay: float = bounded(0.0, 0)  # as in PyTorch: weight_decay * parameter is added to the gradient
    schedule: Points = LINEAR  # factor on lr


@dataclass(frozen=True)
class Filters(Sgd):
    """All weights but the head's, filters above all: Muon, or SGD like the rest."""

    method: Literal["muon", "sgd"] = "muon"
    # One [a, b, c] an iteration of Newton-Schulz: X <- a X + (b A + c A A) X with A = X X^T.
    newton_schulz: tuple[tuple[float, ...], ...] = ((3.4445, -4.7750, 2.0315),) * 3
    renormalize: Points = CONSTANT  # filters are rescaled to the norm of unit rows every so many steps


@dataclass(frozen=True)
class Optimizer:
    """Which parameters learn how: filters (and the other weights), head, biases, the whitening bias."""

    filters: Filters = Filters()
    head: Sgd = Sgd()
    biases: Sgd = Sgd()
    whiten_bias: Sgd = Sgd()
    factory: str = ""  # code of one's own, as module:name, called with the network, this section and the steps


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of all weights and running statistics over the end of the run."""

    start: float = bounded(1.0, 0, 1)  # fraction of the run; 1: no average
    decay: float = bounded(0.99, 0, 1)
    every: int = bounded(1, 1, 10_000)  # steps between two updates


@dataclass(frozen=True)
class Evaluation:
    """Test-time augmentation: one view; two with the mirror image; six with shifts by (-1, -1) and (1, 1)."""

    views: Views = "full"
    shifted_weight: float = bounded(0.5, 0, 1)  # together, of the four shifted views
    uncertain: float = bounded(1.0, 0, 1)  # share of the images, least certain first, that get more than one view
    batch_size: int = bounded(2000, 1, 1_000_000)


@dataclass(frozen=True)
class Recipe:
    """All that defines a run but its seed and device."""

    name: str = ""
    summary: str = ""
    training: Training = Training()
    data: Data = Data()
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    evaluation: Evaluation = Evaluation()
