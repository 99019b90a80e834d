"""Memory by layer and the peak of a step, worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from profiling_helpers import CPU, layer_of, profile_network, small_target
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastcifar
from fastcifar.profiling.memory import MemoryUse, measure_memory
from fastcifar.profiling.result import Profile
from fastcifar.profiling.targets import ProfileTarget
from fastcifar.training.engine import choose_engine

FLOAT, LONG = 4, 8  # bytes
LOSS_BYTES = 4 * 10 * FLOAT + 4 * LONG + FLOAT  # cross-entropy: log-probabilities, labels, the sum of their weights


def activations(profile: Profile) -> dict[str, int]:
    """The layers that keep something, with their bytes."""
    return {layer.name: layer.activation_bytes for layer in profile.layers if layer.activation_bytes}


def test_the_memory_of_a_small_network_is_exact() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 10))
    result = profile_network(network, image=(8,), batch=4)
    x, hidden, logits = 4 * 8 * FLOAT, 4 * 16 * FLOAT, 4 * 10 * FLOAT
    # The output of tanh serves its own gradient and the last layer's: it counts once, for tanh, which saved it first.
    assert activations(result) == {"0": x, "1": hidden, "loss": LOSS_BYTES}
    assert result.activation_bytes == x + hidden + LOSS_BYTES
    parameters = (8 * 16 + 16 + 16 * 10 + 10) * FLOAT
    assert result.held_memory == 2 * parameters + x + 4 * LONG  # with momentum, the batch and its labels
    # As the backward pass ends: all gradients, that of the first layer's output, the logits, the loss and its gradient.
    assert result.peak_memory == result.held_memory + parameters + hidden + logits + 2 * FLOAT


class Shared(nn.Module):
    """Saves one tensor twice, drops what it computed for nothing, and saves views of one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dropped, self.head = (nn.Linear(8, n) for n in (8, 8, 8, 10))

    def forward(self, x: Tensor) -> Tensor:
        self.dropped(x.exp()).exp()
        left, right = x.exp().chunk(2)
        out: Tensor = self.head(torch.cat([self.first(left), self.second(right)]))
        return out


def test_a_storage_counts_once_and_what_is_dropped_does_not() -> None:
    kept = activations(profile_network(Shared(), image=(8,), batch=4))
    hidden = 4 * 8 * FLOAT
    # Both halves of the batch lie in one storage, which the first layer keeps.
    assert kept == {"first": hidden, "head": hidden, "loss": LOSS_BYTES}


def test_a_batch_that_is_a_view_of_a_dataset_counts_as_the_batch() -> None:
    network, images = nn.Linear(8, 10), torch.randn(1000, 8)
    optimizer = torch.optim.SGD(network.parameters())
    result = fastcifar.profile(network, F.cross_entropy, optimizer, images[:4], torch.arange(4), 2)
    assert layer_of(result, "network").activation_bytes == 4 * 8 * FLOAT
    assert result.held_memory == (1000 * 8 + 8 * 10 + 10) * FLOAT + 4 * LONG


class Checkpointed(nn.Module):
    """A body that is recomputed in the backward pass, and a head."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.body = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant))
        return out


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_body_keeps_its_input_only(reentrant: bool) -> None:
    kept = activations(profile_network(Checkpointed(reentrant), image=(8,), batch=4))
    hidden = 4 * 8 * FLOAT
    assert kept == {"stem": hidden, "network.self": hidden, "head": hidden, "loss": LOSS_BYTES}


def test_the_fused_kernels_keep_less() -> None:
    plain, fast = (
        measure_memory(small_target("air94", engine=choose_engine(name, CPU))) for name in ("eager", "compiled")
    )
    conv, pixels = "group2.conv1", 15 * 15  # on 8 images and channels, pooled to 7 x 7 of 16 channels
    assert plain.activations[conv] == 8 * 8 * pixels * FLOAT  # its input
    assert fast.activations[conv] == 8 * 8 * pixels * FLOAT + 8 * 16 * 7 * 7  # and which pixel each maximum is
    norm = "group2.norm1"  # which does the activation behind it, too
    assert fast.activations[norm] == 8 * 16 * 7 * 7 * FLOAT + 2 * 16 * FLOAT  # its input, and a scale and a shift
    assert "group2.act1" not in fast.activations and plain.activations["group2.act1"] == 8 * 16 * 7 * 7 * FLOAT
    assert plain.step is not None and fast.step is not None and fast.step < plain.step
    assert fast.held == plain.held


def test_the_gradients_of_an_earlier_step_count_once() -> None:
    def steps() -> Iterator[MemoryUse]:
        """The memory of a step that finds gradients, and of one that does not."""
        for gradients in (True, False):
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter) if gradients else None
            yield measure_memory(target)

    network = nn.Linear(8, 10)

    def run() -> None:
        network.zero_grad(set_to_none=True)
        network(images).sum().backward()

    images = torch.randn(4, 8)
    target = ProfileTarget("linear", network, run, 4, CPU, torch.float32)
    first, second = steps()
    assert first == second and first.held == (8 * 10 + 10) * FLOAT
