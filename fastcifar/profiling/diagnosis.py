"""Whether this machine is fit to train: the checks of `fastcifar doctor` in their order, and what follows from them.

No check ends the others: an exception is a finding, and so is a warning.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from fastcifar.data.dataset import Note, no_note
from fastcifar.data.store import dataset_names
from fastcifar.errors import FastcifarError, FastcifarWarning, MachineError
from fastcifar.profiling import findings as find
from fastcifar.profiling.findings import DEFAULT_DATASET, Finding
from fastcifar.recipes.parse import default_recipe
from fastcifar.system.device import device_name, pick_device, prepare_device
from fastcifar.training.engine import ENGINES

# What a training with the default recipe cannot do without, beside the engine that it takes.
REQUIRED = (
    ("machine", "device"),
    ("machine", "home"),
    ("machine", "run folder"),
    ("engines", "auto"),
    ("datasets", DEFAULT_DATASET),
)

SLOW = ("kernels", "engines", "roofline", "datasets")  # the groups that take seconds
Findings = dict[str, dict[str, Finding]]  # by group and name, in the order of the screen
Check = tuple[str, str, Callable[[], Finding]]  # group, name, and what makes the finding


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and whether a training with the default recipe would run."""

    device: str | None  # its name; None where the device asked for is not here
    findings: Findings
    verdict: Finding
    seconds: float  # that all checks took

    @property
    def fit(self) -> bool:
        """Whether `fastcifar train` would run here."""
        return self.verdict.status != "impossible"

    def document(self) -> dict[str, Any]:
        """The document of `doctor --json`, without what every document holds."""
        groups = {
            group: {name: finding.document() for name, finding in found.items()}
            for group, found in self.findings.items()
        }
        return {"fit": self.fit, "seconds": self.seconds, **groups, "verdict": self.verdict.document()}


def diagnose(name: str | None = None, note: Note = no_note) -> Diagnosis:
    """Look at everything that a training on the device of that name (None: the default one) depends on.

    `note` is told which of the groups that take seconds comes now. Raises UsageError for a name that is no device's.
    """
    begin = time.perf_counter()
    device, chosen = choose_device(name)
    findings: Findings = {"machine": {"device": chosen}}
    for group, label, check in all_checks(device):
        if group in SLOW and group not in findings:
            note(f"checking {group} …")
        findings.setdefault(group, {})[label] = look(check)
    return Diagnosis(chosen.values.get("name"), findings, judge(findings, name), time.perf_counter() - begin)


def choose_device(name: str | None) -> tuple[torch.device | None, Finding]:
    """The device of that name, prepared, and its line; None where it is not here. Raises UsageError."""
    try:
        device = pick_device(name)
    except MachineError as error:
        return None, Finding(str(error), "impossible")
    prepare_device(device, None)
    words = device_name(device)
    return device, Finding(f"{device}: {words}", values={"name": words, "type": device.type})


def all_checks(device: torch.device | None) -> Iterator[Check]:
    """The checks in the order of the screen; each is chosen when those before it have been carried out.

    The folder of datasets comes before all that needs it, since its warnings are given once.
    """
    yield "machine", "system", find.system
    yield "machine", "memory", find.memory
    yield "machine", "home", find.home_folder
    yield "machine", "run folder", find.run_folder
    yield "processor", "model", find.processor
    yield "processor", "threads", find.threads
    yield "processor", "others", find.others_at_work
    yield from gpu_checks(device)
    yield "software", "versions", find.versions
    yield "software", "torchvision", find.torchvision_loads
    yield "kernels", "compiler", find.compiler
    if device is not None:
        if device.type == "cpu":
            yield "kernels", "built", find.built_kernels
        for name in ENGINES:
            check = find.automatic_engine if name == "auto" else partial(find.engine, name)
            yield "engines", name, partial(check, device)
        yield "roofline", "ceilings", partial(find.ceilings, device)
    for name in stored_names():
        yield "datasets", name, partial(find.dataset, name)


def gpu_checks(device: torch.device | None) -> Iterator[Check]:
    """A line for each GPU, and what the driver says of the one that is used."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if torch.backends.mps.is_available():
        yield "gpu", "mps", lambda: Finding("Apple GPU")
    elif not count:
        yield "gpu", "cuda", find.no_gpu
    for index in range(count):
        yield "gpu", f"cuda:{index}", partial(find.gpu, index)
    if device is not None and device.type == "cuda":
        yield "gpu", "driver", partial(find.gpu_driver, device)
        yield "gpu", "others", partial(find.others_on_gpu, device)


def stored_names() -> list[str]:
    """The datasets to look at: the default one, then those in the folder of datasets and the embedded one."""
    try:
        names = dataset_names()
    except FastcifarError:  # of the folder, which has a line of its own
        names = []
    return list(dict.fromkeys([DEFAULT_DATASET, *names]))


def look(check: Callable[[], Finding]) -> Finding:
    """What a check finds; an exception is a finding, and what it warns of is a part of one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # of libraries
        warnings.simplefilter("always", FastcifarWarning)
        try:
            finding = check()
        except FastcifarError as error:
            finding = Finding(str(error), "impossible")
        except Exception as error:
            finding = Finding(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", "impossible")
    if not caught:
        return finding
    advice = " ".join(dict.fromkeys([finding.advice, *(str(warning.message) for warning in caught)])).strip()
    return replace(finding, advice=advice, status="warning" if finding.status == "ok" else finding.status)


def judge(findings: Findings, name: str | None) -> Finding:
    """Whether `fastcifar train` would run, and what it would take; else the first reason why not."""
    command = f"fastcifar train{f' --device {name}' if name else ''}"
    engines = findings.get("engines", {})
    chosen = engines["auto"].values.get("engine", "") if "auto" in engines else ""
    needed = [findings[group][label] for group, label in REQUIRED if label in findings.get(group, {})]
    needed += [found for label, found in engines.items() if label == chosen]
    missing = next((finding for finding in needed if finding.status == "impossible"), None)
    if missing is not None:
        text = f"not fit: `{command}` would not run here: {missing.text.rstrip('.')}."
        return Finding(text, "impossible", missing.advice)
    device, threads = findings["machine"]["device"].values, torch.get_num_threads()
    recipe = default_recipe(device["type"])
    where = f"{threads} thread{'' if threads == 1 else 's'}" if device["type"] == "cpu" else device["name"]
    text = f"fit: `{command}` would run {recipe} (the default here) with the {chosen} engine on {where}."
    values = {"recipe": recipe, "engine": chosen, "threads": threads}
    warned = sum(finding.status == "warning" for found in findings.values() for finding in found.values())
    if warned:
        return Finding(text, "warning", f"{warned} warning{'' if warned == 1 else 's'} above.", values)
    return Finding(text, values=values)
