"""User code that fails is the user's to mend: exit code 2, with file, line and what it has to give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import Call, few_shapes
from torch import nn

import fastcifar
from fastcifar.errors import UsageError
from fastcifar.model.network import create_network
from fastcifar.recipes import plugins
from fastcifar.recipes.schema import Network
from fastcifar.training.flops import count_flops
from fastcifar.training.step import TrainState

HEAD = """\
import torch
from torch import nn
from torch.optim import SGD, LBFGS
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

"""
BODY = """\
class Net(nn.Module):
    def __init__(self, recipe, classes):
        super().__init__()
        self.head = nn.Linear(3072, classes)

    def forward(self, x):
        return {output}
"""
SEQUENTIAL = "class Net(nn.Sequential):\n    def __init__(self, recipe, classes):\n        super().__init__({layers})\n"
GOOD = BODY.format(output="self.head(x.flatten(1))")
OPTIMIZER = (
    "def optimizer(network, section, steps):\n    sgd = SGD(network.parameters(), lr=0.01)\n    return {given}\n"
)
IMAGES = "its images are (N, 3, 32, 32) in channels-last memory, its outputs (N, classes)"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working folder that no other test imports."""
    monkeypatch.chdir(tmp_path)
    return f"mine_{tmp_path.name}".replace("-", "_").replace(".", "_")


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


# Source, the part in whose line the error is, and words of the message.
NETWORKS = {
    "syntax": ("class Net(:\n    pass\n", "class Net(:", "invalid syntax"),
    "exception at import": ("x = 1 / 0\n" + GOOD, "1 / 0", "ZeroDivisionError: division by zero"),
    "exit at import": ("import sys\nsys.exit(1)\n" + GOOD, "sys.exit", "SystemExit: 1"),
    "missing module": ("import einopsss\n" + GOOD, "einopsss", "there is no module 'einopsss' here"),
    "exception in __init__": (BODY.replace("3072, classes", "3072, clases").format(output="x"), "clases", "NameError"),
    "wrong arguments": (GOOD.replace("(self, recipe, classes)", "(self, recipe)"), "class Net", "TypeError"),
    "wrong shape": (BODY.format(output="self.head(x)"), "return self.head", "cannot be multiplied"),
    "wrong shape in layers alone": (
        SEQUENTIAL.format(layers="nn.Flatten(), nn.Linear(3000, classes)"),
        "class Net",
        "cannot be multiplied",
    ),
    "view": (BODY.format(output="self.head(x.view(len(x), -1))"), "x.view", "Use .reshape(...) instead"),
    "too few outputs": (
        GOOD.replace("3072, classes", "3072, 5"),
        "class Net",
        "gives outputs (2, 5) for 2 images of 10",
    ),
    "outputs for one image": (
        BODY.format(output="self.head(x.flatten(1)).mean(0)"),
        "class Net",
        "gives outputs (10,) for 2 images",
    ),
    "no tensor": (BODY.format(output="(x, x)"), "class Net", "gives no tensor but tuple"),
    "nan": (BODY.format(output="self.head(x.flatten(1)) * float('nan')"), "class Net", "not finite"),
    "no parameters": (
        SEQUENTIAL.format(layers="nn.Flatten(), nn.AvgPool1d(307), nn.ConstantPad1d((0, 0), 0)"),
        "class Net",
        "without a parameter",
    ),
    "not a module": ("def Net(recipe, classes):\n    return None\n", "def Net", "gave no nn.Module but NoneType"),
    "a tuple in training alone": (
        BODY.format(output="(x, x) if self.training else self.head(x.flatten(1))"),
        "class Net",
        "gives no tensor but tuple",
    ),
    "detached": (BODY.format(output="self.head(x.flatten(1)).detach()"), "class Net", "do not depend on"),
    "in place": (
        GOOD.replace(
            "return ",
            "y = self.head(x.flatten(1)).exp()\n        z = y.log()\n        y.add_(1)\n        return z + 0 * ",
        ),
        "class Net",
        "modified by an inplace operation",
    ),
}
OPTIMIZERS = {
    "none": ("None", "gave no torch.optim.Optimizer but NoneType"),
    "list": ("[sgd]", "gave no torch.optim.Optimizer but list"),
    "three": ("sgd, None, None", "gave a tuple of 3"),
    "no scheduler": ("sgd, 3", "gave no scheduler but int"),
    "closure": ("LBFGS(network.parameters())", "gave a LBFGS, whose step() needs arguments"),
    "metric": ("sgd, ReduceLROnPlateau(sgd)", "gave a ReduceLROnPlateau, whose step() needs arguments"),
    "exception": ("sgd.nothing", "AttributeError: 'SGD' object has no attribute 'nothing'"),
    "schedule that fails": ("sgd, LambdaLR(sgd, lambda step: 1 if step < 1 else 1 / 0)", "ZeroDivisionError"),
}


