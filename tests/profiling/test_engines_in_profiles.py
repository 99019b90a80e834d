"""Profiles of other engines than eager."""

from __future__ import annotations

from profiling_helpers import CPU, small_target

from fastcifar.profiling.profiler import profile
from fastcifar.training.engine import choose_engine


def test_the_kernels_of_the_compiled_engine_are_attributed() -> None:
    plain, fast = (profile(small_target("air94", engine=choose_engine(name, CPU)), 2) for name in ("eager", "compiled"))
    assert (plain.engine, fast.engine) == ("eager", "compiled")
    kinds = {layer.name: layer.kind for layer in fast.layers}
    assert kinds["group2.conv1"] == "WinogradConv2d"
    assert [layer.flops for layer in fast.layers] == [layer.flops for layer in plain.layers]
    assert fast.unattributed_ms <= 0.02 * fast.kernel_ms
    times = {layer.name: (layer.forward_ms, layer.backward_ms) for layer in fast.layers}
    assert min(*times["group2.conv1"], *times["group3.conv2"]) > 0
