"""The operators that a run of each recipe launches, and which of them have a kernel for Apple GPUs, by PyTorch's table.

    PYTHONPATH=.:tests python tests/training/mps_kernels.py torch-2.11.0-….whl torch-2.14.1-….whl

writes mps_kernels.json beside this file: for each release (a wheel of any platform holds the table) and each of our
operators what runs it on an Apple GPU: `MPS` a kernel of its own, `composite` other operators, null nothing. It adds
the operators that the installed release launches to those in the file.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcifar.data.dataset import Dataset
from fastcifar.model.predict import infer
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.step import TrainState, train_step

KEPT = Path(__file__).with_name("mps_kernels.json")
TABLE = "torchgen/packaged/ATen/native/native_functions.yaml"
# What composite operators of ours call, where that is not plain from their names and no view alone.
PARTS = {
    "_to_copy": "copy_",
    "abs": "abs.out",
    "arange": "arange.start_out",
    "celu": "elu",
    "convolution": "_mps_convolution",
    "convolution_backward": "mps_convolution_backward",
    "copy_": "_copy_from",
    "full": "fill_.Scalar",
    "index_put_": "_index_put_impl_",
    "masked_fill.Scalar": "masked_fill_.Scalar",
    "rand.generator": "uniform_",
    "randint.low_generator": "random_.from",
    "randperm.generator": "randperm.generator_out",
    "rsub.Scalar": "sub.out",
    "select.int": "as_strided",
    "stack": "cat",
    "_foreach_norm.Scalar": "linalg_vector_norm",
}
SMALL = ("network.widths=[8, 8, 8]", "training.batch_size=64", "network.whiten.images=64")


class Recorder(TorchDispatchMode):
    """Collects the names of the operators that are launched, and of those that touch a float64 tensor.

    With a `device` only what happens there counts.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.names: set[str] = set()
        self.doubles: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note it."""
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        here = [each for each in tensors if each.device.type == self.device]
        if here:
            name = func._schema.name.removeprefix("aten::")
            overload = func._schema.overload_name
            self.names.add(f"{name}.{overload}" if overload else name)
        if any(each.dtype == torch.float64 for each in here):
            self.doubles.add(str(func))
        return out


def record_run(name: str, dataset: Dataset) -> Recorder:
    """Launch each kind of step of a recipe once, its averaging and its evaluation, with a narrow network on the CPU,
    where a step of the eager engine launches the operators that it launches on an Apple GPU."""
    state = TrainState(load_recipe(name, *SMALL), dataset, torch.device("cpu"), 0)
    state.whiten()
    seen = set()
    with Recorder() as recorder:
        for step in range(state.total_steps):
            if (key := state.graph_key(step)) not in seen or step == state.total_steps - 1:
                seen.add(key)
                state.step = step
                state.network.train()
                train_step(state)
        state.ema.apply()
        infer(state.network, state.dataset.test.images, state.mean, state.std, state.recipe.evaluation)
    return recorder


def parse_table(text: str) -> dict[str, tuple[str | None, list[str]]]:
    """For each operator of PyTorch's table the one that it is computed by, and what it has kernels for."""
    table = {}
    for block in re.split(r"^- func: ", text, flags=re.MULTILINE)[1:]:
        delegate = re.search(r"^  structured_delegate: (\S+)", block, flags=re.MULTILINE)
        dispatch = re.search(r"^  dispatch:\n((?:    .*\n|\s*#.*\n)*)", block, flags=re.MULTILINE)
        lines = re.findall(r"^    ([\w, ]+):", dispatch[1], flags=re.MULTILINE) if dispatch else []
        keys = [key.strip() for line in lines for key in line.split(",")]
        table[block[: block.index("(")]] = (delegate[1] if delegate else None, keys)
    return table


def kernel(name: str, table: dict[str, tuple[str | None, list[str]]]) -> str | None:
    """What runs an operator on an Apple GPU: `MPS`, `composite`, or None."""
    if name not in table:
        return None
    delegate, keys = table[name]
    if delegate is not None:
        return kernel(delegate, table)
    if "MPS" in keys:
        return "MPS"
    composites = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
    return "composite" if not keys or composites & set(keys) else None


def with_parts(names: set[str], table: dict[str, tuple[str | None, list[str]]]) -> set[str]:
    """The operators, and what they call: `_foreach_…` the operator behind it, for every tensor."""
    parts = {PARTS[name] for name in names if name in PARTS}
    for name in names - PARTS.keys():
        if found := re.match(r"_foreach_(\w+)", name):
            parts |= {each for each in table if each.split(".")[0] == found[1] and not each.endswith("out")}
    return with_parts(parts, table) | names if parts - names else names


def installed_table() -> dict[str, tuple[str | None, list[str]]]:
    """The table of the installed release."""
    (package,) = find_spec("torchgen").submodule_search_locations  # type: ignore[union-attr, misc]
    return parse_table((Path(package).parent / TABLE).read_text(encoding="utf-8"))


def tables(wheels: list[str]) -> Iterator[tuple[str, dict[str, tuple[str | None, list[str]]]]]:
    """The release and the table of each wheel."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            yield Path(wheel).name.split("-")[1], parse_table(archive.read(TABLE).decode())


if __name__ == "__main__":
    from helpers import few_shapes

    from fastcifar.recipes.parse import recipe_names

    before = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    launched = {name for release in before.values() for name in release}
    for recipe in recipe_names():
        launched |= record_run(recipe, few_shapes(128, 64)).names
    kept = {}
    for release, table in tables(sys.argv[1:]):
        kept[release] = {name: kernel(name, table) for name in sorted(with_parts(launched, table))}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
