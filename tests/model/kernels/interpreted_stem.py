"""Triton kernels of both ends of a step against PyTorch's operators; run by `test_triton_stem.py`, in a process of its
own: with TRITON_INTERPRET=1 on the CPU, without on a GPU."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from operator_shapes import assert_a_graph_repeats, assert_shapes_are_known
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.model.augment import AugmentPlan, AugmentSampler, augment
from fastcifar.model.kernels import triton_augment, triton_loss, triton_whiten
from fastcifar.model.kernels.build import Fused
from fastcifar.model.kernels.triton_activations import activate, slope
from fastcifar.model.kernels.triton_augment import augment_cuda
from fastcifar.model.kernels.triton_convolution import padded_channels
from fastcifar.model.kernels.triton_operators import INTERPRETED
from fastcifar.model.network import Network
from fastcifar.profiling.op_counter import OpCounter
from fastcifar.recipes.schema import Data, Whiten
from fastcifar.recipes.schema import Network as NetworkRecipe
from fastcifar.training.step import loss_and_metrics as plain_loss_and_metrics
from fastcifar.training.step import summed_loss

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
MEAN, STD = torch.tensor([0.5, 0.4, 0.3], device=DEVICE), torch.tensor([0.2, 0.25, 0.3], device=DEVICE)
LAST = torch.channels_last
DTYPES = (torch.float16, torch.float32)
loss_and_metrics = partial(triton_loss.loss_and_metrics, plain_loss_and_metrics)
ROUNDING = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def images_and_plan(data: Data) -> tuple[Tensor, AugmentPlan]:
    """Nine images, and a plan for three of them that is a slice, as in training."""
    generator = torch.Generator(DEVICE).manual_seed(5)
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=generator, device=DEVICE)
    return images, AugmentSampler(data, len(images), generator).sample(1).batch(4, 3)


@pytest.fixture
def whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program an image: the interpreter takes its time for each."""
    monkeypatch.setattr(triton_augment, "PIXELS", 1024)


@triton.jit
def activation_kernel(x, y, d, KIND: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    tl.store(y + at, activate(tl.load(x + at), KIND))
    tl.store(d + at, slope(tl.load(x + at), KIND))


@pytest.mark.parametrize("kind", ["gelu", "silu", "celu"])
def test_activations_are_pytorchs(kind: str) -> None:
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 60.0, -60.0, 6e4, -6e4])
    x = torch.cat([torch.linspace(-12, 12, 4096 - len(special)), special]).to(DEVICE)
    y, d = torch.empty_like(x), torch.empty_like(x)
    activation_kernel[(1,)](x, y, d, KIND=kind, SIZE=4096)
    exact = x.double().requires_grad_()
    expected = triton_whiten.DEFINITIONS[kind](exact)
    expected.sum().backward()
    torch.testing.assert_close(y.double(), expected, atol=5e-7, rtol=5e-7)
    torch.testing.assert_close(d.double(), exact.grad, atol=1e-6, rtol=1e-6)
    x.fill_(torch.nan)
    activation_kernel[(1,)](x, y, d, KIND=kind, SIZE=4096)
    assert y.isnan().all()
    x.fill_(torch.inf)
    activation_kernel[(1,)](x, y, d, KIND=kind, SIZE=4096)
    assert y.isposinf().all()


