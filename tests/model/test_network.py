"""Networks: what the public sources state of them, and each part held against a plain way to compute it."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.model.network import BatchNorm, Network, patch_covariance, trained_parameters
from fastcifar.recipes.parse import load_recipe, recipe_names
from fastcifar.recipes.schema import Norm
from fastcifar.training.flops import count_flops, image_flops

ALL = recipe_names()
CHEAP_EARLY = (  # the groups of NAVIER-STOKED for CIFAR-100
    *("network.convs=[3, 3, 3]", "network.kernels=[[3, 1, 1], [3, 3, 1], [2, 3, 3]]", "network.residual=true"),
    *("network.bottlenecks=[32, 96, 64]", "network.pool=max_mean"),
)


def network_of(name: str, *overrides: str, seed: int = 0) -> Network:
    network = Network(load_recipe(name, *overrides).network, 10)
    network.initialize(torch.Generator().manual_seed(seed))
    return network


def test_air94_has_the_published_size() -> None:
    """DESIGN.md: 1,971,352 trained parameters; 236.3 MFLOP forward, 471.5 and later 444.9 backward an image."""
    network = network_of("air94")
    assert trained_parameters(network) == 1_971_352
    forward, backward = image_flops(network, 32)
    assert (round(forward / 1e6, 1), round(backward / 1e6, 1)) == (236.3, 471.5)
    assert network.whiten.bias is not None
    network.whiten.bias.requires_grad_(False)
    assert round(image_flops(network, 32)[1] / 1e6, 1) == 444.9


@pytest.mark.parametrize(("name", "published"), [("air94", 2.91e14), ("hive94", 2.60e14)])
def test_a_run_costs_the_published_operations(name: str, published: float) -> None:
    assert count_flops(load_recipe(name)).total == pytest.approx(published, rel=0.005)


def test_smaller_images_count_for_the_steps_that_see_them() -> None:
    frozen = "optimizer.whiten_bias.schedule=[[0, 0]]"  # else the first steps, which train it, cost more than the last
    whole, half, small = (
        count_flops(load_recipe("tiny", frozen, f"data.resolution={points}")).training
        for points in ("[[0, 32]]", "[[0, 20], [0.5, 20], [0.5, 32]]", "[[0, 20]]")
    )
    assert small < whole and half == (whole + small) / 2


def test_frozen_groups_have_no_backward_pass() -> None:
    """The first for half of a run: the mean of a run that trains it and of one that does not."""
    frozen = "optimizer.whiten_bias.schedule=[[0, 0]]"
    trained, half, never = (
        count_flops(load_recipe("tiny", frozen, f"optimizer.freeze=[{share}, 1, 1]")) for share in (1, 0.5, 0)
    )
    assert never.training < trained.training and half.training == (trained.training + never.training) / 2
    network = network_of("tiny")
    size = {name: parameter.numel() for name, parameter in network.named_parameters()}
    saved = 2 * (  # of an image: filters and inputs of group 1, inputs of group 2
        2 * 31 * 31 * size["group1.conv1.weight"]
        + 2 * 15 * 15 * size["group1.conv2.weight"]
        + 15 * 15 * size["group2.conv1.weight"]
    )
    steps = 4 * 50_000 // 250
    assert never.training == steps * 250 * (sum(image_flops(network, 32)) - saved)


@pytest.mark.parametrize(
    ("name", "overrides", "side"),
    [*((name, (), 32) for name in ALL), ("quick90", (), 20), ("quick90", CHEAP_EARLY, 32), ("air94", CHEAP_EARLY, 21)],
)
def test_counted_operations_are_the_flop_counters(name: str, overrides: tuple[str, ...], side: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = network_of(name, *overrides).eval()
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.zeros(1, 3, side, side))
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert image_flops(network, side) == (forward, counter.get_total_flops())


@pytest.mark.parametrize(
    ("overrides", "sides"),
    [
        ((), [31, 15, 7, 3]),
        (("network.whiten.kernel=3",), [30, 15, 7, 3]),
        (("network.whiten.padding=1", "network.whiten.kernel=3"), [32, 16, 8, 4]),
    ],
)
def test_the_maps_shrink_as_the_story_tells(overrides: tuple[str, ...], sides: list[int]) -> None:
    network, seen = network_of("hlb", *overrides), []
    for name in ("whiten", "group1", "group2", "group3"):
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    network(torch.zeros(2, 3, 32, 32))
    assert seen == sides


def test_whitening_decorrelates_the_patches_it_was_set_on() -> None:
    images = torch.randn(400, 3, 32, 32).cumsum(-1).cumsum(-2) / 30
    network = network_of("air94", "network.whiten.eps=0", "network.whiten.bias=false")
    network.set_whitening(images.split(100))
    out = network.whiten(images).transpose(0, 1).flatten(1)
    half = out[:12]
    torch.testing.assert_close(half @ half.T / half.size(1), torch.eye(12), atol=2e-2, rtol=0)
    torch.testing.assert_close(out[12:], -half)


def test_few_whitening_filters_are_those_of_the_largest_variances() -> None:
    images = torch.randn(200, 3, 32, 32).cumsum(-1).cumsum(-2) / 30
    every, few = network_of("air94"), network_of("air94", "network.whiten.filters=8")
    for network in (every, few):
        network.set_whitening([images])
    assert few.whiten.out_channels == few.group1.conv1.in_channels == 16
    assert few.whiten.weight.equal(torch.cat([every.whiten.weight[4:12], every.whiten.weight[16:]]))
    patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    directions = F.normalize(every.whiten.weight[:12].flatten(1), dim=1)
    variances = (patches @ directions.T).square().mean(0)
    assert variances[4:].min() > variances[:4].max()


@pytest.mark.parametrize("centered", [False, True])
def test_the_covariance_in_chunks_is_that_of_all_patches(centered: bool) -> None:
    images = torch.randn(2300, 3, 32, 32) + 0.5
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    mean = patches.mean(0) if centered else torch.zeros(12, dtype=torch.float64)
    expected = (patches - mean).T @ (patches - mean) / len(patches)
    torch.testing.assert_close(patch_covariance(images.split(1000), 2, centered), expected, atol=1e-5, rtol=1e-5)


def cheap_early(images: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The logits of `quick90` with CHEAP_EARLY in training, written out."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + 1e-12) + weights[f"{name}.bias"][:, None, None]

    x = F.gelu(F.conv2d(images, weights["whiten.weight"], weights["whiten.bias"]))
    for group, (first, second, third) in {"group1": (1, 0, 0), "group2": (1, 1, 0), "group3": (0, 1, 1)}.items():
        x = F.max_pool2d(F.conv2d(x, weights[f"{group}.conv1.weight"], padding=first), 2)
        x = F.gelu(norm(x, f"{group}.norm1"))
        y = F.conv2d(x, weights[f"{group}.conv2.weight"], padding=second)
        y = F.gelu(norm(y, f"{group}.norm2"))
        y = F.conv2d(y, weights[f"{group}.conv3.weight"], padding=third)
        x = x + F.gelu(norm(y, f"{group}.norm3"))
    pooled = x.flatten(2).max(2).values + x.flatten(2).mean(2)
    return pooled @ weights["head.weight"].T / pooled.size(1)


def test_kernel_sizes_bottlenecks_and_pooling_are_those_written_out() -> None:
    network = network_of("quick90", *CHEAP_EARLY).double()
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if "conv" in name]
    assert shapes == [
        *((32, 16, 3, 3), (32, 32, 1, 1), (32, 32, 1, 1)),
        *((128, 32, 3, 3), (96, 128, 3, 3), (128, 96, 1, 1)),
        *((128, 128, 2, 2), (64, 128, 3, 3), (128, 64, 3, 3)),
    ]
    generator = torch.Generator().manual_seed(0)
    network.set_whitening([torch.randn(50, 3, 32, 32, generator=generator)])
    images = torch.randn(4, 3, 27, 27, generator=generator).double()
    weights = {name: each.detach().clone().requires_grad_() for name, each in network.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = network(images)
    expected = cheap_early(images, weights)
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, weights[name].grad, msg=lambda text, n=name: f"{n}: {text}")


def test_a_kernel_of_3_everywhere_is_the_default() -> None:
    plain, named = (
        network_of("hlb").state_dict(),
        network_of("hlb", "network.kernels=[[3, 3, 3], [3], [3, 3, 3]]").state_dict(),
    )
    assert all(torch.equal(plain[key], named[key]) for key in plain)


@pytest.mark.parametrize(
    ("overrides", "sides"),
    [
        (("network.kernels=[[3, 1], [3, 1], [2, 3]]",), [31, 15, 7, 3]),
        (("network.kernels=[[2, 2], [4, 1], [5, 5]]",), [31, 14, 6, 3]),
        (("network.kernels=[[4], [3, 2, 2]]", "network.convs=[1, 3]", "network.widths=[8, 8]"), [31, 15, 5]),
    ],
)
def test_even_kernels_shrink_the_maps(overrides: tuple[str, ...], sides: list[int]) -> None:
    network, seen = network_of("tiny", *overrides), []
    for name in ("whiten", *(f"group{i}" for i in range(1, network.groups + 1))):
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    for side in range(32, 15, -1):
        seen.clear()
        network(torch.zeros(2, 3, side, side))
        assert seen == sides or side < 32
        assert seen[-1] == network.recipe.last_side(side)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_dirac_filters_pass_their_input_on(kernel: int) -> None:
    conv = network_of("air94", f"network.kernels=[[3, 3], [{kernel}, 3], [3, 3]]").get_submodule("group2.conv1")
    assert isinstance(conv, nn.Conv2d) and conv.kernel_size == (kernel, kernel)
    x = torch.randn(2, 64, 9, 9)
    shifted = x if kernel % 2 else x[:, :, 1:, 1:]
    torch.testing.assert_close(conv(x)[:, :64], shifted)


def test_all_convolutions_of_groups_and_no_others_begin_as_dirac_filters() -> None:
    settings = (*CHEAP_EARLY, "network.project=30")
    with_dirac, without = (
        network_of("tiny", *settings, f"network.dirac={on}").state_dict() for on in ("true", "false")
    )
    changed = {key.removesuffix(".weight") for key in with_dirac if not with_dirac[key].equal(without[key])}
    assert changed == {f"group{i}.conv{j}" for i in (1, 2, 3) for j in (1, 2, 3)}


def test_the_same_seed_gives_the_same_weights() -> None:
    first, same, other = (network_of("tiny", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_ghost_norm_is_batch_norm_on_each_group() -> None:
    norm = BatchNorm(5, Norm(momentum=0.3, eps=1e-5, ghost=4))
    plain = [nn.BatchNorm2d(5, eps=1e-5, momentum=0.3) for _ in range(3)]
    x = torch.randn(12, 5, 6, 6).to(memory_format=torch.channels_last)
    for _ in range(2):
        y = norm(x)
        parts = [layer(x[i::3]) for i, layer in enumerate(plain)]
    for i, part in enumerate(parts):
        torch.testing.assert_close(y[i::3], part)
    torch.testing.assert_close(norm.running_mean, torch.stack([layer.running_mean for layer in plain]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([layer.running_var for layer in plain]).mean(0))
    norm.eval()
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.3, 1e-5)
    torch.testing.assert_close(norm(x), expected)


def test_squeeze_excite_scales_the_last_convolution_by_the_first_ones_output() -> None:
    network = network_of("hlb")
    group = network.get_submodule("group1")
    inputs = torch.randn(3, 32, 31, 31)
    first = group.act1(group.norm1(group.pool(group.conv1(inputs))))
    factor = group.squeeze_excite(first)
    assert factor.shape == (3, 128, 1, 1) and bool(((factor > 0) & (factor < 1)).all())
    x = group.act2(group.norm2(group.conv2(first)))
    expected = group.act3(group.norm3(group.conv3(x) * factor)) + first
    torch.testing.assert_close(group(inputs), expected)


def test_logits_begin_small_and_an_image_does_not_depend_on_its_neighbours() -> None:
    network = network_of("air94").eval()
    images = torch.randn(4, 3, 32, 32)
    together = network(images)
    torch.testing.assert_close(together[:1], network(images[:1]), atol=1e-5, rtol=1e-4)
    assert float(together.detach().abs().max()) < 1


@pytest.mark.parametrize("name", ALL)
def test_every_network_learns_a_batch_by_heart(name: str) -> None:
    found = load_recipe(name, "network.norm.ghost=0")
    small = dataclasses.replace(found.network, widths=(8, 8, 8))
    network = Network(small, 10)
    network.initialize(torch.Generator().manual_seed(0))
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
