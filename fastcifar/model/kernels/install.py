"""Our C++ kernels put in place of the layers they can compute, on a CPU in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fastcifar.model.kernels import convolution, norm_act
from fastcifar.model.kernels.augment import augment_cpu
from fastcifar.model.kernels.build import library

SOURCES = ("convolution", "norm_act", "augment")


@dataclass(frozen=True)
class Installed:
    """What stands for PyTorch's operators now: `augment` for `model.augment.augment`, and by the name of each replaced
    layer the class that it had."""

    augment: Callable[..., Tensor]
    replaced: dict[str, type[nn.Module]]


def compile_kernels() -> None:
    """Compile all kernels, or find them compiled; raises MachineError or OSError where that fails."""
    for name in SOURCES:
        library(name)


def install(network: nn.Module) -> Installed:
    """Have the layers of a network that the kernels can compute use them, in place; the weights stay as they are.

    Convolutions come first: one takes in the pooling behind it, which must not look replaced to it. Raises
    MachineError where the kernels cannot be compiled.
    """
    compile_kernels()
    before = {name: type(module) for name, module in network.named_modules()}
    convolution.install(network)
    norm_act.install(network)
    after = {name: type(module) for name, module in network.named_modules()}
    replaced = {name: kind for name, kind in before.items() if after[name] is not kind}
    return Installed(augment_cpu, replaced)
