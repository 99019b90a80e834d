"""The figures of a profile, from a recording written by hand, and the comparison of two."""

from __future__ import annotations

from dataclasses import replace

import pytest
from profiling_helpers import assert_adds_up, fixed_document, fixed_recording, layer_of, small_target

from fastcifar.profiling.recording import record
from fastcifar.profiling.result import compare, summarize


def test_the_figures_of_a_layer() -> None:
    result = summarize(fixed_recording())
    conv = layer_of(result, "conv")
    assert (conv.forward_ms, conv.backward_ms) == pytest.approx((1.05 * 0.040, 1.05 * 0.042))
    assert conv.optimizer_ms == pytest.approx(1.05 * 0.008) and not conv.optimizer_shared  # it alone is updated
    assert conv.total_ms == pytest.approx(1.05 * 0.090)
    assert conv.total_std_ms == pytest.approx(0.1 * 0.090 / 2**0.5)
    assert conv.share == pytest.approx(conv.total_ms / result.step_ms)
    assert conv.kernels == 4  # two forward, the gradient, its accumulation
    assert conv.output == [64, 8, 32, 32] and conv.parameters == 8 * 27 + 8
    assert conv.tflops == pytest.approx(56_623_104 / (1.05 * 0.082) / 1e9)
    assert conv.gb_per_s == pytest.approx(6_291_456 / (1.05 * 0.082) / 1e6)
    assert conv.bound == "launches"  # 0.008 ms, 0.0006 of arithmetic and 0.0063 of memory
    assert conv.roofline_share == pytest.approx(0.006291456 / (1.05 * 0.082))
    assert conv.activation_bytes == 786_432
    assert layer_of(result, "network.self").forward_ms == pytest.approx(1.05 * 0.005)


def test_no_launches_bound_a_layer_of_a_replayed_graph() -> None:
    recording = fixed_recording()
    graph = replace(recording, target=replace(recording.target, run_uncaptured=recording.target.run))
    assert layer_of(summarize(graph), "conv").bound == "memory"


def test_the_figures_of_the_step() -> None:
    result = summarize(fixed_recording())
    assert result.step_times_ms == pytest.approx([0.2, 0.22]) and result.step_ms == pytest.approx(0.21)
    assert result.step_std_ms == pytest.approx(0.02 / 2**0.5)
    assert result.recorded_step_ms == pytest.approx(0.26)
    assert result.kernel_ms == pytest.approx(1.05 * 0.156) and result.unattributed_ms == pytest.approx(1.05 * 0.006)
    assert result.activation_bytes == 786_432 + 2_097_152 + 2_560
    assert (result.held_memory, result.peak_memory) == (1_000_000, 6_242_880)
    assert result.idle_ms == pytest.approx(result.step_ms - result.kernel_ms)


def test_the_document_holds_what_a_picture_needs() -> None:
    document = fixed_document()
    keys = {"phase", "layer", "kernel", "op", "ms", "std", "count"}
    assert all(set(item) == keys for item in document["items"])
    conv = next(layer for layer in document["layers"] if layer["name"] == "conv")
    assert (conv["forward_flops"], conv["backward_flops"]) == (28_311_552, 28_311_552)
    assert (conv["forward_bytes"], conv["backward_bytes"]) == (3_932_160, 2_359_296)
    assert set(document["layer_times_ms"]) == {layer["name"] for layer in document["layers"]}


def test_two_recipes_are_compared() -> None:
    a, b = (summarize(recording) for recording in record([small_target("hlb"), small_target("hlb-nose")], 3))
    assert_adds_up(a.document())
    comparison = compare(a, b)
    assert a.steps == b.steps == 3
    by_name = {layer.name: layer for layer in comparison.layers}
    gone = by_name["group1.squeeze_excite.self"]
    assert gone.b_ms is None and gone.ratio is None and gone.a_ms is not None
    assert gone.difference_ms == pytest.approx(-gone.a_ms)
    assert gone.b_activation_bytes is None and gone.a_activation_bytes is not None
    assert gone.difference_activation_bytes == -gone.a_activation_bytes < 0
    assert comparison.ci95 is not None and comparison.ci95[0] <= comparison.step_ratio <= comparison.ci95[1]


def test_a_comparison_has_differences_and_ratios() -> None:
    comparison = compare(summarize(fixed_recording()), summarize(fixed_recording(2.0)))
    by_name = {layer.name: layer for layer in comparison.layers}
    assert by_name["conv"].difference_ms == pytest.approx(1.05 * 0.082)
    assert by_name["conv"].ratio == pytest.approx(172 / 90)
    assert by_name["act"].difference_ms == pytest.approx(0) and by_name["act"].ratio == pytest.approx(1)
    assert comparison.step_ratio == pytest.approx(((0.282 / 0.2) * (0.3184 / 0.22)) ** 0.5)
