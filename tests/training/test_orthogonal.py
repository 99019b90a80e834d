"""Orthogonalisation, held against the singular value decomposition and against its definition in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastcifar.training import orthogonal
from fastcifar.training.orthogonal import (
    SMALLEST_NORM,
    Batch,
    batches,
    in_gram_space,
    newton_schulz,
    orthogonalize,
    orthogonalize_padded,
)

MUON = ((3.4445, -4.7750, 2.0315),) * 3
AIR94 = [(64, 216), (64, 576), (256, 576), (256, 2304), (256, 2304), (256, 2304)]
# Wide, square, tall, and of two dimensions: the fewest rows 6, the fewest columns 10.
SHAPES = [(8, 4, 3, 3), (16, 8, 3, 3), (8, 4, 3, 3), (24, 2, 3, 3), (6, 10), (40, 10), (24, 12, 1, 1), (8, 8, 2, 2)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ill_conditioned(*shape: int) -> Tensor:
    """Singular values from one down to 1e-4, as the momenta of a run have them."""
    u, s, v = torch.linalg.svd(normal(*shape).double(), full_matrices=False)
    return (u * torch.logspace(0, -4, s.size(-1), dtype=torch.float64) @ v).float()


def normalized(x: Tensor) -> Tensor:
    return x / x.norm(dim=(1, 2), keepdim=True)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def as_filter(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers in channels-last memory."""
    each = normal(*shape, seed=seed).to(dtype)
    return each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each


def iterated(x: Tensor, polynomials: orthogonal.Polynomials) -> Tensor:
    """Newton-Schulz as it is defined, of normalised wide matrices (n, D, K)."""
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def defined(each: Tensor) -> Tensor:
    """The orthogonalisation of a filter by its definition, in float64."""
    moved = each.double().movedim(1, -1)
    x = normalized(moved.flatten(1)[None])
    wide = x.size(1) <= x.size(2)
    y = iterated(x, MUON) if wide else iterated(x.mT, MUON).mT
    return y[0].reshape(moved.shape).movedim(-1, 1)


@pytest.mark.parametrize("shape", [(1, 16, 40), (3, 16, 16), (2, 40, 16)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, ...]) -> None:
    x = normal(*shape)  # a square one may be near singular
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    y = newton_schulz(x, ((3.4445, -4.7750, 2.0315),) * 5)
    assert y.shape == x.shape
    middle = u.mT @ y @ v.mT  # diagonal where the directions are kept
    values = torch.linalg.svdvals(y)
    assert float(values.min()) > 0.4 and float(values.max()) < 1.4
    off = middle - torch.diag_embed(middle.diagonal(dim1=1, dim2=2))
    assert float(off.abs().max()) < 1e-3


