"""The C++ kernels on a 64-bit ARM processor, by a cross compiler and an emulator, against this machine's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastcifar.model.kernels.augment import shrinking
from fastcifar.model.kernels.build import flags
from fastcifar.model.kernels.install import SOURCES

KERNELS = Path(__file__).parents[3] / "fastcifar" / "model" / "kernels"
CALLS = Path(__file__).with_name("call_kernels.cpp")
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def inputs() -> Iterator[NDArray[np.generic]]:
    """The numbers that `call_kernels.cpp` reads, in its order."""
    random = np.random.default_rng(3)

    def normal(*shape: int) -> NDArray[np.generic]:
        return random.standard_normal(shape, dtype=np.float32)

    for n, h, w, fed, out, pooled in ((5, 7, 6, 16, 40, 0), (5, 7, 6, 16, 40, 1), (2, 15, 15, 24, 8, 1)):
        yield normal(n, h, w, fed)
        yield normal(9, fed, out)
        yield normal(9, out, fed)
        yield normal(n, *((h // 2, w // 2) if pooled else (h, w)), out)
    for _ in ("GELU", "SiLU"):
        yield 3 * normal(77, 24)
        yield normal(77, 24)
        for _ in ("scale", "shift", "bias"):
            yield normal(24)
    for _ in ("plain", "changed", "smaller"):
        yield random.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        yield random.integers(0, 2, 6, dtype=np.uint8)
        yield random.integers(0, 4, 6, dtype=np.int64)
        yield random.integers(-2, 3, (6, 2), dtype=np.int64)
        yield random.integers(0, 25, (6, 2), dtype=np.int64)
        for count in (6, 6, 3, 3):
            yield normal(count)
        yield shrinking(24, True).numpy()


def run(compiler: str, march: str, runner: list[str], folder: Path) -> NDArray[np.float32]:
    """What the kernels make of the inputs, compiled for a processor and run there."""
    parts = [KERNELS / "vectors.h", *(KERNELS / f"{name}.cpp" for name in SOURCES), CALLS]
    source = folder / "all.cpp"
    source.write_text("\n".join(part.read_text(encoding="utf-8") for part in parts), encoding="utf-8")
    options = [march if each.startswith("-march") else each for each in flags("linux") if each != "-shared"]
    program, numbers, made = folder / "program", folder / "inputs", folder / "outputs"
    subprocess.run([compiler, *options, "-static", "-Wall", "-Werror", source, "-o", program], check=True)
    numbers.write_bytes(b"".join(each.tobytes() for each in inputs()))
    subprocess.run([*runner, program, numbers, made], check=True, timeout=300)
    return np.fromfile(made, dtype=np.float32)


@pytest.mark.slow
def test_the_kernels_run_on_arm(tmp_path: Path) -> None:
    for needed, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user"), ("g++", "g++")):
        if shutil.which(needed) is None:
            pytest.skip(f"there is no {needed} here (Debian's package {package})")
    made = []
    for name, *how in (("here", "g++", "-march=native", []), ("arm", COMPILER, "-march=armv8-a+simd", [EMULATOR])):
        (tmp_path / name).mkdir()
        made.append(run(*how, tmp_path / name))  # type: ignore[arg-type]
    native, arm = made
    assert len(native) == len(arm) > 40_000 and np.isfinite(native).all() and native.std() > 0.1
    np.testing.assert_allclose(arm, native, rtol=1e-4, atol=1e-4)
