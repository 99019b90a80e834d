"""The activations that our Triton kernels know: which they are, and their arithmetic in float32.

A kernel that applies GELU by the error function of CUDA's library waits for arithmetic on an H100, not for memory: that
takes about 45 instructions a number. The formulas here take 17, and differ from GELU by an absolute 5e-7 at most.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

CELU_ALPHA = 0.3
# PyTorch's own, for what the kernels cannot do.
DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "celu": partial(F.celu, alpha=CELU_ALPHA),
}


def kind_of(act: nn.Module) -> str | None:
    """The activation as the kernels call it, by its definition; None for a layer that is none they know."""
    if type(act) is nn.GELU and act.approximate == "none":
        return "gelu"
    if type(act) is nn.SiLU:
        return "silu"
    if type(act) is nn.CELU and act.alpha == CELU_ALPHA:
        return "celu"
    return None


@triton.jit
def normal_tail(u):
    """For the standard normal distribution: the probability of more than |u|, exp(-u²/2), and |u| but 8 at most.

    The first is the second times a polynomial in |u|, fitted over 0..6 (weighted least squares, the weights raised
    where the error is largest: Lawson, 1961). Beyond 8 all is zero in float32; NaN stays NaN.
    """
    size = tl.minimum(tl.abs(u), 8.0)
    density = tl.exp2(u * u * -0.7213475204444817)
    p = 1.2713487649307353e-06
    p = p * size - 2.8995949833188206e-05
    p = p * size + 0.0002951709902845323
    p = p * size - 0.0018014336237683892
    p = p * size + 0.007541916333138943
    p = p * size - 0.023762943223118782
    p = p * size + 0.060701798647642136
    p = p * size - 0.13230560719966888
    p = p * size + 0.24986957013607025
    p = p * size - 0.39893248677253723
    p = p * size + 0.49999988079071045
    return p * density, density, size


@triton.jit
def activate(u, KIND: tl.constexpr):
    """The activation of float32 numbers: gelu, silu, or celu with alpha 0.3."""
    if KIND == "gelu":
        tail, _, size = normal_tail(u)
        y = tl.maximum(u, 0.0) - size * tail
    elif KIND == "silu":
        y = u * tl.sigmoid(u)
    else:
        tl.static_assert(KIND == "celu")
        y = tl.where(u > 0, u, 0.3 * (tl.exp(u * (1 / 0.3)) - 1))
    return y


@triton.jit
def slope(u, KIND: tl.constexpr):
    """The derivative of the activation at float32 numbers."""
    if KIND == "gelu":
        tail, density, _ = normal_tail(u)
        d = tl.where(u > 0, 1 - tail, tail) + 0.3989422804014327 * u * density
    elif KIND == "silu":
        s = tl.sigmoid(u)
        d = s * (1 + u * (1 - s))
    else:
        tl.static_assert(KIND == "celu")
        d = tl.where(u > 0, 1.0, tl.exp(u * (1 / 0.3)))
    return d
