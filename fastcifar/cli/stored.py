"""What a stored document of `train` or `profile` has to hold to be shown: its keys, and of what kind their values are.

Documents are checked where they are read, so that whatever fails later is a bug and not a document edited by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.errors import DataError


@dataclass(frozen=True)
class Numbers:
    """Finite numbers in a range, both ends included."""

    low: float
    high: float = 1e18

    def __str__(self) -> str:
        return f"a number of {self.low:g} to {self.high:g}"


# A kind of values is a type; numbers; a mapping with the kinds of its keys (one that ends in ? may be missing); a list
# with the kind of its items ([kind, ...]: at least one, [kind, kind]: two); a tuple of alternatives, in which None and
# texts stand for themselves. `float` is any number, NaN and infinity included; `dict` a mapping of names to numbers.
Kind = Any
ANY, COUNT, POSITIVE = Numbers(-1e18), Numbers(0), Numbers(1e-12)
MAYBE = (ANY, None)
INTERVAL = ([ANY, ANY], None)
WORDS = {str: "a text", bool: "true or false", float: "a number", dict: "a table of numbers"}

LAYER = {
    "name": str,
    "kind": str,
    "output": ([COUNT], None),
    "parameters": COUNT,
    **dict.fromkeys(("forward_ms", "backward_ms", "optimizer_ms", "total_ms", "total_std_ms", "share"), COUNT),
    "optimizer_shared": bool,
    **dict.fromkeys(("kernels", "flops", "bytes", "tflops", "gb_per_s", "roofline_share"), COUNT),
    "bound": ("arithmetic", "memory", "launches"),
    **dict.fromkeys(("forward_flops?", "forward_bytes?", "backward_flops?", "backward_bytes?"), COUNT),
    "activation_bytes?": COUNT,
}
GROUP = {"name": str, "ms": COUNT, "kernels": COUNT, "layers": dict}
ITEM = {
    "phase": (str, None),
    "layer": (str, None),
    "kernel": str,
    "op": str,
    **dict.fromkeys(("ms", "std", "count"), COUNT),
}
PROFILE = {
    **dict.fromkeys(("recipe", "engine"), str),
    **dict.fromkeys(("batch", "steps", "kinds"), COUNT),
    **dict.fromkeys(("step_ms", "step_std_ms", "kernel_ms", "idle_ms", "unattributed_ms", "recorded_step_ms"), COUNT),
    "roofline": dict.fromkeys(("tflops", "gb_per_s", "launch_ms"), POSITIVE),
    "phases": dict.fromkeys(("data", "forward", "loss", "backward", "optimizer"), COUNT),
    "layers": [LAYER, ...],
    "kernels": [GROUP],
    "ops": [GROUP],
    "items?": [ITEM],
    **dict.fromkeys(("activation_bytes?", "held_memory?"), COUNT),
    "peak_memory?": (COUNT, None),
}
DIFFERENCE = {
    "name": str,
    **dict.fromkeys(("a_ms", "b_ms", "ratio"), MAYBE),
    "difference_ms": ANY,
    "ci95": INTERVAL,
    "difference_activation_bytes?": ANY,
}
COMPARISON = {"step_ratio": POSITIVE, "ci95": INTERVAL, "layers": [DIFFERENCE]}
MEASURED = dict.fromkeys(("version", "torch", "dataset", "device"), str)
EPOCH = {
    "epoch": COUNT,
    "device_s": COUNT,
    "train_loss": float,
    "train_accuracy": COUNT,
    "test_accuracy": (COUNT, None),
}
TRAIN = {
    **dict.fromkeys(("version", "torch", "device", "recipe", "dataset", "engine", "accuracy_on", "checkpoint"), str),
    **dict.fromkeys(("seed", "accuracy", "accuracy_no_tta", "train_s", "epochs_s", "eval_s", "setup_s"), COUNT),
    **dict.fromkeys(("wall_s", "flops", "tflops_per_s", "peak_memory"), COUNT),
    "epochs": [EPOCH, ...],
    "at?": Numbers(0, 1e11),
    "other_load?": (COUNT, None),
    **dict.fromkeys(("threads_limited_by?", "dataset_digest?"), (str, None)),
}


def check_document(document: Mapping[str, Any], path: Path) -> None:
    """Raise DataError, with what is wrong, where a document of `train` or `profile` cannot be shown."""
    kind: Kind = TRAIN
    if document["command"] == "profile":
        compared = {"a": PROFILE, "b": PROFILE, "comparison": COMPARISON}
        kind = {**MEASURED, **(compared if "comparison" in document else PROFILE)}
    if found := problem(document, kind):
        raise DataError(f"{path} is no whole document of `{document['command']}`: {found}.")


def problem(value: Any, kind: Kind, where: str = "") -> str | None:
    """What is wrong with a value that should be of that kind, in words; None where nothing is."""
    if isinstance(kind, dict) and isinstance(value, Mapping):
        return next(filter(None, (key_problem(value, key, each, where) for key, each in kind.items())), None)
    if isinstance(kind, list) and isinstance(value, list) and has_length(value, kind):
        items = (problem(item, kind[0], f"{where}[{i}]") for i, item in enumerate(value))
        return next(filter(None, items), None)
    if isinstance(kind, tuple):
        problems = [problem(value, each, where) for each in kind]
        if None in problems:
            return None
        if isinstance(value, dict | list) and isinstance(kind[0], type(value)):
            return problems[0]
    elif fits(value, kind):
        return None
    return f"'{where}' is {value!r:.60}, but must be {wanted(kind)}"


def key_problem(tree: Mapping[str, Any], key: str, kind: Kind, where: str) -> str | None:
    """What is wrong with one key of a mapping."""
    name = key.removesuffix("?")
    full = f"{where}.{name}" if where else name
    if name not in tree:
        return None if key.endswith("?") else f"it lacks '{full}'"
    return problem(tree[name], kind, full)


def has_length(value: list[Any], kind: list[Kind]) -> bool:
    """Whether a list has as many items as its kind asks for."""
    return len(kind) == 1 or (len(value) > 0 if kind[1] is ... else len(value) == len(kind))


def fits(value: Any, kind: Kind) -> bool:
    """Whether a value is of one of the kinds that hold no others."""
    if isinstance(kind, Numbers):
        return type(value) in (int, float) and kind.low <= value <= kind.high
    if kind is float:
        return type(value) in (int, float)
    if kind is dict:
        return isinstance(value, dict) and all(fits(each, ANY) for each in value.values())
    return isinstance(value, kind) if isinstance(kind, type) else value == kind and not isinstance(kind, dict | list)


def wanted(kind: Kind) -> str:
    """A kind in words."""
    if isinstance(kind, tuple):
        return " or ".join(map(wanted, kind))
    if isinstance(kind, list):
        return "a list" if len(kind) == 1 else "a list that is not empty" if kind[1] is ... else f"{len(kind)} numbers"
    if isinstance(kind, dict):
        return "a table"
    return WORDS[kind] if isinstance(kind, type) else "null" if kind is None else str(kind)