def test_batched_orthogonalisation_is_that_of_each_filter() -> None:
    filters: list[Tensor] = [torch.randn(s) for s in [(8, 4, 3, 3), (16, 8, 3, 3), (8, 4, 3, 3), (6, 10)]]
    together = orthogonalize({str(i): each for i, each in enumerate(filters)}, MUON)
    for one, result in zip(filters, together, strict=True):
        alone = newton_schulz(one.flatten(1)[None], MUON)[0].view(one.shape)
        torch.testing.assert_close(result, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("polynomials", [MUON, MUON[:1], ((3.4, -4.7, 2.0), (2.9, -3.9, 1.8), (3.4, -4.7, 2.0)), ()])
def test_gram_space_is_exact_in_exact_arithmetic(polynomials: orthogonal.Polynomials) -> None:
    x = normalized(normal(2, 16, 40).double())
    assert error(in_gram_space(x, polynomials), iterated(x, polynomials)) < 1e-12


@pytest.mark.parametrize("make", [normal, ill_conditioned])
@pytest.mark.parametrize("shape", [(2, 64, 216), (1, 64, 64), (1, 40, 16)])
def test_gram_space_in_float32_is_exact_to_rounding(make: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    x = normalized(make(*shape))
    turned = x if shape[1] <= shape[2] else x.mT
    wanted = iterated(turned.double(), MUON)
    found = newton_schulz(x, MUON) if turned is x else newton_schulz(x, MUON).mT
    assert error(found, wanted) < 1e-5  # the iteration itself: 7e-7


@pytest.mark.parametrize(
    ("make", "iterations", "most"),
    [(normal, 3, 0.003), (normal, 5, 0.005), (ill_conditioned, 3, 0.005), (ill_conditioned, 5, 0.014)],
)
@pytest.mark.parametrize("shape", [(2, 64, 216), (1, 64, 64)])
def test_gram_space_in_float16_is_nearer_than_the_iteration_in_bfloat16(
    make: Callable[..., Tensor], iterations: int, most: float, shape: tuple[int, ...]
) -> None:
    x, polynomials = normalized(make(*shape)), MUON[:1] * iterations
    wanted = iterated(x.double(), polynomials)
    found = error(in_gram_space(x.half(), polynomials), wanted)
    assert found < most and found < error(iterated(x.bfloat16(), polynomials), wanted) / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_padded_batch_is_that_of_each_filter(dtype: torch.dtype) -> None:
    filters = {str(i): as_filter(shape, i, dtype) for i, shape in enumerate(SHAPES)}
    assert len(batches([(len(each), each[0].numel()) for each in filters.values()])) == 1
    together = orthogonalize_padded(filters, MUON)
    for (name, each), found in zip(filters.items(), together, strict=True):
        assert found.dtype == dtype and found.stride() == each.stride()
        assert error(found, defined(each)) < 0.004, name
        alone = orthogonalize_padded({name: each}, MUON)[0]
        assert error(found, alone.double()) < 1e-3, name


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_the_scale_of_half_precision_filters_does_not_matter(scale: float) -> None:
    """Squares of the one are less than the least float16, the norm of the other is more than the largest."""
    each = (normal(64, 576) * scale).half()
    assert float(each.double().norm()) > 65504 or scale < 1
    assert error(orthogonalize_padded({"": each}, MUON)[0], defined(each)) < 0.004


def test_a_filter_without_a_gradient_stays_zero() -> None:
    found = orthogonalize_padded({"a": torch.zeros(8, 20).half(), "b": normal(8, 20).half()}, MUON)
    assert not found[0].any() and found[1].isfinite().all()


def test_rows_and_columns_of_padding_stay_zero() -> None:
    x = torch.zeros(2, 32, 48, dtype=torch.float16)
    x[0, :20, :40] = normalized(normal(1, 20, 40))[0]
    y = in_gram_space(x, MUON)
    assert not y[0, 20:].any() and not y[0, :, 40:].any() and not y[1].any()


def test_the_filters_of_air94_are_one_batch() -> None:
    assert batches(AIR94) == [Batch([3, 4, 5, 2, 1, 0], 256, 2304)]


def test_wide_networks_are_padded_only_where_it_saves_time() -> None:
    """Filters of 512 channels take those of 64 along, at a few MB, but not eight of them."""
    large = [(512, 4608)] * 2
    assert [len(batch.members) for batch in batches([*large, (64, 216)])] == [3]
    found = batches([*large, *[(64, 216)] * 8])
    assert [sorted(batch.members) for batch in found] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert (found[1].rows, found[1].columns) == (64, 224)


def test_batches_hold_each_matrix_once_as_a_wide_one() -> None:
    shapes = [(40, 10), (6, 10), (5, 300), (300, 5)] * 11
    found = batches(shapes)
    assert sorted(i for batch in found for i in batch.members) == list(range(len(shapes)))
    for batch in found:
        assert len(batch.members) <= orthogonal.MOST_MATRICES and batch.rows % 16 == batch.columns % 16 == 0
        for i in batch.members:
            assert min(shapes[i]) <= batch.rows <= batch.columns and max(shapes[i]) <= batch.columns


def test_the_iteration_on_the_cpu_does_not_depend_on_how_filters_lie() -> None:
    each = as_filter((16, 8, 3, 3), 0)
    found = orthogonalize({"a": each, "b": each.contiguous()}, MUON)
    assert torch.equal(*found)
    assert error(found[0], defined(each)) < 1e-5 and SMALLEST_NORM < 1e-6
