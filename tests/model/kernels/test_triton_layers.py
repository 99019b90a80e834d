"""Triton kernels of the layers between convolutions: run by Triton's interpreter, compiled for GPUs that are not here,
counted by bytes; on a GPU where there is one."""

from __future__ import annotations

import copy
import operator
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcifar.model.network import Network
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Norm

triton = pytest.importorskip("triton")
from fastcifar.model.kernels import triton_layers as layers  # noqa: E402
from fastcifar.model.kernels import triton_norm, triton_norm_kernels, triton_pointwise  # noqa: E402

HALF = torch.float16
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int64: "i64",
    int: "i32",
    float: "fp32",
}
# Of each kernel, how many 16-byte loads and stores a thread makes for a tile at least (8-byte ones where it says so).
WIDE = {
    "pool_statistics_kernel": (4, 1),
    "statistics_kernel": (2, 0),
    "update_statistics_kernel": (8, 0),
    "normalize_kernel": (1, 1),
    "pool_normalize_kernel": (4, 1),
    "gradient_sums_kernel": (4, 0),
    "bias_gradient_kernel": (8, 0),
    "normalize_backward_kernel": (2, 1),
    "pool_normalize_backward_kernel": (2, 4),
    "activation_kernel": (2, 2),
    "activation_backward_kernel": (4, 2),
    "global_max_kernel": (2, 1),
    "global_max_backward_kernel": (1, 1),
}
SUMMING = ("update_statistics_kernel", "bias_gradient_kernel")  # write nothing but a number for each channel
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def test_kernels_in_tritons_interpreter() -> None:
    """Triton reads the variable when kernels are defined, so this needs a process of its own."""
    path = Path(__file__).with_name("interpreted_triton_layers.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def maps(channels: int, height: int, dtype: torch.dtype = HALF) -> Tensor:
    """A map of a batch of hive94 that has no numbers."""
    shape = (1536, channels, height, height)
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def launch_all(channels: int, dtype: torch.dtype, kind: str) -> None:
    """Call every kernel on maps in half precision, with factors of channels of that type."""
    x = maps(channels, 31)
    factor = torch.empty(channels, dtype=dtype, device="meta")
    count = torch.empty((), dtype=torch.int64, device="meta")
    y, chosen, parts = triton_norm.pool_statistics(x)
    triton_norm.statistics(y)
    mean, variance = triton_norm.update_statistics(parts, factor, factor, count, 0.4, 100, 10)
    triton_norm.normalize(y, mean, variance, factor, 1e-12, kind)
    triton_norm.pool_normalize(x, factor, factor, factor, 1e-12, kind)
    parts = triton_norm.gradient_sums(y, y, mean, variance, factor, 1e-12, kind)
    _, means = triton_norm.bias_gradient(parts, factor, 100)
    triton_norm.normalize_backward(y, y, mean, variance, factor, means, 1e-12, kind)
    triton_norm.pool_normalize_backward(y, chosen, y, mean, variance, factor, means, 1e-12, kind, 31, 31)
    triton_pointwise.activation(x, kind)
    triton_pointwise.activation_backward(x, x, kind)
    for mean in (False, True):
        maxima, chosen = triton_pointwise.global_max(maps(channels, 3), mean)
        triton_pointwise.global_max_backward(maxima, chosen, mean, 3, 3)


def kernels() -> dict[str, Any]:
    """All kernels that the modules define, by name."""
    defined = {**vars(triton_pointwise), **vars(triton_norm_kernels)}
    return {name: each for name, each in defined.items() if name.endswith("_kernel")}


def compile_kernel(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int) -> tuple[str, str]:
    """What a launch with these arguments compiles to: use of resources, and machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    warps = {"num_warps": options["num_warps"]}
    constants = {name: value for name, value in options.items() if name != "num_warps"}
    signature, aligned = {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        signature[name] = f"*{TYPES[value.dtype]}" if isinstance(value, Tensor) else TYPES[type(value)]
        if isinstance(value, Tensor):
            aligned[(i,)] = [["tt.divisibility", 16]]
        else:
            assert isinstance(value, float) or kernel.params[i].do_not_specialize, f"{kernel.__name__}: {name}"
    assert {*signature, *constants} == {*kernel.arg_names}
    source = ASTSource(
        fn=kernel, signature={**signature, **dict.fromkeys(constants, "constexpr")}, constexprs=constants, attrs=aligned
    )
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=warps).asm["cubin"]
    return look_at(binary)


def look_at(binary: bytes) -> tuple[str, str]:
    """What cuobjdump says of a compiled kernel: its use of resources, and its machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = [
            subprocess.run([TOOLS / "cuobjdump", flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        ]
    return said[0], said[1]


def recorded(monkeypatch: pytest.MonkeyPatch, launch: Callable[[], None]) -> list[tuple[Any, ...]]:
    """The launches of a function that makes some, which are not made: kernel, arguments, options."""
    seen: list[tuple[Any, ...]] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        seen.append((kernel, args, options))

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", note)
    launch()
    return seen


CONFIGURATIONS = [
    pytest.param(256, torch.float32, "gelu", 90),
    *(
        pytest.param(channels, factors, kind, capability, marks=pytest.mark.slow)
        for channels, factors, kind, capability in (
            (64, torch.float32, "gelu", 90),
            (64, HALF, "silu", 90),
            (256, HALF, "silu", 90),
            (64, torch.float32, "gelu", 80),
            (256, torch.float32, "gelu", 80),
            (256, HALF, "silu", 80),
            (128, HALF, "celu", 90),
        )
    ),
]


@pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="Triton came without NVIDIA's tools")
@pytest.mark.parametrize(("channels", "factors", "kind", "capability"), CONFIGURATIONS)
def test_kernels_compile_to_wide_loads_without_spills(
    channels: int, factors: torch.dtype, kind: str, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = recorded(monkeypatch, lambda: launch_all(channels, factors, kind))
    assert {kernel.__name__ for kernel, *_ in launches} == {*kernels()} == {*WIDE}, "a kernel is not tried here"
    for kernel, args, options in launches:
        usage, code = compile_kernel(kernel, args, options, capability)
        name = kernel.__name__
        found = re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage)
        assert found is not None, usage
        registers, stack, local = map(int, found.groups())
        assert stack == local == 0 and not re.search(r"\b(LDL|STL)\b", code), f"{name} spills"
        assert registers <= 128, f"{name}: fewer than two programs of 256 threads on a multiprocessor"
        bits = 64 if name == "pool_statistics_kernel" else 128
        wide = tuple(len(re.findall(rf"\b{which}\.E(?:\.\w+)*\.{bits}\b", code)) for which in ("LDG(?:STS)?", "STG"))
        assert all(map(operator.ge, wide, WIDE[name])), f"{name}: {wide} loads and stores of {bits} bits"
        assert name in SUMMING or not re.search(r"\bSTG\.E\.(U8|U16)\b", code), f"{name}: a map is written in pieces"


class Bytes(TorchDispatchMode):
    """Adds up the bytes of what each of our operators reads and writes, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operators = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        if op.namespace == "fastcifar":
            self.operators += 1
            self.bytes += sum(each.nbytes for each in tree_leaves((args, out)) if isinstance(each, Tensor))
        return out


def test_what_is_moved_and_kept() -> None:
    """A group's pooling, two norms and two activations move 2 P + 16 S bytes; 1.5 S of each pooled norm are kept."""
    norms = [layers.NormAct(64, Norm()).to("meta", HALF) for _ in range(2)]
    for norm, pooled in zip(norms, (True, False), strict=True):
        norm.kind, norm.pooled = "gelu", pooled
    x = maps(64, 31).requires_grad_()
    kept: list[int] = []
    with Bytes() as counted:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):  # type: ignore[func-returns-value]
            middle = layers.Normalization.apply(x, norms[0].bias, norms[0])
            first, kept = sum(kept), []
            y = layers.Normalization.apply(middle, norms[1].bias, norms[1])
        y.backward(torch.empty_like(y))
    before, behind = x.nbytes, y.nbytes
    assert counted.operators == 2 * (3 + 3)
    assert counted.bytes == pytest.approx(2 * before + 16 * behind, rel=0.01)
    assert first == pytest.approx(1.5 * behind, rel=0.001) and sum(kept) == pytest.approx(behind, rel=0.001)


def test_without_a_gpu_pytorchs_operators_run() -> None:
    plain = Network(load_recipe("air94", "network.widths=[8, 16, 16]").network, 10)
    plain.initialize(torch.Generator().manual_seed(0))
    plain.whiten.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    fused = copy.deepcopy(plain)
    layers.install(fused)
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert torch.equal(fused(x), plain(x))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("air94", ()),
        ("air94", ("network.kernels=[[3, 1], [3, 1], [2, 3]]", "network.pool=max_mean")),
        ("fast100", ()),
        ("hive94", ()),
        ("hlb", ()),
    ],
)
def test_a_network_on_a_gpu_and_in_a_graph(name: str, further: tuple[str, ...]) -> None:
    recipe = load_recipe(name, *further)
    plain = Network(recipe.network, 10)
    generator = torch.Generator().manual_seed(0)
    plain.initialize(generator)
    plain.set_whitening([torch.randn(64, 3, 32, 32, generator=generator)])
    plain.to("cuda", HALF, memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).float()
    layers.install(fused)
    x = torch.randn(64, 3, 32, 32, generator=generator).cuda().contiguous(memory_format=torch.channels_last)

    def logits_of(network: Network, given: Tensor) -> Tensor:
        logits = network(given)
        logits.float().square().mean().backward()
        return logits.detach()

    def error(found: Tensor, expected: Tensor) -> float:
        return float((found.float() - expected.float()).norm() / expected.float().norm())

    expected, usual, found = logits_of(exact, x), logits_of(plain, x.half()), logits_of(fused, x.half())
    assert error(found, expected) < 2 * error(usual, expected) + 1e-3
    for (key, each), other, right in zip(fused.named_parameters(), plain.parameters(), exact.parameters(), strict=True):
        if right.grad is not None:
            assert error(each.grad, right.grad) < 2 * error(other.grad, right.grad) + 1e-2, key
    for (key, each), right in zip(fused.named_buffers(), exact.buffers(), strict=True):
        assert error(each, right) < 1e-2, key
    stream, static = torch.cuda.Stream(), x.half()
    fused.zero_grad()
    with torch.cuda.stream(stream):
        logits_of(fused, static)
    fused.zero_grad()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = logits_of(fused, static)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, found)
