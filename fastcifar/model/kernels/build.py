"""Kernels in C++, compiled for the processor at hand the first time they are wanted, and kept.

What is kept is code that will be run: it lies in a folder that nobody but the user can write, under a name made from
all it depends on, with a digest that tells damage.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcifar.errors import FastcifarError, FastcifarWarning, MachineError
from fastcifar.system import files

COMPILERS = ("c++", "g++", "clang++")
DIGEST_SIZE = 32
MULTIPLE = 8  # channels that the kernels take come in multiples of it


class Fused(nn.Module):
    """A layer whose work the one in front of it does."""

    def forward(self, x: Tensor) -> Tensor:
        """What came in."""
        return x


def flags(platform: str = sys.platform) -> tuple[str, ...]:
    """The compiler's options, by `sys.platform`.

    Apple's clang takes neither -fopenmp from its driver nor -march=native, and has no OpenMP library. Torch has loaded
    one, whose functions are found when a kernel is loaded; to link it would record the place where it was built.
    """
    common = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC")
    if platform == "darwin":
        return (*common, "-Xclang", "-fopenmp", "-Wl,-undefined,dynamic_lookup")
    return (*common, "-march=native", "-fopenmp")


@cache
def library(name: str) -> ctypes.CDLL:
    """The compiled `<name>.cpp` of this package; raises MachineError where it cannot be compiled here."""
    folder = Path(__file__).parent
    source = b"".join((folder / part).read_bytes() for part in ("vectors.h", f"{name}.cpp"))
    with contextlib.ExitStack() as stack:
        try:
            folder = private_folder()
        except OSError as error:
            warn_not_kept(error)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / f"{name}-{key(source)}.so"
        if intact(path):
            with contextlib.suppress(OSError):  # made with libraries that are not here: a home that machines share
                return ctypes.CDLL(str(path))
        build(source, path)
        return ctypes.CDLL(str(path))


def new(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for images (N, C, H, W), channels last, where another tensor is."""
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's numbers, null for none."""
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def warn_not_kept(error: OSError) -> None:
    """Say that compiled code is compiled again each time, and why."""
    warnings.warn(f"Compiled kernels are not kept: {error}", FastcifarWarning, stacklevel=2)


def private_folder() -> Path:
    """The folder of compiled code; raises OSError where it cannot be written, or not by the user alone."""
    try:
        folder = files.home() / "native"
    except FastcifarError as error:
        raise OSError(str(error)) from None
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.stat()
    if hasattr(os, "getuid") and (facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o022):
        raise OSError(f"{folder} belongs to somebody else, or others can write to it; remove it or chmod it to 700.")
    if not os.access(folder, os.W_OK):
        raise OSError(f"{folder} cannot be written.")
    return folder


def key(source: bytes) -> str:
    """What compiled code depends on: the source, how it is compiled, and what the processor can do."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            processor = next((line for line in info if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        processor = platform.processor()
    parts = (source, " ".join((*flags(), platform.machine(), processor)).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def intact(path: Path) -> bool:
    """Whether compiled code is there, whole: its file ends with the digest of what stands before."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_SIZE]).digest() == content[-DIGEST_SIZE:]


def find_compiler() -> str:
    """The C++ compiler: the one named by CXX, else the first of those known; raises MachineError where none is here."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        raise MachineError("there is no C++ compiler here (g++ or clang++)")
    return compiler


def compiler_version(compiler: str) -> str:
    """The first line of what a compiler says of its version. Raises OSError where it cannot be run."""
    done = subprocess.run([compiler, "--version"], capture_output=True, check=False)
    return done.stdout.decode(errors="replace").partition("\n")[0].strip()


def build(source: bytes, path: Path) -> None:
    """Compile the source and put it at `path`, whole or not at all.

    Raises MachineError with the reason, DataError where it cannot be written.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / path.name
        command = [compiler, *flags(), "-x", "c++", "-", "-o", str(output)]
        done = subprocess.run(command, input=source, capture_output=True, check=False)
        if done.returncode or not output.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"it left with {done.returncode}"]
            raise MachineError(f"{compiler} cannot compile our kernels: {said[0]}")
        content = output.read_bytes()
    digest = hashlib.sha256(content).digest()  # what follows the last section is no part of the code
    files.write_atomically(path, lambda file: file.write(content + digest))
