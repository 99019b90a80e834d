"""Triton kernels of both ends of a step: right where they are interpreted, and compiled for the GPUs they are made for.

Neither needs a GPU. What they are compiled for is what the recipes launch, recorded from the launches themselves.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcifar.model.network import DTYPES
from fastcifar.recipes.parse import load_recipe, recipe_names
from fastcifar.recipes.schema import Data, Network, Recipe, Training, Whiten
from fastcifar.training.step import resolutions

triton = pytest.importorskip("triton")
from fastcifar.model.kernels import triton_augment, triton_convolution, triton_loss, triton_whiten  # noqa: E402

MODULES = (triton_augment, triton_whiten, triton_convolution, triton_loss)
TYPES = {
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
Launch = tuple[Any, dict[str, Any], dict[str, int]]  # kernel, arguments by name, options


CHECKS = ("interpreted_stem.py", "interpreted_convolution.py")


def run_checks(name: str, **environment: str) -> None:
    """All of a file in a process of its own: Triton reads the variable when kernels are defined."""
    checks = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.match(r"\d+ passed", done.stdout.splitlines()[-1]), done.stdout[-500:]


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_interpreted(name: str) -> None:
    run_checks(name, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_kernels_on_a_gpu(name: str) -> None:
    run_checks(name, TRITON_INTERPRET="0")


class Recorder:
    """Stands for a kernel and keeps what it would be launched with."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **keywords: Any) -> None:
            assert 0 < grid[0] < 2**31 and all(0 < each < 2**16 for each in grid[1:])
            names = self.kernel.arg_names
            values = dict(zip(names, arguments, strict=False)) | keywords
            options = {name: values.pop(name) for name in list(values) if name not in names}
            assert set(values) == set(names)
            self.launches.append((self.kernel, values, options))

        return launch


def kernels() -> dict[str, Any]:
    """All kernels of the modules, by name."""
    found = {name: value for module in MODULES for name, value in vars(module).items() if name.endswith("_kernel")}
    assert len(found) == 10
    return found


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def run_step(recipe: Recipe, side: int, classes: int) -> None:
    """What a step of a recipe launches of our kernels, over tensors without memory."""
    data, whiten, size = recipe.data, recipe.network.whiten, recipe.training.batch_size
    dtype = DTYPES[recipe.training.precision]
    flip = None if data.flip == "none" else meta(size, dtype=torch.bool)
    shift, box = (meta(size, 2, dtype=torch.int64) if each else None for each in (data.translate, data.cutout))
    brightness, contrast = (meta(size) if each else None for each in (data.brightness, data.contrast))
    images, index = meta(50_000, 3, 32, 32, dtype=torch.uint8), meta(size, dtype=torch.int64)
    changes = (flip, shift, box, brightness, contrast)
    x = triton_augment.launch(images, index, *changes, meta(3), meta(3), dtype, data.cutout, side, data.antialias)
    if not recipe.network.project:
        filters = triton_augment.new(x, (whiten.channels, 3, whiten.kernel, whiten.kernel), dtype)
        bias = meta(len(filters), dtype=dtype) if whiten.bias else None
        width = triton_convolution.padded_channels(len(filters))
        y = triton_whiten.launch(x, filters, bias, whiten.padding, width, whiten.activation)
        if bias is not None:
            sums = triton_whiten.launch_backward(x, filters, bias, y, whiten.padding, whiten.activation)
            triton_whiten.launch_bias(sums, bias)
        first = triton_augment.new(x, (recipe.network.widths[0], len(filters), 3, 3), dtype)
        if width > len(filters):
            triton_convolution.pad_filters(first, width)
        if triton_convolution.suits_filters(y, len(filters)):
            grad = triton_augment.new(y, (size, len(first), *y.shape[2:]), dtype)
            triton_convolution.filter_sum(triton_convolution.filter_parts(y, grad, len(filters)), first)
    logits, labels, smoothing = meta(size, classes, dtype=dtype), meta(size, dtype=torch.int64), 0.2
    for weights in (None, meta(size)):
        partial = triton_loss.launch_loss(logits, labels, weights, smoothing)
        loss = triton_loss.launch_metrics(partial, meta(3), size)
        triton_loss.launch_backward(logits, labels, weights, loss, smoothing)


def compile_and_read(launch: Launch, capability: int) -> str:
    """The machine code of what a launch would run on a GPU of that compute capability."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, values, options = launch
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            if not parameter.do_not_specialize_on_alignment:
                attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            assert isinstance(value, float) or parameter.do_not_specialize, f"variants by {parameter.name}"
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    return subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout


def described(launch: Launch) -> str:
    """What a launch is compiled for."""
    kernel, values, options = launch
    types = [value.dtype if isinstance(value, Tensor) else type(value).__name__ for value in values.values()]
    return f"{kernel.__name__} {types} {[values[each.name] for each in kernel.params if each.is_constexpr]} {options}"


def recorded(monkeypatch: pytest.MonkeyPatch, steps: Iterable[tuple[Recipe, int, int]]) -> list[Launch]:
    """What steps of recipes, on images of a side and of so many classes, launch; each once, and every kernel."""
    launches: list[Launch] = []
    ours = kernels()
    with monkeypatch.context() as patches:
        for name, kernel in ours.items():
            (module,) = (module for module in MODULES if name in vars(module))
            patches.setattr(module, name, Recorder(kernel, launches))
        for recipe, side, classes in steps:
            run_step(recipe, side, classes)
    different = {described(launch): launch for launch in launches}
    assert {kernel.__name__ for kernel, _, _ in different.values()} == set(ours)
    return list(different.values())


def check_code(launches: list[Launch], capability: int) -> None:
    for launch in launches:
        code = compile_and_read(launch, capability)
        assert re.search(r"\bSTG\b", code) and not re.search(r"\b(LDL|STL)\b", code), described(launch)  # no spills
        barriers = len(re.findall(r"\bBAR\b", code))
        if launch[0].__name__ == "augment_kernel":
            assert barriers == 0, described(launch)  # no number of it changes threads


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_compiled_for_the_default_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    check_code(recorded(monkeypatch, [(load_recipe("fast94"), 24, 10)]), 90)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_for_all_recipes(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [load_recipe(name) for name in recipe_names()]
    steps = [(recipe, side, 10) for recipe in recipes for side in resolutions(recipe, 100)]
    other = Recipe(data=Data(cutout=8), network=Network(whiten=Whiten(3, 1, activation="silu")))
    last = Recipe(network=Network(whiten=Whiten(signs=1, bias=False, activation="celu")))
    steps += [(other, 16, 100), (last, 32, 1000)]
    steps += [(Recipe(training=Training(precision=precision)), 32, 10) for precision in DTYPES]  # type: ignore[arg-type]
    check_code(recorded(monkeypatch, dict.fromkeys(steps)), capability)
