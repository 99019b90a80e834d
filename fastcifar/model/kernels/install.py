"""Our kernels put in place of what they can compute: in C++ on a CPU in float32, in Triton on CUDA."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcifar.model.kernels import convolution, norm_act
from fastcifar.model.kernels.augment import augment_cpu
from fastcifar.model.kernels.build import library, private_folder, warn_not_kept
from fastcifar.model.kernels.triton_operators import runs_on

SOURCES = ("convolution", "norm_act", "augment")


@dataclass(frozen=True)
class Installed:
    """What stands for PyTorch's operators now: `augment` for `model.augment.augment`, `loss_and_metrics` for that of
    `training.step`, which it takes as its first argument (None: nothing does), and by the name of each replaced layer
    the class that it had."""

    augment: Callable[..., Tensor] | None
    loss_and_metrics: Callable[..., Tensor] | None
    replaced: dict[str, type[nn.Module]]


def compile_kernels() -> None:
    """Compile all kernels, or find them compiled; raises MachineError or OSError where that fails."""
    for name in SOURCES:
        library(name)


def missing_triton() -> str | None:
    """Why kernels in Triton cannot run; None where they can."""
    from importlib.util import find_spec

    return None if find_spec("triton") else "our kernels for CUDA need Triton"


def install(network: nn.Module, device: torch.device) -> Installed:
    """Have the layers of a network that the kernels can compute use them, in place; the weights stay as they are.

    Raises MachineError where the kernels cannot be compiled.
    """
    before = {name: type(module) for name, module in network.named_modules()}
    augment, loss_and_metrics = install_triton(network) if runs_on(device) else install_cpu(network)
    after = {name: type(module) for name, module in network.named_modules()}
    replaced = {name: kind for name, kind in before.items() if after[name] is not kind}
    return Installed(augment, loss_and_metrics, replaced)


def install_cpu(network: nn.Module) -> tuple[Callable[..., Tensor], None]:
    """The kernels in C++. Convolutions come first: one takes in the pooling behind it, which must not look replaced to
    it."""
    compile_kernels()
    convolution.install(network)
    norm_act.install(network)
    return augment_cpu, None


def install_triton(network: nn.Module) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The kernels in Triton, which compiles each when it is first launched and keeps it. The whitening comes first: it
    takes in the activation behind it, which must not look replaced to it."""
    try:
        os.environ.setdefault("TRITON_CACHE_DIR", str(private_folder() / "triton"))
    except OSError as error:
        warn_not_kept(error)
    from fastcifar.model.kernels import triton_layers, triton_whiten
    from fastcifar.model.kernels.triton_augment import augment_cuda
    from fastcifar.model.kernels.triton_loss import loss_and_metrics

    triton_whiten.install(network)
    triton_layers.install(network)
    return augment_cuda, loss_and_metrics
