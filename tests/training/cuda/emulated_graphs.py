"""CUDA graphs emulated on CPU tensors, so that an engine that captures and replays can be tested without a GPU.

A capture records every operator with the very tensors that it read and wrote, and leaves no effect; a replay runs them
again on that memory. What a real graph gets wrong for reasons of the program goes wrong here too: a number baked in, an
address that changed, a kind of step not told apart, a wait for the device. Streams and memory pools are accepted and
mean nothing, as everything here happens in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from fake_cuda import draws_random_numbers, storage, tensors_in, waits_for_device, written_by
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Log:
    """What was captured and replayed so far."""

    captures: int = 0
    replays: int = 0
    capturing: bool = False
    replaying: bool = False


@dataclass
class Call:
    """One operator of a graph, and the memory it made when it was captured."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: dict[int, Tensor] = field(default_factory=dict)  # by their place among the outputs

    def again(self) -> None:
        """Run it once more; what it makes goes where its first outputs are."""
        outputs = tree_leaves(self.func(*self.args, **self.kwargs))
        for place, tensor in self.made.items():
            tensor.copy_(outputs[place])


class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators inside its `with` block, and undoes at its end what they did to memory made before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.made: dict[int, torch.UntypedStorage] = {}  # kept: an address names one storage for the whole capture
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # and its content before

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the compiler is not imported, which would take seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        # A real capture fails at the first, and the second would be others than those of eager steps.
        if waits_for_device(func, tensors_in((args, kwargs))) or draws_random_numbers(func):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        for tensor in written_by(func, args, kwargs):
            key = storage(tensor)
            if key not in self.made and key not in self.before:
                memory = tensor.untyped_storage()
                self.before[key] = memory, memory.clone()  # type: ignore[no-untyped-call]
        out = func(*args, **kwargs)
        call = Call(func, args, kwargs)
        known = {storage(tensor) for tensor in tensors_in((args, kwargs))}
        for place, leaf in enumerate(tree_leaves(out)):
            if isinstance(leaf, Tensor) and storage(leaf) not in known:
                call.made[place] = leaf
                self.made[storage(leaf)] = leaf.untyped_storage()
        if call.made or func._schema.is_mutable or "batch_norm" in func.name():
            self.calls.append(call)
        return out

    def undo(self) -> None:
        """Put back what was there before the capture."""
        for memory, content in self.before.values():
            memory.copy_(content)


class EmulatedGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    log: Log

    def __init__(self) -> None:
        self.calls: list[Call] | None = None

    def replay(self) -> None:
        """Run what was captured on the memory that it was captured on."""
        if self.calls is None:
            raise RuntimeError("replay of a graph that was never captured")
        self.log.replays += 1
        self.log.replaying = True
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for call in self.calls:
                call.again()
        self.log.replaying = False


class EmulatedStream:
    """Stands for `torch.cuda.Stream`: work is done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: EmulatedStream) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class LaunchedOneByOne(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the convolutions inside its `with` block that are in no graph: work that the host launched one by one."""

    def __init__(self, log: Log) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log
        self.convolutions = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the compiler is not imported, which would take seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = self.log.capturing or self.log.replaying
        self.convolutions += "convolution" in func.name() and not inside
        return func(*args, **(kwargs or {}))


@contextmanager
def emulated_graphs() -> Iterator[Log]:
    """Inside, graphs and streams of `torch.cuda` are emulated; gives the log of captures and replays."""
    log, stream = Log(), EmulatedStream()

    @contextmanager
    def graph(
        cuda_graph: EmulatedGraph,
        pool: Any = None,
        stream: EmulatedStream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        if log.capturing:
            raise RuntimeError("a capture within a capture")
        capture = Capture()
        log.captures += 1
        log.capturing = True
        try:
            with capture:
                yield
        finally:
            log.capturing = False
            capture.undo()
        cuda_graph.calls = capture.calls

    stand_ins: dict[str, Any] = {
        "CUDAGraph": type("EmulatedGraph", (EmulatedGraph,), {"log": log}),
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: log.capturing,
        "Stream": EmulatedStream,
        "stream": lambda stream: nullcontext(stream),
        "current_stream": lambda device=None: stream,
        "synchronize": lambda device=None: None,
    }
    with mock.patch.multiple(torch.cuda, **stand_ins):
        yield log
