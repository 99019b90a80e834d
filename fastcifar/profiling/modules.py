"""The modules of a network that count as its layers, ranges around their calls, and what `torch.compile` compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from fastcifar.training.annotations import LAYER, ROOT

WRAPPED = "_orig_mod"  # where the module that `torch.compile` returns keeps the one it was given


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` returned this module, or its `compile()` was called."""
    return hasattr(module, WRAPPED) or module._compiled_call_impl is not None


def original(module: nn.Module) -> nn.Module:
    """The module as it was written, where `torch.compile` wrapped it."""
    wrapped = getattr(module, WRAPPED, module)
    return wrapped if isinstance(wrapped, nn.Module) else module


def walk_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a network with their names, the outermost as `ROOT`.

    A compiled module is one, without the modules in it: its kernels do the work of several, and hooks inside it would
    have it compiled again.
    """
    compiled: list[str] = []
    for name, module in network.named_modules():
        if any(name.startswith(prefix) for prefix in compiled):
            continue
        if is_compiled(module):
            compiled.append(f"{name}." if name else "")
        yield name or ROOT, module


def compiler_loaded() -> bool:
    """Whether PyTorch's compiler is loaded; if not, nothing is compiled. Importing it takes seconds."""
    return "torch._dynamo" in sys.modules


@contextmanager
def run_uncompiled() -> Iterator[None]:
    """While inside, what `torch.compile` compiled runs operator by operator."""
    if not compiler_loaded():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def annotate_layers(network: nn.Module) -> Iterator[list[str]]:
    """While inside, every call of a module of the network is a range with the module's name.

    Yields the names of the modules whose calls are open, innermost last.
    """
    names: list[str] = []
    ranges: list[record_function] = []

    def enter(name: str) -> None:
        names.append(name)
        ranges.append(record_function(LAYER + name))
        ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave() -> None:
        names.pop()
        ranges.pop().__exit__(None, None, None)

    with ExitStack() as stack:
        for name, module in walk_modules(network):
            watch_calls(module, name, enter, leave, stack)
        yield names


def watch_calls(
    module: nn.Module, name: str, enter: Callable[[str], None], leave: Callable[[], None], stack: ExitStack
) -> None:
    """Have `enter` called with the name before each call of a module and `leave` after it, until the stack closes."""
    if (compiled := module._compiled_call_impl) is not None:
        # Its hooks are part of what is compiled: the ranges go around it.
        def call(*args: Any, **kwargs: Any) -> Any:
            enter(name)
            try:
                return compiled(*args, **kwargs)
            finally:
                leave()

        module._compiled_call_impl = call
        stack.callback(setattr, module, "_compiled_call_impl", compiled)
        return
    before = module.register_forward_pre_hook(lambda module, inputs: enter(name), prepend=True)
    after = module.register_forward_hook(lambda module, inputs, output: leave(), always_call=True)
    stack.callback(before.remove)
    stack.callback(after.remove)
