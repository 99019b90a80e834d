"""Engines: the same training however its steps are executed; kernels compiled here, kept, and trusted only if whole."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Cli, few_shapes
from torch import Tensor, nn
from torch.nn import functional as F

from fastcifar.data.dataset import Dataset
from fastcifar.data.store import load_dataset
from fastcifar.errors import MachineError, UsageError
from fastcifar.model.kernels import norm_act as pointwise
from fastcifar.model.kernels.build import Fused, intact, library
from fastcifar.model.kernels.convolution import (
    WinogradConv2d,
    convolve,
    convolve_backward,
    convolve_pool,
    install,
    suits,
)
from fastcifar.model.network import BatchNorm, ConvGroup
from fastcifar.profiling.profiler import profile
from fastcifar.profiling.targets import subject_of
from fastcifar.recipes.parse import load_recipe
from fastcifar.recipes.schema import Network as NetworkRecipe
from fastcifar.recipes.schema import Norm
from fastcifar.training.engine import bind_engines, choose_engine, start_engine
from fastcifar.training.run import Run, saved_state
from fastcifar.training.step import TrainState

CPU = torch.device("cpu")
SMALL = ["network.widths=[8, 16, 24]", "training.epochs=2", "training.batch_size=100", "network.whiten.images=200"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return few_shapes(500, 100)


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "height", "width"),
    [(1, 8, 8, 1, 1), (3, 8, 24, 2, 5), (2, 24, 8, 4, 4), (5, 16, 40, 7, 3), (9, 32, 16, 15, 15), (130, 8, 16, 3, 3)],
)
def test_winograd_is_the_convolution(
    images: int, inputs: int, outputs: int, height: int, width: int, threads: int
) -> None:
    generator = torch.Generator().manual_seed(images)
    x, weight, grad = (
        torch.randn(*shape, generator=generator).to(memory_format=torch.channels_last)
        for shape in (
            (images, inputs, height, width),
            (outputs, inputs, 3, 3),
            (images, outputs, height, width),
        )
    )
    exact = [each.double().requires_grad_() for each in (x, weight)]
    expected = F.conv2d(*exact, padding=1)
    expected.backward(grad.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = convolve(x, weight)
        dx, dw = convolve_backward(x, weight, grad, None, [True, True])
        only_x = convolve_backward(x, weight, grad, None, [True, False])
        only_w = convolve_backward(x, weight, grad, None, [False, True])
    finally:
        torch.set_num_threads(before)
    assert exact[0].grad is not None and exact[1].grad is not None
    assert relative(y, expected.detach()) < 1e-5
    assert relative(dx, exact[0].grad) < 1e-5
    assert relative(dw, exact[1].grad) < 5e-5
    assert torch.equal(only_x[0], dx) and not only_x[1].numel()
    assert torch.equal(only_w[1], dw) and not only_w[0].numel()


@pytest.mark.parametrize("side", [(2, 2), (4, 8), (7, 7), (9, 6), (15, 31)])
@pytest.mark.parametrize(("outputs", "threads"), [(8, 1), (16, 3), (40, 2)])
def test_convolution_and_pooling_in_one(side: tuple[int, int], outputs: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare_pooled(side, outputs)
    finally:
        torch.set_num_threads(before)


def compare_pooled(side: tuple[int, int], outputs: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    x = torch.randn(5, 24, *side, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, 24, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    exact = [each.double().requires_grad_() for each in (x, weight)]
    expected = F.max_pool2d(F.conv2d(*exact, padding=1), 2)
    grad = torch.randn(expected.shape, generator=generator)
    expected.backward(grad.double())
    y, chosen = convolve_pool(x, weight)
    dx, dw = convolve_backward(x, weight, grad, chosen, [True, True])
    assert exact[0].grad is not None and exact[1].grad is not None
    assert relative(y, expected.detach()) < 1e-5
    assert relative(dx, exact[0].grad) < 1e-5
    assert relative(dw, exact[1].grad) < 5e-5


def test_pooling_takes_the_first_of_several_and_shows_what_is_no_number() -> None:
    x = torch.zeros(2, 8, 10, 7).to(memory_format=torch.channels_last)
    weight = torch.ones(8, 8, 3, 3)
    y, chosen = convolve_pool(x, weight)
    assert not y.any() and not chosen.any()
    x[0, 0, 1, 1] = math.nan  # a training that diverged must look like one
    assert convolve_pool(x, weight)[0][0, 0, 0, 0].isnan()


@pytest.mark.parametrize(("kind", "definition"), [(0, F.gelu), (1, F.silu)])
def test_activations_are_pytorchs(kind: int, definition: Callable[[Tensor], Tensor]) -> None:
    values = torch.cat([torch.linspace(-40, 40, 8 * 900), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 9, -9])])
    x = values.view(1, 8, -1, 1).to(memory_format=torch.channels_last)
    exact = x.double().requires_grad_()
    definition(exact).backward(torch.full_like(exact, 3))
    assert exact.grad is not None
    expected = definition(exact.detach())
    torch.testing.assert_close(pointwise.activation(x, kind).double(), expected, atol=1e-6, rtol=1e-6)
    found = pointwise.activation_backward(x, torch.full_like(x, 3), kind)
    torch.testing.assert_close(found.double(), exact.grad, atol=2e-6, rtol=1e-6)
    assert pointwise.activation(torch.full((1, 8, 1, 1), math.nan), kind).isnan().all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (5, 24, 7, 7), (3, 40, 9, 4)])
def test_norm_and_activation_in_one(shape: tuple[int, ...], activation: str, threads: int) -> None:
    sections = NetworkRecipe(widths=(shape[1],), convs=(1,), activation=activation)  # type: ignore[arg-type]
    plain = ConvGroup(3, shape[1], 1, sections)
    with torch.no_grad():
        plain.norm1.bias.copy_(torch.linspace(-1, 1, shape[1]))  # type: ignore[operator, union-attr]
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    pointwise.install(fused)
    assert isinstance(fused.norm1, pointwise.NormAct) and isinstance(fused.act1, Fused)
    generator = torch.Generator().manual_seed(0)
    x = (10 + 3 * torch.randn(shape, generator=generator)).to(memory_format=torch.channels_last)
    grad = torch.randn(shape, generator=generator)
    results = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for group, dtype in ((fused, torch.float32), (exact, torch.float64)):
            group.train()
            given = x.to(dtype, copy=True).requires_grad_()
            y = group.act1(group.norm1(given))
            y.backward(grad.to(dtype))
            group.eval()
            with torch.no_grad():
                later = group.act1(group.norm1(given))
            norm = group.norm1
            results.append([y, given.grad, norm.bias.grad, norm.running_mean, norm.running_var, later])
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=2e-4)  # large means cost digits
    given = x.detach().clone().requires_grad_()  # in evaluation mode a gradient can be taken all the same
    fused.act1(fused.norm1(given)).sum().backward()
    assert given.grad is not None and given.grad.isfinite().all()


def test_only_plain_layers_are_replaced() -> None:
    layers = nn.Sequential(nn.GELU(), nn.GELU("tanh"), nn.MaxPool2d(2))
    pointwise.install(layers)
    assert [type(layer) for layer in layers] == [pointwise.FastGelu, nn.GELU, nn.MaxPool2d]
    for x in (torch.randn(2, 3, 8, 8), torch.randn(2, 8, 8, 8), torch.randn(2, 8, 8, 8).double()):
        torch.testing.assert_close(layers[0](x), F.gelu(x), atol=1e-6, rtol=1e-6)
    ghostly = ConvGroup(8, 8, 2, NetworkRecipe(norm=Norm(ghost=2), activation="relu"))
    pointwise.install(ghostly)
    assert type(ghostly.norm1) is BatchNorm and type(ghostly.act2) is nn.ReLU


def test_the_layer_takes_whatever_a_convolution_takes() -> None:
    layer = nn.Conv2d(8, 16, 3, padding="same", bias=False)
    fast = nn.Conv2d(8, 16, 3, padding="same", bias=False)
    fast.load_state_dict(layer.state_dict())
    install(fast)
    assert isinstance(fast, WinogradConv2d)
    x = torch.randn(4, 8, 9, 9)
    for given in (x, x.to(memory_format=torch.channels_last), x[::2], x.transpose(2, 3), x[:, :, 1:, ::2]):
        torch.testing.assert_close(fast(given), layer(given), atol=1e-5, rtol=1e-4)
    assert torch.equal(fast.double()(x.double()), layer.double()(x.double()))


def test_what_the_kernels_cannot_do_is_pytorchs() -> None:
    """Nothing, single lines, other channels: what PyTorch answers, or its error."""
    group = ConvGroup(8, 8, 1, NetworkRecipe(widths=(8,), convs=(1,)))
    fast = copy.deepcopy(group)
    install(fast)
    pointwise.install(fast)
    assert fast.conv1.pooled  # type: ignore[union-attr]
    for each in (group.eval(), fast.eval()):
        assert each(torch.zeros(0, 8, 6, 6)).shape == (0, 8, 3, 3)
        for wrong in (torch.zeros(2, 8, 1, 4), torch.zeros(2, 16, 4, 4)):
            with pytest.raises(RuntimeError):
                each(wrong)
    fast.requires_grad_(False)
    fast.norm1.bias.requires_grad_(True)  # type: ignore[union-attr]
    fast(torch.randn(2, 8, 4, 4)).sum().backward()
    assert fast.norm1.bias.grad is not None  # type: ignore[union-attr]


def test_code_of_ones_own_is_left_as_it_is() -> None:
    class Mine(ConvGroup):
        """Might do anything with its layers."""

    recipe_of = NetworkRecipe(widths=(8,), convs=(1,))
    mine, average, tanh = Mine(8, 8, 1, recipe_of), ConvGroup(8, 8, 1, recipe_of), ConvGroup(8, 8, 1, recipe_of)
    average.pool = nn.AvgPool2d(2)  # type: ignore[assignment]
    tanh.act1 = nn.GELU("tanh")
    for group in (mine, average, tanh):
        install(group)
        pointwise.install(group)
    assert type(mine.pool) is nn.MaxPool2d and type(mine.norm1) is BatchNorm
    assert type(average.pool) is nn.AvgPool2d and not average.conv1.pooled  # type: ignore[union-attr]
    assert type(tanh.act1) is nn.GELU and type(tanh.norm1) is BatchNorm


def test_only_what_the_kernels_can_do_is_replaced() -> None:
    def made(**changes: object) -> nn.Conv2d:
        return nn.Conv2d(
            **{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, "bias": False} | changes
        )  # type: ignore[arg-type]

    assert suits(made()) and suits(made(padding="same"))
    others: list[dict[str, object]] = [
        {"in_channels": 12},
        {"out_channels": 4},
        {"kernel_size": 5},
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"bias": True},
        {"padding": 0},
        {"padding_mode": "reflect"},
    ]
    assert not any(suits(made(**change)) for change in others)


@pytest.mark.parametrize("name", ["tiny", "hlb"])
def test_engines_take_the_same_steps(name: str, dataset: Dataset) -> None:
    found = load_recipe(name, *SMALL, *(["network.project=8"] if name == "hlb" else []))
    trained = []
    for which in ("eager", "compiled"):
        training = TrainState(found, dataset, CPU, 0)
        training.whiten()
        make_step = start_engine(which, training)
        for _ in range(2):  # later the maps themselves are chaotic, and tell any rounding from any other
            make_step()
        trained.append(training)
    for (key, a), b in zip(
        trained[0].network.state_dict().items(), trained[1].network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3, msg=key)
    torch.testing.assert_close(trained[0].metrics, trained[1].metrics, rtol=1e-3, atol=1e-2)


def test_the_compiled_engine_is_seen_by_profile() -> None:
    found = load_recipe("air94", "training.batch_size=8")
    images = load_dataset("shapes")
    plain, fast = (profile(subject_of(found, images, CPU, engine=which), 2) for which in ("eager", "compiled"))
    assert (plain.engine, fast.engine) == ("eager", "compiled")
    kinds = {layer.name: layer.kind for layer in fast.layers}
    assert kinds["group2.conv1"] == "WinogradConv2d"
    assert [layer.flops for layer in fast.layers] == [layer.flops for layer in plain.layers]
    assert fast.unattributed_ms <= 0.02 * fast.kernel_ms
    busy = {layer.name: (layer.forward_ms, layer.backward_ms) for layer in fast.layers}
    assert min(*busy["group2.conv1"], *busy["group3.conv2"]) > 0


def test_names_are_bound_to_recipes() -> None:
    assert bind_engines([], ["a", "b"], "auto") == {"a": "auto", "b": "auto"}
    assert bind_engines(["b:graph", "eager"], ["a", "b"], "auto") == {"a": "eager", "b": "graph"}
    with pytest.raises(UsageError, match="for 'c', which is not here"):
        bind_engines(["c:eager"], ["a", "b"], "auto")


def test_what_cannot_run_here_is_said() -> None:
    with pytest.raises(UsageError, match="no engine 'grap'.*graph"):
        choose_engine("grap", CPU)
    with pytest.raises(MachineError, match=r"graph engine cannot run here: .*CUDA device.*--engine eager"):
        choose_engine("graph", CPU)
    assert choose_engine("auto", CPU) == ("compiled", "")


def test_without_a_compiler(cli: Cli, home: Path, tmp_path: Path) -> None:
    (home / "native").unlink()
    quick = [*SMALL, "training.epochs=0.02"]
    small = ["train", "tiny", "--dataset", "shapes", *(f"--set={each}" for each in quick), "--json"]
    named = cli(*small, "--engine", "compiled", PATH=str(tmp_path))
    assert named.code == 4 and "no C++ compiler" in named.document["error"]
    fallen = cli(*small, PATH=str(tmp_path))
    assert fallen.code == 0 and fallen.document["engine"] == "eager"
    assert fallen.err.count("no C++ compiler") == 1
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'error: not today' >&2; exit 1\n")
    broken.chmod(0o700)
    assert "not today" in cli(*small, "--engine", "compiled", CXX=str(broken)).document["error"]


def test_the_cache_is_used_mended_and_not_trusted_blindly(
    home: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (home / "native").unlink()
    library.cache_clear()

    def built() -> Path:
        library.cache_clear()
        library("convolution")
        (only,) = (home / "native").iterdir()
        return only

    first = built()
    assert first.parent.stat().st_mode & 0o777 == 0o700
    stamp = first.stat().st_mtime_ns
    assert built().stat().st_mtime_ns == stamp, "compiled again"
    content = first.read_bytes()
    first.unlink()  # this process has it mapped: a new file takes its place
    first.write_bytes(content[:5000])
    assert not intact(first)
    assert intact(built()), "damage was not mended"
    assert not recwarn.list
    (home / "native").chmod(0o777)
    library.cache_clear()
    with pytest.warns(UserWarning, match="others can write"):
        library("convolution")
    (home / "native" / first.name).unlink()
    (home / "native").rmdir()
    (home / "native").write_text("no folder")
    library.cache_clear()
    with pytest.warns(UserWarning, match="not kept"):
        library("convolution")


def test_interrupted_in_compiling(home: Path, tmp_path: Path) -> None:
    (home / "native").unlink()
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/began\nexec sleep 60\n")
    slow.chmod(0o700)
    command = [sys.executable, "-m", "fastcifar", "train", "tiny", "--dataset", "shapes"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "CXX": str(slow)}, stderr=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "began").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.decode().strip() == "Interrupted."
    assert not list((home / "native").iterdir()) and not (tmp_path / "runs").exists()


def test_a_run_goes_on_with_the_engine_it_began_with(dataset: Dataset, tmp_path: Path) -> None:
    run = Run(load_recipe("tiny", *SMALL), dataset, CPU, 0, tmp_path, "eager")
    run.keep_state({})
    assert saved_state(tmp_path)["engine"] == "eager"


def test_one_profile_has_no_second_side(cli: Cli) -> None:
    done = cli("profile", "tiny", "--dataset", "shapes", "--engine", "b:compiled")
    assert done.code == 2 and "--engine 'b:compiled' is for 'b', which is not here" in done.err


def test_bench_takes_an_engine_for_each(cli: Cli, tmp_path: Path) -> None:
    small = [*SMALL, "training.epochs=0.02"]
    sides = ["a=tiny", "b=tiny", "--engine", "a:eager", "--engine", "b:compiled", *(f"--set={each}" for each in small)]
    done = cli("bench", *sides, "--dataset", "shapes", "--runs", "2", "--out", "b.jsonl", "--json")
    assert done.code == 0, done.err
    header = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert header["engine"] == {"a": "eager", "b": "compiled"}
    refused = cli("bench", "tiny", "b=tiny", "--dataset", "shapes", "--runs", "1")
    assert refused.code == 2 and "same recipe" in refused.err


def test_memory_of_a_training_is_bounded(tmp_path: Path) -> None:
    """What `air94` keeps for its backward pass fits a GPU of 4 GB, and a step on a CPU takes little beyond it."""
    found = load_recipe("air94", "training.batch_size=200", "network.whiten.images=200")
    training = TrainState(found, load_dataset("shapes"), CPU, 0)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = training.network(training.batch(training.batch_plan())[0])
    assert logits.shape == (200, 10)
    in_half = sum(kept.values()) * (2000 / 200) / 2
    assert 0.5 * 2**30 < in_half < 3 * 2**30

    code = (
        "import resource, torch; from fastcifar.training import engine; from fastcifar.data import store as data; "
        "from fastcifar.recipes import parse as recipe; from fastcifar.system import device as machine; "
        "from fastcifar.training.step import Training; machine.prepare(torch.device('cpu'), None); "
        "found = recipe.load('air94', ['training.batch_size=200', 'network.whiten.images=200']); "
        "training = Training(found, data.load('shapes'), torch.device('cpu'), 0); "
        "step = engine.start('compiled', training); "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; [step() for _ in range(4)]; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 3 * sum(kept.values())


@pytest.mark.gpu
@pytest.mark.parametrize("which", ["compiled", "graph"])
def test_engines_agree_on_a_gpu(which: str, dataset: Dataset) -> None:
    place = torch.device("cuda")
    found = load_recipe("air94", "training.batch_size=100", "training.epochs=4", "network.whiten.images=500")
    states, losses = [], []
    for each in ("eager", which):
        training = TrainState(found, dataset, place, 0)
        training.whiten()
        make_step = start_engine(each, training)
        for count in range(12):
            make_step()
            if count == 3:  # the graph has been captured and replayed by now; later rounding takes over
                states.append({key: value.clone() for key, value in training.network.state_dict().items()})
        losses.append(float(training.metrics[0]))
    for (key, a), b in zip(states[0].items(), states[1].values(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-2, rtol=5e-2, msg=key)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
