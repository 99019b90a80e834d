"""Training steps over fake CUDA tensors, on a machine without a GPU: which operators run, on what, and of which types.

PyTorch's FakeTensorMode knows shapes, strides, types and devices, and computes nothing; its CUDA tensors need no GPU
but for what autograd and the choice of operators ask of CUDA. `fakehooks.cpp` answers that, in a library that must be
loaded before libtorch: fake steps run in a process of their own, in the environment of `hooked_environment`.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastcifar.data.dataset import Dataset, Split
from fastcifar.model import predict
from fastcifar.model.kernels.triton_operators import FLOPS, TRAFFIC
from fastcifar.model.network import Network
from fastcifar.recipes.parse import load_recipe
from fastcifar.training.annotations import PHASE
from fastcifar.training.optim import Optimizer
from fastcifar.training.step import TrainState, forward_backward_update

SOURCE = Path(__file__).with_name("fakehooks.cpp")
ROOT = Path(__file__).resolve().parents[3]
CUDA = torch.device("cuda", 0)
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put")
LIBRARY = "FASTCIFAR_FAKE_HOOKS"  # environment: the library that a process was started with


class Unavailable(Exception):
    """Fake CUDA steps cannot run here; the text says why."""


def compile_hooks(folder: Path) -> Path:
    """The compiled hooks, which `folder` keeps; raises Unavailable where there is no compiler, or no LD_PRELOAD."""
    from torch.utils.cpp_extension import include_paths, library_paths  # takes a second to import

    if sys.platform != "linux":
        raise Unavailable("libraries are preloaded with LD_PRELOAD on Linux alone")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise Unavailable("there is no C++ compiler here (g++ or clang++)")
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {torch.__file__}".encode()).hexdigest()[:16]
    library = folder / f"fakehooks-{key}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-shared", "-fPIC", *(f"-I{path}" for path in include_paths())]
        for path in library_paths():
            flags += [f"-L{path}", f"-Wl,-rpath,{path}"]
        command = [compiler, str(SOURCE), "-o", str(made), *flags, "-ltorch_cpu", "-lc10"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"The hooks do not compile with PyTorch {torch.__version__}:\n{done.stderr}")
        made.replace(library)
    return library


def hooked_environment(folder: Path) -> dict[str, str]:
    """The environment of a process whose CUDA tensors are fake; raises Unavailable where there can be none.

    `folder` keeps the compiled library.
    """
    library = str(compile_hooks(folder))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "LD_PRELOAD": library, LIBRARY: library, "PYTHONPATH": path}


def is_hooked() -> bool:
    """Whether this process was started in a `hooked_environment`."""
    return LIBRARY in os.environ


class FakeGenerator(torch.Generator):
    """A generator that says it is on the device asked for; fake tensors draw no numbers from it."""

    def __new__(cls, device: torch.device | str = "cpu") -> FakeGenerator:
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.place = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where numbers are drawn."""
        return self.place


