"""fastcifar: train on CIFAR-10 in seconds, and see where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcifar.network import Network
    from fastcifar.profiler import Profile

__version__ = "0.1.0"


def load(path: str | Path, device: str = "cpu") -> Network:
    """The trained network of a checkpoint that `fastcifar train` wrote, in evaluation mode, on `device`.

    It takes images (N, 3, 32, 32), normalised with the `mean` and `std` that stand in the checkpoint, in channels-last
    memory and the type of its parameters, and gives logits (N, classes). Raises DataError for a damaged checkpoint.
    """
    import torch

    from fastcifar import store

    return store.network_of(store.load_checkpoint(Path(path)), torch.device(device))


def profile(network: Any, loss: Any, optimizer: Any, inputs: Any, targets: Any, steps: int | None = None) -> Profile:
    """Where the time of a training step of any `nn.Module` goes: `fastcifar.profiler.profile_module`, which see."""
    from fastcifar import profiler

    return profiler.profile_module(network, loss, optimizer, inputs, targets, steps)
