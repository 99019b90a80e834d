"""The Triton kernels of the optimizer's update: interpreted on the CPU against float64, and compiled for GPUs.

Triton reads TRITON_INTERPRET when kernels are defined, so the interpreted tests run in a process of their own, which
the first test starts.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fastcifar.model.kernels import triton_update as kernels
from fastcifar.model.kernels.triton_operators import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the first test starts")
compiled = pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")

HALF, FLOAT = torch.float16, torch.float32
# Wide, tall, square, and of several programs; two types.
FILTERS = [((16, 8, 3, 3), HALF), ((48, 10), FLOAT), ((24, 24), HALF), ((33, 200), HALF), ((64, 216), FLOAT)]


@compiled
def test_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout), done.stdout


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    """Random numbers in channels-last memory."""
    each = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    return each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each


def three_of_each(scale: float = 1.0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients, momenta and parameters of `FILTERS`."""
    kinds = [[numbers(s, t, 100 * k + i, scale) for i, (s, t) in enumerate(FILTERS)] for k in range(3)]
    return kinds[0], kinds[1], kinds[2]


def doubles(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    """`found` is the number of its type nearest to `exact`, or the next where float32 was not enough to tell."""
    step = torch.finfo(found.dtype).eps * exact.abs().clamp(min=torch.finfo(found.dtype).smallest_normal)
    slack = 1e-6 * float(exact.abs().max())
    worst = ((found.double() - exact).abs() - step / 2 - slack).max()
    assert float(worst) <= 0, float(worst)


def as_matrix(each: Tensor) -> Tensor:
    """A filter as a wide matrix, in the order of memory."""
    matrix = each.movedim(1, -1).flatten(1)
    return matrix if len(matrix) <= matrix.size(1) else matrix.mT


@interpreted
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_momentum_and_directions(scale: float) -> None:
    """Momenta as PyTorch's SGD has them; the packed directions are normalised, in float16, and the rest is zero."""
    gradients, momenta, parameters = three_of_each(scale)
    wanted = [0.6 * m + g for g, m in zip(doubles(gradients), doubles(momenta), strict=True)]
    sums = kernels.muon_momentum(gradients, momenta, parameters, 0.6)
    for found, exact in zip(momenta, wanted, strict=True):
        assert_rounded_once(found, exact)
    directions = [g + 0.6 * m for g, m in zip(doubles(gradients), doubles(momenta), strict=True)]
    starts = kernels.starts_of(momenta)
    for i, (a, b) in enumerate(itertools.pairwise(starts)):
        torch.testing.assert_close(sums[0, a:b].sum().double(), directions[i].square().sum(), rtol=1e-5, atol=0)
        torch.testing.assert_close(
            sums[1, a:b].sum().double(), parameters[i].double().square().sum(), rtol=1e-5, atol=0
        )
    packed = kernels.muon_pack(gradients, momenta, sums, 0.6, 1e-7, 64, 224)
    assert packed.dtype == HALF
    for matrix, direction in zip(packed, directions, strict=True):
        exact = torch.zeros(64, 224, dtype=torch.float64)
        wide = as_matrix(direction)
        exact[: len(wide), : wide.size(1)] = wide / (wide.norm() + 1e-7)
        assert_rounded_once(matrix, exact)
        assert not matrix[exact == 0].any()


@interpreted
def test_sums_of_directions_alone() -> None:
    gradients, momenta, parameters = three_of_each()
    again = [momentum.clone() for momentum in momenta]
    both = kernels.muon_momentum(gradients, momenta, parameters, 0.6)
    assert torch.equal(kernels.muon_momentum(gradients, again, [], 0.6), both[:1])
    assert all(torch.equal(a, b) for a, b in zip(momenta, again, strict=True))


@interpreted
@pytest.mark.parametrize("side", [16, 64, 144])
def test_polynomials_of_gram_matrices(side: int) -> None:
    x = numbers((2, side, 300), FLOAT, 0)
    gram = (x @ x.mT / x.square().sum((1, 2), keepdim=True)).half()
    exact = 3.4 * torch.eye(side) - 4.7 * gram.double() + 2.1 * gram.double() @ gram.double()
    assert_rounded_once(kernels.gram_polynomial(gram, 3.4, -4.7, 2.1), exact)


@interpreted
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_filters_move_by_the_packed_update(renormalize: bool, decay: float) -> None:
    gradients, momenta, parameters = three_of_each()
    packed, rate = numbers((len(FILTERS), 64, 224), HALF, 1), torch.tensor([7.0, 0.25])[1]
    sums = kernels.muon_momentum(gradients, momenta, parameters if renormalize else [], 0.6)
    wanted = []
    for matrix, parameter in zip(packed.double(), doubles(parameters), strict=True):
        wide = as_matrix(parameter)
        start = wide * len(parameter) ** 0.5 / wide.norm() if renormalize else wide
        wanted.append((start - 0.25 * matrix[: len(wide), : wide.size(1)]) * (1 - 0.25 * decay))
    kernels.muon_update(parameters, packed, sums, rate, decay, renormalize)
    for parameter, exact in zip(parameters, wanted, strict=True):
        assert_rounded_once(as_matrix(parameter), exact)


@interpreted
def test_sgd_of_parameters_with_rates_of_their_own() -> None:
    gradients, momenta, parameters = three_of_each()
    rates, columns = torch.tensor([9.0, 0.5, 0.1]), [1, 2, 2, 1, 1]
    factors, decays = [0.0, 0.9, 0.85, 0.6, 0.5], [0.1, 0.0, 0.2, 0.01, 0.3]
    wanted = []
    for i, (g, m, p) in enumerate(zip(doubles(gradients), doubles(momenta), doubles(parameters), strict=True)):
        g = g + decays[i] * p
        m = factors[i] * m + g
        wanted.append((m, p - float(rates[columns[i]]) * (g + factors[i] * m)))
    kernels.sgd_update(gradients, momenta, parameters, rates, columns, factors, decays)
    for momentum, parameter, (m, p) in zip(momenta, parameters, wanted, strict=True):
        assert_rounded_once(momentum, m)
        assert_rounded_once(parameter, p)


@interpreted
def test_what_tensors_without_numbers_say_is_what_comes_out() -> None:
    gradients, momenta, parameters = three_of_each()
    rates = torch.ones(1)

    def all_operators(device: str) -> list[Tensor]:
        g, m, p = ([each.to(device) for each in kind] for kind in (gradients, momenta, parameters))
        sums, alone = kernels.muon_momentum(g, m, p, 0.6), kernels.muon_momentum(g, m, [], 0.6)
        packed = kernels.muon_pack(g, m, sums, 0.6, 1e-7, 64, 224)
        polynomial = kernels.gram_polynomial(packed[:, :, :64].contiguous(), 1.0, 1.0, 1.0)
        kernels.muon_update(p, packed, sums, rates.to(device)[0], 0.0, True)
        kernels.sgd_update(g, m, p, rates.to(device), [0] * 5, [0.5] * 5, [0.0] * 5)
        return [sums, alone, packed, polynomial]

    for real, meta in zip(all_operators("cpu"), all_operators("meta"), strict=True):
        assert (real.shape, real.dtype, real.stride()) == (meta.shape, meta.dtype, meta.stride())


# --- Compiled, as for air94: its filters in half precision, its norms' biases in float32 ---

AIR94 = {"HEIGHTS": (64, 64, 256, 256, 256, 256), "WIDTHS": (216, 576, 576, 2304, 2304, 2304)}
SIZES = tuple(height * width for height, width in zip(*AIR94.values(), strict=True))
STARTS = (0, 4, 13, 49, 193, 337, 481)
POINTERS = ("*fp16",) * 6
BIASES = ("*fp16", "*fp16", *["*fp32"] * 6)
FILTER = {**AIR94, "STARTS": STARTS, "MOST_SUMS": 256, "ROWS": 256, "COLUMNS": 2304, "BLOCK": kernels.BLOCK}
MOMENTUM = {"gradients": POINTERS, "momenta": POINTERS, "parameters": POINTERS, "sums": "*fp32", "factor": "fp32"}
LAUNCHES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {  # signatures and constants
    "momentum_kernel": [
        (MOMENTUM, {"SIZES": SIZES, "STARTS": STARTS, "NORMS": norms, "BLOCK": kernels.BLOCK})
        for norms in (True, False)
    ],
    "pack_kernel": [
        (
            dict(zip(MOMENTUM, (POINTERS, POINTERS), strict=False))
            | {"sums": "*fp32", "packed": "*fp16", "factor": "fp32", "smallest": "fp32"},
            FILTER,
        )
    ],
    "polynomial_kernel": [
        (
            {"gram": "*fp16", "result": "*fp16", "a": "fp32", "b": "fp32", "c": "fp32"},
            {"SIDE": side, "TILE": kernels.TILE},
        )
        for side in (256, 144)
    ],
    "muon_kernel": [
        (
            {"parameters": POINTERS, "packed": "*fp16", "sums": "*fp32", "rate": "*fp32", "decay": "fp32"},
            FILTER | {"RENORMALIZE": renormalize},
        )
        for renormalize in (True, False)
    ],
    "sgd_kernel": [
        (
            {"gradients": BIASES, "momenta": BIASES, "parameters": BIASES, "rates": "*fp32"}
            | {"factors": ("fp32",) * 8, "decays": ("fp32",) * 8},
            {
                "COLUMNS": (1, 3, 2, 2, 2, 2, 2, 2),
                "SIZES": (2560, 24, 64, 64, 256, 256, 256, 256),
                "STARTS": tuple(range(9)),
                "BLOCK": kernels.BLOCK,
            },
        )
    ],
}


def paths(signature: dict[str, Any]) -> list[tuple[tuple[int, ...], str]]:
    """Each argument's place, with that in its tuple, and type."""
    flat: list[tuple[tuple[int, ...], str]] = []
    for i, kind in enumerate(signature.values()):
        flat += [((i, j), each) for j, each in enumerate(kind)] if isinstance(kind, tuple) else [((i,), kind)]
    return flat


def test_every_kernel_is_compiled_below() -> None:
    assert set(LAUNCHES) == {name for name in vars(kernels) if name.endswith("_kernel")}


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", LAUNCHES)
def test_compiled_without_spills(name: str, capability: int, tmp_path: Path) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for signature, constants in LAUNCHES[name]:
        pointers = [path for path, kind in paths(signature) if kind.startswith("*")]
        source = ASTSource(
            fn=getattr(kernels, name),
            signature=signature | dict.fromkeys(constants, "constexpr"),
            constexprs=constants,
            attrs={path: [["tt.divisibility", 16]] for path in pointers},
        )
        warps = 4 if name == "polynomial_kernel" else kernels.WARPS
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        path = tmp_path / f"{name}.cubin"
        path.write_bytes(binary.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
        registers, stack, local = (int(re.findall(rf"{key}:(\d+)", usage)[-1]) for key in ("REG", "STACK", "LOCAL"))
        assert (stack, local) == (0, 0) and registers <= 128, usage
