"""Triton kernels for 2x2 maximum pooling, batch normalisation and activation; `triton_norm.py` launches them.

Maps are (N, C, H, W) in channels-last memory, of any type; all arithmetic is in float32.

The variance is never a difference of large sums: each program sums differences from its first pixel, which are as small
as the standard deviation ("shifted data"), and gives the mean and the squared differences from it (M2); those of all
programs are put together with the differences of their means (Chan, Golub and LeVeque, "Algorithms for computing the
sample variance", 1983).

Loops with `num_stages=3` have the loads of two further tiles on their way while they work on one.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from fastcifar.model.kernels.triton_activations import activate, slope


@triton.jit
def upper_left(p, H, W):
    """For pixel `p` of all pooled maps, the upper left one of its 2x2 square among the pixels of all maps (H, W)."""
    row = p // (W // 2)
    image = row // (H // 2)
    return (image * H + 2 * (row - image * (H // 2))) * W + 2 * (p - row * (W // 2))


@triton.jit
def pool(x, at, W, ok, C: tl.constexpr):
    """The maxima of the 2x2 squares whose upper left elements stand at `at`, and which of the four each is: the first
    of equal ones. NaN is larger than any number, as in PyTorch."""
    best = tl.load(x + at, ok, other=0.0).to(tl.float32)
    chosen = tl.zeros_like(at)
    for i in tl.static_range(1, 4):
        v = tl.load(x + at + (i // 2 * W + i % 2) * C, ok, other=0.0).to(tl.float32)
        larger = (v > best) | (v != v)
        best = tl.where(larger, v, best)
        chosen = tl.where(larger, i, chosen)
    return best, chosen


@triton.jit
def store_moments(parts, s, q, pivot, count, c, C: tl.constexpr):
    """Write this program's means and M2 to parts (2, programs, C), from the sums of differences from `pivot` and of
    their squares, over `count` pixels."""
    s, q = tl.sum(s, 0), tl.sum(q, 0)
    apart = s / count
    m2 = q - s * apart
    at = parts + tl.program_id(0) * C + c
    tl.store(at, pivot + apart, c < C)
    tl.store(at + tl.num_programs(0) * C, tl.where(m2 < 0, 0.0, m2), c < C)


@triton.jit(do_not_specialize=["H", "W", "total", "per"])
def pool_statistics_kernel(
    x, y, chosen, parts, H, W, total, per, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Pool the maps (H, W) into `total` pixels, and give the moments of each program's share of them."""
    c = tl.arange(0, COLUMNS)
    first = tl.program_id(0) * per * ROWS
    pivot, _ = pool(x, upper_left(first, H, W) * C + c, W, c < C, C)
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    q = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(per):
        p = (first + tile * ROWS + tl.arange(0, ROWS))[:, None]
        ok = (p < total) & (c < C)[None, :]
        best, which = pool(x, upper_left(p, H, W) * C + c[None, :], W, ok, C)
        tl.store(y + p * C + c[None, :], best.to(y.dtype.element_ty), ok)
        tl.store(chosen + p * C + c[None, :], which.to(tl.uint8), ok)
        d = tl.where(ok, best - pivot[None, :], 0.0)
        s += d
        q += d * d
    store_moments(parts, s, q, pivot, tl.minimum(total - first, per * ROWS), c, C)