def replace_tensors(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` with new parameters: fake ones cannot change their device or type in place."""
    for each in module.modules() if recurse else [module]:
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else change(buffer)
    return module


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside, every new tensor is fake, and may be on CUDA; generators on CUDA and moved modules are stood in for, and
    weights, which have no values, are not initialised: filter by filter that takes seconds."""
    with (
        mock.patch.object(torch, "Generator", FakeGenerator),
        mock.patch.object(nn.Module, "_apply", replace_tensors),
        mock.patch.object(Network, "initialize"),
        FakeTensorMode(),
    ):
        yield


def fake_dataset(train: int = 50_000, test: int = 10_000) -> Dataset:
    """A dataset of the size of CIFAR-10; to be called inside `fake_cuda`."""

    def split(count: int) -> Split:
        return Split(torch.empty(count, 3, 32, 32, dtype=torch.uint8), torch.empty(count, dtype=torch.int64))

    return Dataset("fake", tuple("abcdefghij"), split(train), split(test), (0.5,) * 3, (0.25,) * 3, "", False, "")


def fake_state(recipe: str, *overrides: str) -> TrainState:
    """The state of a recipe's training on fake CUDA tensors, in training mode; to be called inside `fake_cuda`."""
    state = TrainState(load_recipe(recipe, *overrides), fake_dataset(), CUDA, 0)
    state.network.train()
    return state


@dataclass(frozen=True)
class Facts:
    """What is known of a tensor that was there."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str  # float16
    device: str  # cpu or cuda
    bytes: int  # of memory that it covers: an expanded tensor covers less than its shape says
    channels_last: bool  # images in channels-last memory
    contiguous: bool

    @property
    def numel(self) -> int:
        """How many numbers its shape holds."""
        return math.prod(self.shape)


def facts(tensor: Tensor) -> Facts:
    """The facts of a tensor."""
    return Facts(
        tuple(tensor.shape),
        tensor.stride(),
        str(tensor.dtype).removeprefix("torch."),
        tensor.device.type,
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()),
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last),
        tensor.is_contiguous(),
    )


@dataclass(frozen=True)
class Operator:
    """One call of a PyTorch operator, as it was dispatched below autograd. It holds no tensor: autograd copies a
    gradient that somebody else holds too."""

    name: str  # without its overload, and without the namespace where that is PyTorch's: `convolution`
    overload: str  # `Tensor` of `_foreach_mul_.Tensor`
    waits: bool  # whether the host must see what the device computed before it can go on
    random: bool  # whether it draws random numbers
    phase: str | None  # of the step; the gradient of the loss counts as loss
    node: str  # the autograd node whose gradient it computes; empty for none
    args: tuple[Any, ...]  # with facts in place of tensors
    inputs: tuple[Facts, ...]
    written: tuple[Facts, ...]  # inputs that it changes
    outputs: tuple[Facts, ...] = ()  # in memory that is new
    moved: int | None = None  # bytes, of an operator of ours that does not move each tensor once
    flops: int = 0  # as our own operators say

    @property
    def is_view(self) -> bool:
        """Whether it neither makes nor changes anything: no kernel."""
        return not self.outputs and not self.written


def name_of(func: Any) -> str:
    """The name of an operator, without its overload and PyTorch's own namespace."""
    return str(func._schema.name).removeprefix("aten::")


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    """A number that identifies a tensor's memory as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operator changes, by its schema; and running statistics, of which schemas say nothing."""
    arguments = func._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    marked = [given.get(each.name) for each in arguments if each.alias_info is not None and each.alias_info.is_write]
    if given.get("training"):
        marked += [given.get("running_mean"), given.get("running_var")]
    return tensors_in(marked)


def waits_for_device(func: Any, inputs: list[Tensor]) -> bool:
    """Whether an operator reads on the host what the device computed: a value, or how many a mask takes."""
    if name_of(func) in INDEXING:
        return any(each.dtype in (torch.bool, torch.uint8) for each in inputs[1:])
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)


def draws_random_numbers(func: Any) -> bool:
    """Whether an operator draws from a generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that run inside its `with` block, in order; the last may be one that failed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.ranges: list[str] = []
        self.first_loss_node: float = math.inf  # the sequence number of the loss's first autograd node

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the compiler is not imported, which would take seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            self.note_range(func, args)
            return func(*args, **kwargs)
        name, inputs = name_of(func), tensors_in((args, kwargs))
        operator = Operator(
            name,
            func._overloadname,
            waits_for_device(func, inputs),
            draws_random_numbers(func),
            *self.place(),
            args=tree_map_only(Tensor, facts, tuple(args)),
            inputs=tuple(map(facts, inputs)),
            written=tuple(map(facts, written_by(func, args, kwargs))),
        )
        self.operators.append(operator)
        out = func(*args, **kwargs)
        known = {storage(tensor) for tensor in inputs}
        fresh = tuple(facts(tensor) for tensor in tensors_in(out) if storage(tensor) not in known)
        traffic, flops = (counts.get(name.removeprefix("fastcifar::")) for counts in (TRAFFIC, FLOPS))
        moved, operations = traffic(args, out) if traffic else None, flops(args, out) if flops else 0
        self.operators[-1] = replace(operator, outputs=fresh, moved=moved, flops=operations)
        return out

    def note_range(self, func: Any, args: Any) -> None:
        """Follow the named ranges of the step."""
        if "exit" in func.name():
            self.ranges.pop()
            return
        self.ranges.append(args[0])
        if args[0] == PHASE + "loss":
            self.first_loss_node = min(self.first_loss_node, torch._C._autograd._get_sequence_nr())

    def place(self) -> tuple[str | None, str]:
        """The phase and the autograd node of what is dispatched now."""
        phase = next((each.removeprefix(PHASE) for each in reversed(self.ranges) if each.startswith(PHASE)), None)
        node = torch._C._current_autograd_node()
        if node is None:
            return phase, ""
        of_loss = not node.name().endswith("AccumulateGrad") and node._sequence_nr() >= self.first_loss_node
        return "loss" if of_loss else phase, node.name()


def kinds_of_step(state: TrainState) -> list[list[int]]:
    """The kinds of step of a run (`TrainState.graph_key`): of each the numbers of its steps."""
    kinds: dict[Any, list[int]] = defaultdict(list)
    for step in range(state.total_steps):
        kinds[state.graph_key(step)].append(step)
    return list(kinds.values())


def describe_kind(state: TrainState, step: int) -> str:
    """What tells a step from others, in words: the resolution, then what is frozen, renormalised and averaged."""
    optimizer, average = state.optimizer, state.ema.graph_key(step)
    assert isinstance(optimizer, Optimizer)
    words = [f"{group.name} frozen" for group in optimizer.groups if step >= group.trained_steps]
    muon = any(getattr(group.settings, "method", "") == "muon" for group in optimizer.groups)
    words += ["renormalised"] * (muon and optimizer.renormalize[step])
    words += {"nothing": [], "begin": ["average begins"], "average": ["averaged"]}[average]
    return ", ".join([f"{state.resolutions[step]} px", *words])


def record(work: Callable[[], object]) -> list[Operator]:
    """The operators of any work, up to the first that fake tensors cannot answer."""
    recorder = Recorder()
    with suppress(DataDependentOutputException, DynamicOutputShapeException), recorder:
        work()
    return recorder.operators


def record_step(state: TrainState, step: int) -> list[Operator]:
    """The operators of the device's part of the step of that number (`forward_backward_update`)."""
    state.step = step
    state.optimizer.begin(step)
    plan = state.batch_plan()
    return record(lambda: forward_backward_update(state, plan))


def record_evaluation(state: TrainState, images: int) -> list[Operator]:
    """The operators of an evaluation, with the recipe's test-time augmentation, of so many images."""
    rows, recipe = state.images[:images], state.recipe.evaluation
    return record(lambda: predict.infer(state.network, rows, state.mean, state.std, recipe))