@pytest.mark.usefixtures("whole_images")
@pytest.mark.parametrize("parts", range(32))
def test_augment_for_every_combination_of_parts(parts: int) -> None:
    flip, shift, box, brightness, contrast = (bool(parts >> bit & 1) for bit in range(5))
    data = Data("random" if flip else "none", 31 * shift, 9 * box, 0.3 * brightness, 0.4 * contrast)
    images, plan = images_and_plan(data)
    assert [getattr(plan, field.name) is not None for field in dataclasses.fields(plan)][1:] == [
        flip,
        shift,
        box,
        brightness,
        contrast,
    ]
    side = 32 if parts % 5 else 24
    expected = augment(images, plan, MEAN, STD, torch.float32, 9, side)
    found = triton_augment.OPERATOR(
        images, plan.index, plan.flip, plan.shift, plan.box, plan.brightness, plan.contrast, MEAN, STD,
        torch.float32, 9, side, True,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.usefixtures("whole_images")
@pytest.mark.parametrize(
    ("side", "dtype"),
    [
        *((side, torch.float16) for side in (32, 31, 28, 24, 20, 17, 16)),
        *((side, dtype) for side in (32, 24) for dtype in (torch.bfloat16, torch.float32)),
    ],
)
def test_augment_at_every_side(side: int, dtype: torch.dtype) -> None:
    check_augment(side, dtype)
    check_augment(side, dtype, antialias=False)


def test_augment_in_blocks() -> None:
    assert triton_augment.PIXELS < 16**2
    for side in (32, 17):
        check_augment(side, torch.float32)


def check_augment(side: int, dtype: torch.dtype, antialias: bool = True) -> None:
    images, plan = images_and_plan(Data("alternating", 2, 11, 0.1, 0.1))
    expected = augment(images, plan, MEAN, STD, dtype, 11, side, antialias)
    found = augment_cuda(images, plan, MEAN, STD, dtype, 11, side, antialias)
    assert found.dtype == dtype and found.stride() == expected.stride()
    torch.testing.assert_close(found.float(), expected.float(), atol=ROUNDING[dtype], rtol=ROUNDING[dtype])


@pytest.mark.usefixtures("whole_images")
def test_augment_reflects_at_every_border() -> None:
    """Pixel for pixel in uint8 values, at the largest shifts, mirrored or not."""
    images, _ = images_and_plan(Data())
    shifts = torch.tensor([[31, -31], [-31, 31], [1, -1], [-1, 1], [0, 2], [-2, 0]], device=DEVICE)
    zero, one = torch.zeros(3, device=DEVICE), torch.full((3,), 1 / 255, device=DEVICE)
    for mirrored in (False, True):
        plan = AugmentPlan(torch.arange(6, device=DEVICE), torch.full((6,), mirrored, device=DEVICE), shifts)
        expected = augment(images, plan, zero, one, torch.float32)
        assert torch.equal(augment_cuda(images, plan, zero, one, torch.float32).round(), expected.round())


def test_augment_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    images, plan = images_and_plan(Data("random", 2))
    monkeypatch.setattr(triton_augment, "OPERATOR", None)
    for side in (15, 40):
        expected = augment(images, plan, MEAN, STD, torch.float32, 0, side)
        torch.testing.assert_close(augment_cuda(images, plan, MEAN, STD, torch.float32, 0, side), expected)
    shift = torch.stack(list(plan.shift.unbind(1))).T  # type: ignore[union-attr]
    assert not shift.is_contiguous()
    strided = dataclasses.replace(plan, shift=shift)
    expected = augment(images, plan, MEAN, STD, torch.float32)
    torch.testing.assert_close(augment_cuda(images, strided, MEAN, STD, torch.float32), expected)


def test_augment_counts_the_rows_of_the_batch_alone() -> None:
    images, plan = images_and_plan(Data("random", 2))
    arguments = (images, plan.index, plan.flip, plan.shift, None, None, None, MEAN, STD, torch.float16, 0, 32, True)
    out = triton_augment.OPERATOR(*arguments)
    plans = 3 * (8 + 1 + 16) + 2 * 12
    assert triton_augment.traffic(arguments, out) == 3 * 3072 + 3 * 3072 * 2 + plans


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("side", [16, 17, 20, 23, 24, 28, 31])
def test_taps_are_few_and_all_there_is(side: int, antialias: bool) -> None:
    filters = triton_augment.resize_filters(side, antialias, DEVICE)
    lines = torch.zeros(side, 32, device=DEVICE)
    for row, (first, *weights) in zip(lines, filters.tolist(), strict=True):
        assert len(weights) <= 4 and 0 <= first <= 32 - len(weights)
        row[int(first) : int(first) + len(weights)] = torch.tensor(weights, device=DEVICE)
    torch.testing.assert_close(lines.sum(1), torch.ones(side, device=DEVICE))
    picture = random(1, 1, 32, 32)
    expected = F.interpolate(picture, (side, side), mode="bilinear", antialias=antialias)
    torch.testing.assert_close(lines @ picture[0, 0] @ lines.T, expected[0, 0], atol=1e-5, rtol=1e-5)


def small_network(whiten: Whiten, dtype: torch.dtype, **sections: Any) -> Network:
    """With filters and a bias that are large enough to reach every part of the activation."""
    network = Network(NetworkRecipe(whiten=whiten, widths=(8,), convs=(1,), **sections), 10)
    network.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.whiten.weight.copy_(0.5 * random(*network.whiten.weight.shape))
        if network.whiten.bias is not None:
            network.whiten.bias.copy_(random(*network.whiten.bias.shape, seed=1))
    return network.to(device=DEVICE, dtype=dtype, memory_format=LAST)  # type: ignore[call-overload, no-any-return]


def check_whitening(whiten: Whiten, dtype: torch.dtype, count: int = 3, side: int = 12) -> None:
    fused = small_network(whiten, dtype)
    exact = copy.deepcopy(fused).double()
    triton_whiten.install(fused)
    assert isinstance(fused.whiten, triton_whiten.WhitenAct) and type(fused.act) is Fused
    images = random(count, 3, side, side).to(dtype).contiguous(memory_format=LAST)
    assert fused.whiten.suits(images)
    whole, expected = fused.act(fused.whiten(images)), exact.act(exact.whiten(images.double()))
    assert whole.dtype == dtype and whole.is_contiguous(memory_format=LAST)
    assert whole.size(1) == padded_channels(expected.size(1)) and not whole[:, expected.size(1) :].any()
    found = whole[:, : expected.size(1)]
    torch.testing.assert_close(found.double(), expected, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])
    assert found.requires_grad == whiten.bias
    if whiten.bias:
        grad = random(*found.shape, seed=3).to(dtype)  # not channels-last
        found.backward(grad)
        expected.backward(grad.double())
        bias, reference = fused.whiten.bias.grad, exact.whiten.bias.grad  # type: ignore[union-attr]
        assert bias is not None and reference is not None and bias.dtype == dtype
        scale = float(reference.abs().max())
        torch.testing.assert_close(bias.double(), reference, atol=ROUNDING[dtype] * scale, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("activation", "kernel", "padding"),
    [("gelu", 1, 0), ("gelu", 2, 0), ("gelu", 3, 1), ("silu", 2, 1), ("silu", 3, 0), ("celu", 2, 0), ("celu", 3, 1)],
)
def test_whitening(activation: Any, kernel: int, padding: int, dtype: torch.dtype) -> None:
    check_whitening(Whiten(kernel, padding, activation=activation), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_whitening_without_a_bias_or_the_second_sign(dtype: torch.dtype) -> None:
    check_whitening(Whiten(signs=1, bias=False), dtype)
    check_whitening(Whiten(signs=1), dtype, count=2, side=17)  # 512 pixels: whole blocks
    check_whitening(Whiten(3, signs=1, filters=16), dtype)


def test_whitening_sums_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_whiten, "SUMMED", 2)
    check_whitening(Whiten(), torch.float32, count=9)  # 1,089 pixels: five blocks, the last not full