@triton.jit(do_not_specialize=["total", "per"])
def statistics_kernel(x, parts, total, per, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The moments of each program's share of `total` pixels."""
    c = tl.arange(0, COLUMNS)
    first = tl.program_id(0) * per * ROWS
    pivot = tl.load(x + first * C + c, c < C, other=0.0).to(tl.float32)
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    q = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(0, per, num_stages=3):
        p = (first + tile * ROWS + tl.arange(0, ROWS))[:, None]
        ok = (p < total) & (c < C)[None, :]
        d = tl.load(x + p * C + c[None, :], ok, other=0.0).to(tl.float32) - pivot[None, :]
        d = tl.where(ok, d, 0.0)
        s += d
        q += d * d
    store_moments(parts, s, q, pivot, tl.minimum(total - first, per * ROWS), c, C)


@triton.jit(do_not_specialize=["total", "share", "programs"])
def update_statistics_kernel(
    parts,
    running_mean,
    running_var,
    batches,
    mean,
    variance,
    momentum,
    total,
    share,
    programs,
    C: tl.constexpr,
    PROGRAMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean and variance of some channels from the moments of all programs, `share` pixels each but for the last; and
    the running ones, the variance there unbiased, as PyTorch's BatchNorm2d has them."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    b = tl.arange(0, PROGRAMS)[:, None]
    ok = (b < programs) & (c < C)[None, :]
    at = b * C + c[None, :]
    # All loads come first: nothing waits for memory twice. Means and variance are sums of differences from the first
    # program's mean, which are small.
    origin = tl.load(parts + c, c < C, other=0.0)
    apart = tl.load(parts + at, ok, other=0.0) - origin[None, :]
    m2 = tl.load(parts + programs * C + at, ok, other=0.0)
    mean_before = tl.load(running_mean + c, c < C, other=0.0)
    variance_before = tl.load(running_var + c, c < C, other=0.0)
    seen = tl.load(batches)
    weighted = tl.where(ok, tl.minimum(total - b * share, share).to(tl.float32) * apart, 0.0)
    average = tl.sum(weighted, 0) / total
    v = tl.sum(m2 + weighted * apart, 0) / total - average * average
    v = tl.where(v < 0, 0.0, v)
    average += origin
    tl.store(mean + c, average, c < C)
    tl.store(variance + c, v, c < C)
    after = (1 - momentum) * mean_before.to(tl.float32) + momentum * average
    tl.store(running_mean + c, after.to(running_mean.dtype.element_ty), c < C)
    after = (1 - momentum) * variance_before.to(tl.float32) + momentum * v * (total / (total - 1))
    tl.store(running_var + c, after.to(running_var.dtype.element_ty), c < C)
    if tl.program_id(0) == 0:
        tl.store(batches, seen + 1)


@triton.jit
def factors(mean, variance, bias, eps, c, C: tl.constexpr):
    """Mean, reciprocal standard deviation and bias of the channels, each (1, COLUMNS)."""
    m = tl.load(mean + c, c < C, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.load(variance + c, c < C, other=1.0).to(tl.float32) + eps)
    b = tl.load(bias + c, c < C, other=0.0).to(tl.float32)
    return m[None, :], r[None, :], b[None, :]


@triton.jit(do_not_specialize=["total"])
def normalize_kernel(
    x,
    y,
    mean,
    variance,
    bias,
    eps,
    total,
    KIND: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The activation of each normalised pixel."""
    c = tl.arange(0, COLUMNS)
    m, r, b = factors(mean, variance, bias, eps, c, C)
    p = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    ok = (p < total) & (c < C)[None, :]
    at = p * C + c[None, :]
    u = (tl.load(x + at, ok, other=0.0).to(tl.float32) - m) * r + b
    tl.store(y + at, activate(u, KIND).to(y.dtype.element_ty), ok)


@triton.jit(do_not_specialize=["H", "W", "total"])
def pool_normalize_kernel(
    x,
    y,
    mean,
    variance,
    bias,
    eps,
    H,
    W,
    total,
    KIND: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The same for each of `total` pixels that are the maxima of the maps (H, W)."""
    c = tl.arange(0, COLUMNS)
    m, r, b = factors(mean, variance, bias, eps, c, C)
    p = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    ok = (p < total) & (c < C)[None, :]
    best, _ = pool(x, upper_left(p, H, W) * C + c[None, :], W, ok, C)
    tl.store(y + p * C + c[None, :], activate((best - m) * r + b, KIND).to(y.dtype.element_ty), ok)


@triton.jit
def inner_gradient(x, grad, at, ok, m, r, b, KIND: tl.constexpr):
    """The normalised pixels, made again, and the gradient behind the normalisation (before the activation)."""
    normal = (tl.load(x + at, ok, other=0.0).to(tl.float32) - m) * r
    return normal, tl.load(grad + at, ok, other=0.0).to(tl.float32) * slope(normal + b, KIND)


@triton.jit(do_not_specialize=["total", "per"])
def gradient_sums_kernel(
    x,
    grad,
    mean,
    variance,
    bias,
    parts,
    eps,
    total,
    per,
    KIND: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums over each program's pixels, parts (2, programs, C): of the gradient behind the normalisation, and of that
    times the normalised pixel."""
    c = tl.arange(0, COLUMNS)
    m, r, b = factors(mean, variance, bias, eps, c, C)
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    q = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(0, per, num_stages=3):
        p = ((tl.program_id(0) * per + tile) * ROWS + tl.arange(0, ROWS))[:, None]
        ok = (p < total) & (c < C)[None, :]
        # Where `ok` is not, the gradient loaded is zero, and so is what is added.
        normal, g = inner_gradient(x, grad, p * C + c[None, :], ok, m, r, b, KIND)
        s += g
        q += g * normal
    at = parts + tl.program_id(0) * C + c
    tl.store(at, tl.sum(s, 0), c < C)
    tl.store(at + tl.num_programs(0) * C, tl.sum(q, 0), c < C)


@triton.jit(do_not_specialize=["total", "programs"])
def bias_gradient_kernel(
    parts, dbias, means, total, programs, C: tl.constexpr, PROGRAMS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The sums of all programs for some channels: the bias's gradient, and both sums over `total`, means (2, C)."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    b = tl.arange(0, PROGRAMS)[:, None]
    ok = (b < programs) & (c < C)[None, :]
    at = b * C + c[None, :]
    s = tl.sum(tl.load(parts + at, ok, other=0.0), 0)
    q = tl.sum(tl.load(parts + programs * C + at, ok, other=0.0), 0)
    tl.store(dbias + c, s.to(dbias.dtype.element_ty), c < C)
    tl.store(means + c, s / total, c < C)
    tl.store(means + C + c, q / total, c < C)


@triton.jit
def outer_gradient(x, grad, at, ok, m, r, b, mean_g, mean_gx, KIND: tl.constexpr):
    """The gradient in front of the normalisation, whose statistics are those of the batch."""
    normal, g = inner_gradient(x, grad, at, ok, m, r, b, KIND)
    return r * (g - mean_g - normal * mean_gx)


@triton.jit(do_not_specialize=["total", "per"])
def normalize_backward_kernel(
    x,
    grad,
    mean,
    variance,
    bias,
    means,
    dx,
    eps,
    total,
    per,
    KIND: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of each pixel."""
    c = tl.arange(0, COLUMNS)
    m, r, b = factors(mean, variance, bias, eps, c, C)
    mean_g = tl.load(means + c, c < C, other=0.0)[None, :]
    mean_gx = tl.load(means + C + c, c < C, other=0.0)[None, :]
    for tile in range(per):
        p = ((tl.program_id(0) * per + tile) * ROWS + tl.arange(0, ROWS))[:, None]
        ok = (p < total) & (c < C)[None, :]
        at = p * C + c[None, :]
        d = outer_gradient(x, grad, at, ok, m, r, b, mean_g, mean_gx, KIND)
        tl.store(dx + at, d.to(dx.dtype.element_ty), ok)


@triton.jit(do_not_specialize=["H", "W", "total"])
def pool_normalize_backward_kernel(
    y,
    chosen,
    grad,
    mean,
    variance,
    bias,
    means,
    dx,
    eps,
    H,
    W,
    total,
    KIND: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of the maps (H, W) before pooling: each program goes over 2x2 squares, `total` in all, and writes
    their pixels, each once; squares that an odd size cuts off, which pooling left out, are among them."""
    c = tl.arange(0, COLUMNS)
    m, r, b = factors(mean, variance, bias, eps, c, C)
    mean_g = tl.load(means + c, c < C, other=0.0)[None, :]
    mean_gx = tl.load(means + C + c, c < C, other=0.0)[None, :]
    p = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    row = p // ((W + 1) // 2)
    image = row // ((H + 1) // 2)
    i, j = row - image * ((H + 1) // 2), p - row * ((W + 1) // 2)
    ok = (p < total) & (c < C)[None, :]
    pooled = ok & (i < H // 2) & (j < W // 2)
    at = ((image * (H // 2) + i) * (W // 2) + j) * C + c[None, :]
    d = outer_gradient(y, grad, at, pooled, m, r, b, mean_g, mean_gx, KIND)
    which = tl.load(chosen + at, pooled, other=4)  # 4: none of the four
    corner = ((image * H + 2 * i) * W + 2 * j) * C + c[None, :]
    for k in tl.static_range(4):
        there = ok & (2 * i + k // 2 < H) & (2 * j + k % 2 < W)
        mine = tl.where(which == k, d, 0.0).to(dx.dtype.element_ty)
        tl.store(dx + corner + (k // 2 * W + k % 2) * C, mine, there)
