"""The network: a whitening convolution, conv groups, global pooling of what is left of the image, a linear head.

One builder serves every recipe. The names of the layers are those that `profile` shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from fastcifar.recipes.plugins import UserCode, import_object
from fastcifar.recipes.schema import SIDE, Norm, Recipe, padding
from fastcifar.recipes.schema import Network as NetworkRecipe

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "celu": lambda: nn.CELU(alpha=0.3),
}


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with a trained bias and no trained scale; in training each `ghost` images form a batch.

    Ghost batches are the images i, i + N/ghost, i + 2 N/ghost, …; the running statistics take up their mean
    (Hoffer et al., "Train longer, generalize better", 2017).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__(channels, eps=norm.eps, momentum=norm.momentum)
        self.weight.requires_grad_(False)
        self.ghost = norm.ghost

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        if not (self.training and self.ghost):
            return super().forward(x)
        groups = len(x) // self.ghost
        mean, var = self.running_mean.repeat(groups), self.running_var.repeat(groups)
        # Laid out as (ghost, groups * C, H, W), plain batch norm keeps the groups apart.
        grouped = x.reshape(self.ghost, groups * x.size(1), *x.shape[2:])
        y = F.batch_norm(
            grouped,
            mean,
            var,
            self.weight.repeat(groups),
            self.bias.repeat(groups),
            True,
            self.momentum or 0.0,
            self.eps,
        )
        with torch.no_grad():
            self.running_mean.copy_(mean.view(groups, -1).mean(0))
            self.running_var.copy_(var.view(groups, -1).mean(0))
        return y.view(x.shape).to(memory_format=torch.channels_last)


class SqueezeExcite(nn.Module):
    """A factor in 0..1 for each channel of each image (Hu et al., "Squeeze-and-Excitation Networks", 2018)."""

    def __init__(self, channels: int, ratio: int, activation: str) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // ratio))
        self.act = ACTIVATIONS[activation]()
        self.excite = nn.Linear(max(1, channels // ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        factor: Tensor = torch.sigmoid(self.excite(self.act(self.squeeze(x.mean(dim=(2, 3))))))
        return factor[:, :, None, None]


class ConvGroup(nn.Module):
    """Convolution, pooling by 2, norm, activation; then further convolutions with norm and activation.

    Pooling stands before norm and activation, which then run on a quarter of the pixels. Three convolutions, the last
    two around a bottleneck and their input added to what they give, are the group of NAVIER-STOKED
    (https://github.com/AIDDA-Institute/CIFAR-100-speedrun).
    """

    def __init__(self, inputs: int, channels: Sequence[int], kernels: Sequence[int], recipe: NetworkRecipe) -> None:
        super().__init__()
        self.convs = len(kernels)
        self.residual = recipe.residual
        self.squeeze_excite: SqueezeExcite | None = None
        for i, (width, kernel) in enumerate(zip(channels, kernels, strict=True), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, kernel, padding=padding(kernel), bias=False))
            inputs = width
            if i == 1:
                self.pool = nn.MaxPool2d(2)
            if i == self.convs > 1 and recipe.squeeze_excite:
                self.squeeze_excite = SqueezeExcite(width, recipe.squeeze_excite, recipe.activation)
            self.add_module(f"norm{i}", BatchNorm(width, recipe.norm))
            self.add_module(f"act{i}", ACTIVATIONS[recipe.activation]())

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each norm and the activation behind it."""
        numbers = range(1, self.convs + 1)
        return [(self.get_submodule(f"norm{i}"), self.get_submodule(f"act{i}")) for i in numbers]

    def convolutions(self) -> list[nn.Module]:
        """All its convolutions."""
        return [self.get_submodule(f"conv{i}") for i in range(1, self.convs + 1)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H // 2, W // 2), or somewhat smaller where kernels are even."""
        first = x
        for i in range(1, self.convs + 1):
            x = self.get_submodule(f"conv{i}")(x)
            if i == 1:
                x = self.pool(x)
            elif i == self.convs and self.squeeze_excite is not None:
                x = x * self.squeeze_excite(first)
            x = self.get_submodule(f"norm{i}")(x)
            x = self.get_submodule(f"act{i}")(x)
            if i == 1:
                first = x
        return x + first if self.residual and self.convs > 1 else x


class Projection(nn.Module):
    """A 1x1 convolution with norm and activation: from whitened to learned channels."""

    def __init__(self, inputs: int, width: int, recipe: NetworkRecipe) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm = BatchNorm(width, recipe.norm)
        self.act = ACTIVATIONS[recipe.activation]()

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each norm and the activation behind it."""
        return [(self.norm, self.act)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H, W)."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class GlobalMax(nn.Module):
    """The maximum over all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return x.amax(dim=(2, 3))


class GlobalMaxMean(GlobalMax):
    """The maximum over all pixels plus their mean."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return x.mean(dim=(2, 3)) + super().forward(x)  # the last one's gradient comes first, and says how both lie


POOLS: dict[str, type[GlobalMax]] = {"max": GlobalMax, "max_mean": GlobalMaxMean}


class Head(nn.Linear):
    """A linear layer without bias whose logits are scaled down, so that training begins from even odds."""

    def __init__(self, inputs: int, classes: int, scale: float) -> None:
        super().__init__(inputs, classes, bias=False)
        self.scale = scale or 1 / inputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) to logits (N, classes)."""
        return super().forward(x) * self.scale


class Network(nn.Module):
    """The network of a recipe, for images (N, 3, 32, 32) normalised to mean 0 and standard deviation 1."""

    def __init__(self, recipe: NetworkRecipe, classes: int) -> None:
        super().__init__()
        whiten = recipe.whiten
        width = whiten.channels
        self.whiten = nn.Conv2d(3, width, whiten.kernel, padding=whiten.padding, bias=whiten.bias)
        self.whiten.weight.requires_grad_(False)
        if recipe.project:
            self.project: nn.Module = Projection(width, recipe.project, recipe)
            width = recipe.project
        else:
            self.act = ACTIVATIONS[whiten.activation]()
        for i, kernels in enumerate(recipe.kernel_sizes()):
            self.add_module(f"group{i + 1}", ConvGroup(width, recipe.channels(i), kernels, recipe))
            width = recipe.widths[i]
        self.groups = len(recipe.widths)
        self.pool = POOLS[recipe.pool]()
        self.head = Head(recipe.widths[-1], classes, recipe.head.scale)
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, classes)."""
        x = self.whiten(x)
        x = self.project(x) if self.recipe.project else self.act(x)
        for i in range(1, self.groups + 1):
            x = self.get_submodule(f"group{i}")(x)
        logits: Tensor = self.head(self.pool(x))
        return logits

    @torch.no_grad()
    def initialize(self, generator: Generator) -> None:
        """Fresh weights from a CPU generator (the same on every device): PyTorch's default bounds, then what the
        recipe asks: the identity on the channels that come in (airbench), a head of standard deviation one.

        The whitening filters stay unset until `set_whitening`.
        """
        groups = [module for module in self.modules() if isinstance(module, ConvGroup)]
        dirac = [conv for group in groups for conv in group.convolutions()] if self.recipe.dirac else []
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = 1 / math.sqrt(module.weight[0].numel())
                for parameter in module.parameters(recurse=False):
                    # Made on the CPU and copied at once: filter by filter a GPU would need thousands of launches.
                    fresh = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                    if module in dirac:
                        nn.init.dirac_(fresh[: parameter.size(1)])
                    if module is self.head and self.recipe.head.unit_std:
                        fresh /= fresh.std()
                    parameter.copy_(fresh)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    @torch.no_grad()
    def set_whitening(self, images: Iterable[Tensor]) -> None:
        """Set the first convolution so that its outputs over normalised images, given in chunks (n, 3, 32, 32), are
        decorrelated.

        The filters are the eigenvectors of the patch covariance over the roots of its eigenvalues (Page, "How to
        train your ResNet", 2018; hlb-CIFAR10), all or those of the largest. Computed in float64 on the CPU: the matrix
        is small, and neither half precision nor every accelerator can decompose it.
        """
        recipe = self.recipe.whiten
        covariance = patch_covariance(images, recipe.kernel, recipe.centered)
        eigenvalues, eigenvectors = (each[..., -recipe.filters :] for each in torch.linalg.eigh(covariance))  # rising
        filters = (eigenvectors / torch.sqrt(eigenvalues + recipe.eps)).T.reshape(-1, 3, recipe.kernel, recipe.kernel)
        self.whiten.weight.copy_(torch.cat([filters, -filters][: recipe.signs]))


def patch_covariance(images: Iterable[Tensor], kernel: int, centered: bool) -> Tensor:
    """Second moment (or covariance about the mean) of all `kernel` x `kernel` patches of chunks of images
    (n, 3, 32, 32): (3 k², 3 k²), float64 on the CPU, from sums in float32 over each chunk."""
    size, count = 3 * kernel**2, 0
    moments, totals = [], []
    for chunk in images:
        patches = F.unfold(chunk.float(), kernel).transpose(1, 2).reshape(-1, size)
        moments.append(patches.T @ patches / len(patches) * len(chunk))
        totals.append(patches.mean(0) * len(chunk))
        count += len(chunk)
    moment, mean = (torch.stack(parts).cpu().double().sum(0) / count for parts in (moments, totals))
    return moment - torch.outer(mean, mean) if centered else moment


def create_network(recipe: NetworkRecipe, classes: int) -> nn.Module:
    """The network of a recipe, built here or by the code that it names.

    Raises UsageError where that code fails, or gives what cannot be trained: it is tried on a few images.
    """
    if not recipe.factory:
        return Network(recipe, classes)
    factory = UserCode(recipe.factory, "it is called with the recipe's network section and the number of classes")
    with factory:
        network = import_object(recipe.factory)(recipe, classes)
    if not isinstance(network, nn.Module):
        raise factory.fault(f"gave no nn.Module but {type(network).__name__}")
    try_network(network, network_code(recipe), classes)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise factory.fault("gave a network without a parameter to train")
    return network


def network_code(recipe: NetworkRecipe) -> UserCode:
    """To be entered around every call of a recipe's network, which may be the user's."""
    return UserCode(recipe.factory, "its images are (N, 3, 32, 32) in channels-last memory, its outputs (N, classes)")


def try_network(network: nn.Module, code: UserCode, classes: int) -> None:
    """Evaluate a user's network on random images; raises UsageError where it fails or its outputs are no logits."""
    count = 2 if classes != 2 else 3  # another number than that of the classes
    images = torch.randn(count, 3, SIDE, SIDE, generator=Generator().manual_seed(0))
    if (first := next(network.parameters(), None)) is not None:
        images = images.to(first.device, first.dtype)
    training = network.training
    with code, torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = network.eval()(images.contiguous(memory_format=torch.channels_last))
    network.train(training)
    check_logits(logits, code, count, classes)
    if not logits.isfinite().all():
        raise code.fault("gives outputs that are not finite")


def check_logits(logits: Any, code: UserCode, count: int, classes: int) -> None:
    """Raise UsageError unless a user's network gave logits (count, classes)."""
    if not isinstance(logits, Tensor):
        raise code.fault(f"gives no tensor but {type(logits).__name__}")
    if logits.shape != (count, classes):
        raise code.fault(f"gives outputs {tuple(logits.shape)} for {count} images of {classes} classes")


def trained_parameters(network: nn.Module) -> int:
    """How many numbers training may change."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The recipe's precision on CUDA, float32 elsewhere."""
    return DTYPES[recipe.training.precision] if device.type == "cuda" else torch.float32


def build_network(recipe: Recipe, classes: int, device: torch.device) -> nn.Module:
    """The recipe's network on the device, in its precision and channels-last memory; weights of our own are unset."""
    network = create_network(recipe.network, classes)
    with network_code(recipe.network):
        network.to(device=device, dtype=precision(recipe, device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.network.norm.precision == "float32":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.float()
    return network