def test_the_bias_may_be_frozen() -> None:
    network = small_network(Whiten(), torch.float32)
    triton_whiten.install(network)
    network.whiten.bias.requires_grad_(False)  # type: ignore[union-attr]
    assert not network.whiten(random(2, 3, 8, 8).contiguous(memory_format=LAST)).requires_grad


def test_whitening_falls_back() -> None:
    fused = small_network(Whiten(), torch.float32)
    plain = copy.deepcopy(fused)
    triton_whiten.install(fused)
    last = random(2, 3, 8, 8).contiguous(memory_format=LAST)
    for images, filters in ((last, True), (last.clone().requires_grad_(), False), (last.contiguous(), False)):
        results = []
        for network in (plain, fused):
            network.zero_grad()
            given = images.detach().clone().requires_grad_(images.requires_grad)
            network.whiten.weight.requires_grad_(filters)
            network.act(network.whiten(given)).square().sum().backward()
            results.append((given.grad, network.whiten.weight.grad, network.whiten.bias.grad))  # type: ignore[union-attr]
        assert isinstance(fused.whiten, triton_whiten.WhitenAct) and not fused.whiten.suits(given)
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
    with torch.no_grad():  # where no gradient is wanted the kernel runs
        assert fused.whiten.suits(last.clone().requires_grad_())