def check_refused(call: Call, module: str, source: str, part: str, words: str, optimizer: bool = False) -> None:
    source = HEAD + source
    Path(f"{module}.py").write_text(source)
    code = [f"network.factory='{module}:Net'", *([f"optimizer.factory='{module}:optimizer'"] if optimizer else [])]
    settings = [f"--set={setting}" for setting in (*code, "training.epochs=0.5", "evaluation.views=none")]
    done = call("train", "tiny", "--dataset", "shapes", "--threads", "1", *settings)
    message = next(line for line in done.err.splitlines() if line.startswith("Error: "))
    assert done.code == 2 and "bug of fastcifar" not in done.err and "Traceback" not in done.err
    assert f"{module}.py, line {line_of(source, part)}" in message and words in message
    assert not Path("runs").exists() or not list(Path("runs").iterdir()), "nothing is left of such a run"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(call: Call, module: str, name: str) -> None:
    check_refused(call, module, *NETWORKS[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(call: Call, module: str, name: str) -> None:
    given, words = OPTIMIZERS[name]
    part = f"return {given}" if name in ("exception", "schedule that fails") else "def optimizer"
    check_refused(call, module, GOOD + OPTIMIZER.format(given=given), part, words, optimizer=True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{}", "module:name"),
        ("nowhere_at_all:Net", "no module 'nowhere_at_all'"),
        ("{}:Nett", "has no 'Nett'"),
        ("{}:number", "no class or function"),
    ],
)
def test_paths_that_name_no_code(call: Call, module: str, path: str, words: str) -> None:
    Path(f"{module}.py").write_text("number = 3\n")
    done = call("train", "tiny", "--dataset", "shapes", "--set", f"network.factory='{path.format(module)}'")
    assert done.code == 2 and words in done.err and "Traceback" not in done.err


def test_every_command_says_so(call: Call, module: str) -> None:
    source = HEAD + BODY.format(output="self.head(x.view(len(x), -1))")
    Path(f"{module}.py").write_text(source)
    Path("candidates.toml").write_text(f'[other]\nnetwork.factory = "{module}:Net"\n')
    factory = ("--set", f"network.factory='{module}:Net'")
    rest = ("--dataset", "shapes", "--threads", "1")
    for command in (
        ("recipes", "tiny", *factory),
        ("profile", "tiny", *factory, *rest),
        ("bench", "tiny", *factory, *rest),
        ("search", "tiny", "candidates.toml", *rest),
    ):
        done = call(*command)
        assert done.code == 2 and f"{module}.py, line {line_of(source, 'x.view')} (forward)" in done.err, command
        assert IMAGES in done.err


def test_from_python_the_cause_is_kept(module: str) -> None:
    Path(f"{module}.py").write_text(HEAD + BODY.format(output="self.head(x)"))
    recipe = fastcifar.load_recipe("tiny", f"network.factory='{module}:Net'")
    with pytest.raises(UsageError, match=f"{module}.py, line 12") as caught:
        fastcifar.train(recipe, few_shapes(100, 20), threads=1)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_a_callback_raises_is_not_changed() -> None:
    def fail(status: object) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="^mine$"):
        fastcifar.train("tiny", few_shapes(100, 20), threads=1, on_change=fail)


class CallsUs(nn.Module):
    """A user's network that calls code of fastcifar, which fails in training."""

    def __init__(self, recipe: Network, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3072, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            plugins.short_path(None)  # type: ignore[arg-type]
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def test_a_fault_of_ours_stays_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    recipe = fastcifar.load_recipe("tiny", "network.factory='test_user_code:CallsUs'")
    with pytest.raises(TypeError):
        fastcifar.train(recipe, few_shapes(100, 20), threads=1, engine="eager")


def test_memory_that_does_not_suffice_is_explained_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: CallsUs, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    monkeypatch.setattr(sys.modules[__name__].CallsUs, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        create_network(Network(factory="test_user_code:CallsUs"), 10)


def test_trying_a_network_changes_no_random_number(module: str) -> None:
    noisy = BODY.format(output="self.head(x.flatten(1) + torch.rand(()))")
    Path(f"{module}.py").write_text(HEAD + noisy)
    recipe = Network(factory=f"{module}:Net")
    torch.manual_seed(0)
    network = create_network(recipe, 10)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(network.get_parameter("head.weight"), nn.Linear(3072, 10).weight)
    assert torch.equal(torch.rand(3), after) and network.training


def test_lazy_layers_and_keyword_arguments_can_be_trained(module: str) -> None:
    source = BODY.format(output="self.head(input=x.flatten(1))").replace(
        "nn.Linear(3072, classes)", "nn.LazyLinear(classes)"
    )
    Path(f"{module}.py").write_text(HEAD + source)
    recipe = fastcifar.load_recipe("tiny", f"network.factory='{module}:Net'", "training.epochs=1")
    assert len(fastcifar.train(recipe, few_shapes(100, 20), threads=1).result.epochs) == 1
    assert count_flops(recipe).parameters == 30730


def test_an_installed_package_is_not_the_working_folder(tmp_path: Path) -> None:
    """A console script does not search the working folder by itself; the code there is found all the same."""
    (tmp_path / "mine.py").write_text(HEAD + GOOD)
    program = "from fastcifar.recipes.plugins import import_object; print(import_object('mine:Net').__name__)"
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "Net\n", done.stderr


def test_steps_of_our_own_networks_are_not_wrapped() -> None:
    state = TrainState(fastcifar.load_recipe("tiny"), few_shapes(100, 20), torch.device("cpu"), 0)
    with pytest.raises(RuntimeError, match="size"):
        state.forward(torch.zeros(2, 4, 32, 32))
