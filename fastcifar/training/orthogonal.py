"""Orthogonalisation of filters by Newton-Schulz iterations in Gram space: by shape, and in padded batches for a GPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcifar.training.annotations import update_of

Polynomials = tuple[tuple[float, ...], ...]  # one (a, b, c) an iteration: X <- a X + (b A + c A A) X with A = X X^T
SMALLEST_NORM = 1e-7  # added to norms: a filter without a gradient stays zero
# A batch of its own costs a filter about 15 launches, in whose time a GPU moves this many numbers more.
MOST_PADDING = 8 * 2**20
MOST_MATRICES = 32  # in a batch: kernels are unrolled over them
MOST_IN_A_ROW = 3
ALIGNMENT = 16  # of the rows and columns of a batch: tensor cores want whole vectors


def orthogonalize(filters: Mapping[str, Tensor], polynomials: Polynomials) -> list[Tensor]:
    """The nearest (semi-)orthogonal matrices, roughly, of filters (D, C, h, w) or (D, C), by name; they count as
    matrices (D, h w C): in channels-last memory that is how they lie.

    On CUDA in half precision with sums in float32, elsewhere in the type they have; the results have their types.
    """
    on_cuda = all(each.is_cuda for each in filters.values())
    return (orthogonalize_padded if on_cuda else orthogonalize_by_shape)(filters, polynomials)


def orthogonalize_by_shape(filters: Mapping[str, Tensor], polynomials: Polynomials) -> list[Tensor]:
    """`orthogonalize` in the type of the filters: those of one shape in one batched iteration."""
    moved = {name: each.movedim(1, -1) for name, each in filters.items()}
    shapes: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, matrix in moved.items():
        shapes[len(matrix), matrix[0].numel()].append(name)
    results = dict(filters)
    for names in shapes.values():
        with update_of(names):
            batch = newton_schulz(torch.stack([moved[name].flatten(1) for name in names]), polynomials)
            for name, result in zip(names, batch, strict=True):
                results[name] = result.view(moved[name].shape).movedim(-1, 1).to(filters[name].dtype)
    return list(results.values())


def newton_schulz(x: Tensor, polynomials: Polynomials) -> Tensor:
    """Drive the singular values of each matrix of (n, D, K) towards one, one odd quintic polynomial an iteration.

    The matrices are first divided by their Frobenius norm, so that no singular value is above one.
    """
    wide = x.size(1) <= x.size(2)
    x = x if wide else x.mT
    x = in_gram_space(x / (x.norm(dim=(1, 2), keepdim=True) + SMALLEST_NORM), polynomials)
    return x if wide else x.mT.contiguous()


def orthogonalize_padded(filters: Mapping[str, Tensor], polynomials: Polynomials) -> list[Tensor]:
    """`orthogonalize` in float16: filters of many shapes in one batch, padded by zeros."""
    names, moved = list(filters), [each.movedim(1, -1) for each in filters.values()]
    results = [torch.empty_like(each) for each in filters.values()]
    for batch in batches([(len(each), each[0].numel()) for each in moved]):
        with update_of([names[i] for i in batch.members]):
            x = moved[0].new_zeros(len(batch.members), batch.rows, batch.columns)
            for target, i in zip(x, batch.members, strict=True):
                unpadded(target, moved[i]).copy_(moved[i])
            # The norm of half-precision filters may be no half.
            norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
            y = in_gram_space((x / (norms + SMALLEST_NORM)).half(), polynomials)
            for source, i in zip(y, batch.members, strict=True):
                results[i].movedim(1, -1).copy_(unpadded(source, moved[i]))
    return results


def unpadded(matrix: Tensor, moved: Tensor) -> Tensor:
    """Where in a padded matrix (rows, columns) the numbers of a filter (D, h, w, C) are: transposed if it is tall."""
    height, width = len(moved), moved[0].numel()
    part = matrix[:height, :width] if height <= width else matrix[:width, :height].mT
    return part.view(moved.shape)


def in_gram_space(x: Tensor, polynomials: Polynomials, polynomial: Callable[..., Tensor] | None = None) -> Tensor:
    """The iterations X <- a X + (b A + c A A) X, A = X X^T, on normalised wide matrices (n, D, K), most of it computed
    on matrices (n, D, D).

    Each is X <- P X with P a polynomial of A, hence A <- P A P, as P and A commute: the product of all P comes from the
    first A alone, and X is read twice. A square matrix needs about as many operations as before,
    a wide one fewer. Rows and columns of zeros stay zero: there A is zero, and P is a times one.

    After `MOST_IN_A_ROW` polynomials A is computed anew from X, for rounding errors of A grow with each: in float16,
    on singular values of 1 to 1e-4, the error of five is 0.3 in a row and 0.01 so (of the iteration itself 0.01; of
    three 0.004 and 0.002). `polynomial` computes P from (A, a, b, c); by default `gram_polynomial`.
    """
    for first in range(0, len(polynomials), MOST_IN_A_ROW):
        start, *others = polynomials[first : first + MOST_IN_A_ROW]
        gram = torch.bmm(x, x.mT)
        p = product = (polynomial or gram_polynomial)(gram, *start)
        for each in others:
            gram = torch.bmm(torch.bmm(p, gram), p)
            p = (polynomial or gram_polynomial)(gram, *each)
            product = torch.bmm(p, product)
        x = torch.bmm(product, x)
    return x


def gram_polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """P = a I + b A + c A A of symmetric matrices A (n, D, D). On CUDA three kernels: a copy of A, the product into
    it, the diagonal."""
    p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    p.diagonal(dim1=1, dim2=2).add_(a)
    return p


@dataclass(frozen=True)
class Batch:
    """Matrices to be computed together, as indices, and the padded shape of each; no more rows than columns."""

    members: list[int]
    rows: int
    columns: int


def batches(shapes: Sequence[tuple[int, int]]) -> list[Batch]:
    """Matrices of these shapes in as few batches as `MOST_PADDING` and `MOST_MATRICES` allow, the largest first."""
    wide = [(min(shape), max(shape)) for shape in shapes]
    found: list[Batch] = []
    numbers = 0  # of the last batch, without padding
    for i in sorted(range(len(wide)), key=lambda i: wide[i][0] * wide[i][1], reverse=True):
        rows, columns = (-(-side // ALIGNMENT) * ALIGNMENT for side in wide[i])
        size = wide[i][0] * wide[i][1]
        if found:
            last = found[-1]
            joint = Batch([*last.members, i], max(last.rows, rows), max(last.columns, columns))
            padding = len(joint.members) * joint.rows * joint.columns - numbers - size
            if padding <= MOST_PADDING and len(joint.members) <= MOST_MATRICES:
                found[-1], numbers = joint, numbers + size
                continue
        found.append(Batch([i], rows, columns))
        numbers = size
    return found