def test_only_networks_whose_whitening_is_activated_are_changed() -> None:
    projected = small_network(Whiten(bias=False), torch.float32, project=8)
    large = small_network(Whiten(4), torch.float32)
    other = small_network(Whiten(activation="celu"), torch.float32)
    assert isinstance(other.act, nn.CELU)
    other.act.alpha = 1.0
    users = nn.Sequential(nn.Conv2d(3, 8, 2), nn.GELU())
    for network in (projected, large, other, users):
        before = [type(module) for module in network.modules()]
        triton_whiten.install(network)
        assert [type(module) for module in network.modules()] == before


def check_loss(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> None:
    """Against the definition in float64, with metrics that are not zero before and a gradient that is not one."""
    given = logits.clone().requires_grad_()
    metrics = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
    loss = loss_and_metrics(given, labels, smoothing, weights, metrics)
    assert loss.dtype == torch.float32 and loss.shape == ()
    (loss * 0.5).backward()
    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact, labels, label_smoothing=smoothing, reduction="none")
    reference = (losses if weights is None else losses * weights.double()).sum()
    (reference * 0.5).backward()
    torch.testing.assert_close(loss.double(), reference, atol=1e-5, rtol=2e-6)
    assert given.grad is not None and exact.grad is not None and given.grad.dtype == logits.dtype
    rounding = {torch.float32: 1e-6, torch.float16: 6e-4}[logits.dtype]
    torch.testing.assert_close(given.grad.double(), exact.grad, atol=1e-6, rtol=rounding)
    expected = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
    plain_loss_and_metrics(logits, labels, smoothing, weights, expected)
    torch.testing.assert_close(metrics, expected, atol=1e-4, rtol=2e-6)
    assert metrics[1:].equal(expected[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("images", "classes"), [(150, 10), (21, 100), (5, 2), (3, 1024)])
def test_loss(images: int, classes: int, smoothing: float, weighted: bool, dtype: torch.dtype) -> None:
    logits = (3 * random(images, classes)).to(dtype)
    labels = torch.randint(0, classes, (images,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    logits[0::2, :][torch.arange(len(labels[0::2]), device=DEVICE), labels[0::2]] += (
        4  # half of the predictions are right
    )
    check_loss(logits, labels, smoothing, random(images, seed=2).abs() if weighted else None)


def test_the_first_of_equal_logits_is_the_prediction() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [5.0, 1.0, 5.0], [3.0, 3.0, 3.0]], device=DEVICE)
    for labels in ([1, 0, 0, 0], [2, 1, 2, 2]):
        check_loss(logits.half(), torch.tensor(labels, device=DEVICE), 0.1, None)


def test_loss_with_large_and_infinite_logits() -> None:
    logits = torch.tensor([[6e4, -6e4, 0.0], [0.0, 6e4, -torch.inf]], device=DEVICE)
    check_loss(logits.half(), torch.tensor([0, 1], device=DEVICE), 0.0, None)
    labels, metrics = torch.tensor([0], device=DEVICE), torch.zeros(3, device=DEVICE)
    assert loss_and_metrics(torch.tensor([[torch.nan, 0.0]], device=DEVICE), labels, 0.1, None, metrics).isnan()


def test_loss_sums_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_loss, "TILE", 16)  # one row a program, sixteen programs' sums at once
    check_loss(random(50, 10), torch.arange(50, device=DEVICE) % 10, 0.2, None)


