"""All kinds of step of all recipes, and evaluations, over fake CUDA tensors: what a CUDA graph cannot hold, images and
filters that lie as cuDNN does not want them, and the types of all operators. Prints JSON; runs in the environment of
`fake_cuda.hooked_environment`.

    eager, compiled: {recipe: {kinds: {kind in words: [findings]}, evaluation: [findings],
        types: {phase: {operator: [types]}}}}
    variants: {engine: what stands for a recipe above, for `tiny` with VARIANT}
    planted: {fault: {findings: [...], types: {...}}}, for steps of `tiny` with that fault
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from fake_cuda import (
    CUDA,
    Facts,
    Operator,
    describe_kind,
    fake_cuda,
    fake_state,
    kinds_of_step,
    record_evaluation,
    record_step,
)
from planted_faults import PLANTS, Plant

from fastcifar.recipes.parse import recipe_names
from fastcifar.training.engine import choose_engine
from fastcifar.training.step import TrainState

Types = dict[str, dict[str, list[str]]]
ENGINES = ("eager", "compiled")  # whose kernels are installed; graphs hold those of the second
VARIANT = ("network.kernels=[[3, 1], [3, 1], [2, 3]]", "network.pool=max_mean")


def lint(operators: Iterable[Operator]) -> list[str]:
    """What a CUDA graph cannot hold, and what makes a convolution copy its images or filters first."""
    found = []
    for op in operators:
        if op.waits:
            found.append(f"waits for the device: {op.name}")
        if op.random:
            found.append(f"draws random numbers: {op.name}")
        if len({each.device for each in (*op.inputs, *op.outputs)}) > 1:
            found.append(f"between host and device: {op.name}")
        if op.name.startswith("convolution") and not all(map(fits_cudnn, op.inputs)):
            found.append(f"not in channels-last memory: {op.name}")
    return sorted(set(found))


def fits_cudnn(tensor: Facts) -> bool:
    """Whether images or filters lie in channels-last memory."""
    return len(tensor.shape) != 4 or tensor.channels_last


def lint_state(state: TrainState) -> list[str]:
    """What a step must not leave behind."""
    found = []
    for name, parameter in state.network.named_parameters():
        if parameter.grad is not None:
            found.append(f"gradient kept: {name}")
        if parameter.dim() == 4 and not parameter.is_contiguous(memory_format=torch.channels_last):
            found.append(f"not in channels-last memory: {name}")
    return found


def add_types(types: dict[str, dict[str, set[str]]], operators: Iterable[Operator]) -> None:
    """Note the types of each operator that computes on the device: of its inputs, and of what it makes or changes."""
    for op in operators:
        if not op.is_view:
            read, made = (", ".join(each.dtype for each in part) for part in (op.inputs, (*op.outputs, *op.written)))
            if op.name.startswith("_foreach") or op.name in ("stack", "cat"):  # of lists of any length
                read, made = (", ".join(sorted(set(part.split(", ")))) for part in (read, made))
            types[op.phase or "evaluation"][op.name].add(f"{read} -> {made}")


def as_lists(types: dict[str, dict[str, set[str]]]) -> Types:
    """The same in order, for JSON."""
    return {
        phase: {name: sorted(kinds) for name, kinds in sorted(operators.items())}
        for phase, operators in sorted(types.items())
    }


def lint_recipe(name: str, engine: str, *overrides: str) -> dict[str, Any]:
    """Findings and types of all kinds of step of a recipe by an engine's kernels, and of its evaluation."""
    types: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    kinds = {}
    with fake_cuda():
        state = fake_state(name, *overrides)
        choose_engine(engine, CUDA).install(state)
        for steps in kinds_of_step(state):
            operators = record_step(state, steps[0])
            add_types(types, operators)
            kinds[describe_kind(state, steps[0])] = lint(operators) + lint_state(state)
        operators = record_evaluation(state, state.recipe.evaluation.batch_size)
        add_types(types, operators)
    return {"kinds": kinds, "evaluation": lint(operators), "types": as_lists(types)}


def lint_planted(plant: Plant) -> dict[str, Any]:
    """Findings and types of the first step of `tiny` with a fault."""
    types: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    with fake_cuda():
        state = fake_state("tiny")
        with plant(state):
            operators = record_step(state, 0)
        add_types(types, operators)
    return {"findings": lint(operators) + lint_state(state), "types": as_lists(types)}


if __name__ == "__main__":
    found = {
        **{engine: {name: lint_recipe(name, engine) for name in recipe_names()} for engine in ENGINES},
        "variants": {engine: lint_recipe("tiny", engine, *VARIANT) for engine in ENGINES},
        "planted": {name: lint_planted(plant) for name, plant in PLANTS.items()},
    }
    print(json.dumps(found))