def test_loss_of_logits_that_are_not_dense() -> None:
    wide = random(20, 12).requires_grad_()
    labels = torch.arange(20, device=DEVICE) % 10
    loss_and_metrics(wide[:, :10], labels, 0.2, None, torch.zeros(3, device=DEVICE)).backward()
    exact = wide.detach().requires_grad_()
    summed_loss(exact[:, :10], labels, 0.2).backward()
    torch.testing.assert_close(wide.grad, exact.grad)


def test_what_the_loss_does_not_take() -> None:
    assert triton_loss.suits(random(4, 10)) and triton_loss.suits(random(4, 1024).half())
    assert not triton_loss.suits(random(4, 1025)) and not triton_loss.suits(random(4, 10).double())


def cases() -> list[tuple[Any, tuple[Any, ...]]]:
    """Every operator with arguments of it."""
    images, plan = images_and_plan(Data("random", 2, 9, 0.1, 0.1))
    changes = (plan.flip, plan.shift, plan.box, plan.brightness, plan.contrast)
    small = random(3, 3, 12, 12).half().contiguous(memory_format=LAST)
    filters, bias = random(24, 3, 2, 2).half().contiguous(memory_format=LAST), random(24).half()
    grad = random(3, 24, 11, 11).half().contiguous(memory_format=LAST)
    logits, labels = random(150, 10).half(), torch.arange(150, device=DEVICE) % 10
    return [
        (triton_augment.OPERATOR, (images, plan.index, *changes, MEAN, STD, torch.float16, 9, 24, True)),
        (triton_whiten.FORWARD, (small, filters, bias, 0, 32, "gelu")),
        (triton_whiten.FORWARD, (small, filters, None, 1, 24, "silu")),
        (triton_whiten.BACKWARD, (small, filters, bias, grad, 0, "gelu")),
        (triton_whiten.BIAS, (random(24, 5), bias)),
        (triton_loss.LOSS, (logits, labels, None, 0.2)),
        (triton_loss.METRICS, (random(2, 3), torch.zeros(3, device=DEVICE), 150)),
        (triton_loss.BACKWARD, (logits, labels, None, torch.ones((), device=DEVICE), 0.2)),
    ]


def test_the_operations_of_the_whitening_are_those_of_the_convolution() -> None:
    images, filters, bias = random(3, 3, 12, 12), random(24, 3, 2, 2), random(24)
    layout = (images.contiguous(memory_format=LAST), filters.contiguous(memory_format=LAST), bias)
    with FlopCounterMode(display=False) as counter:
        F.conv2d(images, filters, bias)
    with OpCounter() as ours:
        triton_whiten.FORWARD(*layout, 0, 32, "gelu")
    assert sum(cost.flops for cost in ours.costs.values()) == counter.get_total_flops() > 0


def test_the_shapes_of_what_is_not_computed() -> None:
    assert_shapes_are_known(cases(), triton_augment, triton_whiten, triton_loss)


@pytest.mark.skipif(INTERPRETED, reason="one program after the other")
def test_the_same_bits_each_time() -> None:
    for operator, arguments in cases():
        again = [each.clone() if isinstance(each, Tensor) else each for each in arguments]
        assert torch.equal(operator(*arguments), operator(*again))


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_kernels_can_be_captured() -> None:
    for operator, arguments in cases():
        expected = operator(*arguments).clone()  # makes the table of the resizing
        assert_a_graph_repeats(operator, arguments, expected)
