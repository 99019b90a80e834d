"""What `fastcifar doctor` finds: each check in words, with what the words are made of.

What is checked lies where the things are; `diagnosis` has the order of the checks and what follows from them.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from fastcifar.data.cifar import published_facts
from fastcifar.data.dataset import EMBEDDED, Dataset, Split
from fastcifar.data.mirrors import MIRRORS
from fastcifar.data.store import MissingDataset, load_dataset, verify_dataset
from fastcifar.errors import MachineError
from fastcifar.model.kernels.build import compiler_version, find_compiler, flags, private_folder
from fastcifar.model.kernels.install import SOURCES, compile_kernels
from fastcifar.model.network import precision
from fastcifar.profiling.roofline import measure_roofline
from fastcifar.recipes.parse import default_recipe, load_recipe
from fastcifar.system import files, nvidia
from fastcifar.system.device import busy_warning, processor_name, threads_limit
from fastcifar.system.memory import usable_memory
from fastcifar.system.processors import busiest_others, others_busy
from fastcifar.training.engine import choose_engine
from fastcifar.training.self_check import check_engine
from fastcifar.version import __version__

Status = Literal["ok", "warning", "impossible"]

DEFAULT_DATASET = "cifar10"  # of `fastcifar train`
ROOM = 600 * 2**20  # bytes on disk that CIFAR-10 takes while it is downloaded and unpacked
MEMORY = 2 * 2**30  # bytes: the default recipe on a CPU takes 1.3e9 at its peak
CHECKED_IMAGES = 1024  # to choose from, of the steps by which engines are compared
CHECKED_BATCH = {"cpu": 32}  # elsewhere 256
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Finding:
    """What one check found: a line of the screen."""

    text: str
    status: Status = "ok"
    advice: str = ""  # what to do, in a sentence or more, where something is wrong and the text does not say it
    values: dict[str, Any] = field(default_factory=dict)  # what the text is made of: times in seconds, sizes in bytes

    def document(self) -> dict[str, Any]:
        """The finding in the document of `doctor --json`."""
        return {"status": self.status, "text": self.text, "advice": self.advice, **self.values}


# ---------------------------------------------------------------------------------------------- machine, processor


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.1f} GiB"


def system() -> Finding:
    """The operating system."""
    return Finding(f"{platform.system()} {platform.release()}, {platform.machine()}")


def memory() -> Finding:
    """The memory of the machine or container, and whether the default recipe fits into what is free."""
    found = usable_memory()
    if found is None:
        return Finding("this system does not say")
    limit = f", limited by {found.limit}" if found.limit else ""
    values = {"total": found.total, "free": found.free, "limit": found.limit}
    text = f"{gib(found.free)} of {gib(found.total)} free{limit}"
    if found.free < MEMORY:
        return Finding(text, "warning", "End other programs, or train with a smaller training.batch_size.", values)
    return Finding(text, values=values)


def home_folder() -> Finding:
    """The folder of datasets and compiled kernels."""
    folder = files.home()
    free = shutil.disk_usage(folder).free
    values = {"path": str(folder), "free": free}
    if not files.writable(folder):
        return Finding(f"{folder} cannot be written: nothing is kept", "warning", f"{capital(files.SET_HOME)}.", values)
    text = f"{folder}, {gib(free)} free"
    if free < ROOM:
        return Finding(text, "warning", f"CIFAR-10 takes {gib(ROOM)} at first: make room, or {files.SET_HOME}.", values)
    return Finding(text, values=values)


def capital(sentence: str) -> str:
    """The sentence with a capital letter at its beginning."""
    return sentence[:1].upper() + sentence[1:]


def run_folder() -> Finding:
    """Where `train` keeps its run, unless --out says otherwise."""
    folder = Path.cwd() / "runs"
    place = folder if folder.is_dir() else folder.parent
    if not files.writable(place):
        return Finding(
            f"{place} cannot be written", "impossible", "Change to a folder of yours, or give `train` an --out."
        )
    return Finding(str(folder), values={"path": str(folder)})


def processor() -> Finding:
    """The processor, and the widest vectors of it that PyTorch uses."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return Finding(f"{processor_name()}, {vectors}", values={"name": processor_name(), "vectors": vectors})


def threads() -> Finding:
    """The threads that a training on the CPU takes, and what limits them."""
    count, machine, limit = torch.get_num_threads(), os.cpu_count() or 1, threads_limit()
    text = f"{count} on {machine} processor{'' if machine == 1 else 's'}{f', limited by {limit}' if limit else ''}"
    return Finding(text, values={"threads": count, "processors": machine, "limit": limit})


def others_at_work() -> Finding:
    """What other processes keep busy of the processors."""
    busy, warning = others_busy(), busy_warning(CPU)
    values = {"busy": busy, "processors": os.cpu_count() or 1}
    if warning:
        names = ", ".join(f"{name} {load:.1f}" for name, load in list(busiest_others().items())[:3])
        return Finding(warning, "warning", f"Wait for them to end before you compare times ({names}).", values)
    if busy is None:
        return Finding("this system does not say", values=values)
    return Finding(f"others keep {busy:.1f} of {values['processors']} processors busy", values=values)


# ------------------------------------------------------------------------------------------------------------- GPU


def no_gpu() -> Finding:
    """Why PyTorch has no GPU: there is none, or it cannot use those that the driver has."""
    names = nvidia.gpu_names()
    if not names:
        return Finding("PyTorch finds no CUDA device", "impossible")
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        why, advice = "CUDA_VISIBLE_DEVICES hides it", "Unset CUDA_VISIBLE_DEVICES to train on it."
    else:
        why = f"this torch is built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU alone'}"
        advice = "Install a torch for a CUDA version that the driver has (`nvidia-smi` says which)."
    return Finding(f"the driver has {', '.join(names)}, which PyTorch cannot use: {why}", "warning", advice)


def gpu(index: int) -> Finding:
    """One CUDA device."""
    facts = torch.cuda.get_device_properties(index)
    capability = f"{facts.major}.{facts.minor}"
    values = {"name": facts.name, "memory": facts.total_memory, "compute_capability": capability}
    return Finding(f"{facts.name}, {gib(facts.total_memory)}, compute capability {capability}", values=values)


def gpu_uuid(device: torch.device) -> str:
    """The UUID of a CUDA device as `nvidia-smi` takes it."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def gpu_driver(device: torch.device) -> Finding:
    """The driver of the GPU, its clock and its power limit."""
    state = nvidia.gpu_state(gpu_uuid(device))
    if state is None:
        return Finding("there is no nvidia-smi: clock and power limit are unknown", "impossible")
    parts = [f"version {state.driver}"]
    if state.clock is not None and state.max_clock is not None:
        parts.append(f"clock {state.clock:,.0f} of {state.max_clock:,.0f} MHz")
    if state.power_limit is not None:
        parts.append(f"power limit {state.power_limit:.0f} W")
    limit, usual = state.power_limit, state.default_power_limit
    if limit is not None and usual is not None and limit < usual:
        advice = f"By default it may take {usual:.0f} W: times are longer than those of other such GPUs."
        return Finding(", ".join(parts), "warning", advice, vars(state))
    return Finding(", ".join(parts), values=vars(state))


def others_on_gpu(device: torch.device) -> Finding:
    """Who else computes on the GPU."""
    warning = busy_warning(device)
    others = [each for each in nvidia.gpu_processes(gpu_uuid(device)) if each.number != os.getpid()]
    names = ", ".join(f"{each.name} ({each.number})" for each in others[:3])
    values = {"processes": [vars(each) for each in others]}
    if warning or others:
        text = warning or f"{len(others)} other process{'' if len(others) == 1 else 'es'}"
        return Finding(text, "warning", f"Wait for them to end before you compare times ({names or 'hidden'}).", values)
    return Finding("nobody else computes on it", values=values)


# --------------------------------------------------------------------------------------------- software and kernels


def versions() -> Finding:
    """The versions of what a training is made of; None for what is not here."""
    found: dict[str, str | None] = {"fastcifar": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "triton"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["cuda"] = torch.version.cuda
    return Finding(", ".join(f"{name} {version}" for name, version in found.items() if version), values=found)


def torchvision_loads() -> Finding:
    """Whether torchvision, of which downloads take their facts, can be imported: its version must fit torch's."""
    published_facts(DEFAULT_DATASET)
    return Finding("can be imported")


def compiler() -> Finding:
    """The C++ compiler of our kernels for the CPU."""
    try:
        path = find_compiler()
    except MachineError as error:
        advice = "Install g++ or clang++, or name one in the environment variable CXX."
        return Finding(str(error), "impossible", advice)
    version = compiler_version(path)
    return Finding(f"{version or path}", values={"path": path, "version": version, "flags": list(flags())})


def built_kernels() -> Finding:
    """Compile our kernels for the CPU, or find them compiled and whole."""
    begin = time.perf_counter()
    compile_kernels()
    seconds = time.perf_counter() - begin
    try:
        folder: str | None = str(private_folder())
    except OSError:  # of which compiling has warned
        folder = None
    kept = f", kept in {folder}" if folder else ""
    values = {"names": list(SOURCES), "folder": folder, "seconds": seconds}
    return Finding(f"{', '.join(SOURCES)}: ready after {seconds:.1f} s{kept}", values=values)


# --------------------------------------------------------------------------------------------- engines and roofline


def engine(name: str, device: torch.device) -> Finding:
    """Steps of the default recipe by an engine against the same steps of eager PyTorch, on embedded images."""
    chosen = choose_engine(name, device)
    begin = time.perf_counter()
    recipe = load_recipe(default_recipe(device.type), f"training.batch_size={CHECKED_BATCH.get(device.type, 256)}")
    found = check_engine(recipe, checked_images(), device, chosen)
    values = {**vars(found), "agrees": found.agrees, "recipe": recipe.name, "seconds": time.perf_counter() - begin}
    compared = (
        f"steps of {recipe.name} are {100 * found.difference:.2g} % off those of eager, "
        f"{100 * found.allowed:.2g} % is rounding"
    )
    if not found.agrees:
        return Finding(compared, "impossible", "Train with --engine eager, and please report this.", values)
    return Finding(compared, values=values)


@cache
def checked_images() -> Dataset:
    """Embedded images enough for a few steps."""
    whole = load_dataset(EMBEDDED)
    return replace(whole, train=Split(whole.train.images[:CHECKED_IMAGES], whole.train.labels[:CHECKED_IMAGES]))


def automatic_engine(device: torch.device) -> Finding:
    """The engine that a training takes where none is named, and why."""
    chosen = choose_engine("auto", device)
    values = {"engine": chosen.name, "note": chosen.note}
    if chosen.note:
        return Finding(f"takes {chosen.name}", "warning", chosen.note, values)
    return Finding(f"takes {chosen.name}, its first choice on {device.type}", values=values)


def ceilings(device: torch.device) -> Finding:
    """The ceilings of the roofline in the precision of the default recipe."""
    dtype = precision(load_recipe(default_recipe(device.type)), device)
    found, kind = measure_roofline(device, dtype), str(dtype).removeprefix("torch.")
    text = (
        f"{kind} matrix product {found.tflops:.3g} TFLOP/s, copy {found.gb_per_s:.3g} GB/s, "
        f"empty kernel {1000 * found.launch_ms:.2g} µs"
    )
    return Finding(text, values={"precision": kind, **vars(found)})


# -------------------------------------------------------------------------------------------------------- datasets


def dataset(name: str) -> Finding:
    """Whether a dataset is here and its content what it was when it was stored, hashed again."""
    try:
        found = verify_dataset(name)
    except MissingDataset:
        if not files.writable(files.home()):
            return Finding(f"{name} is not here, and cannot be stored", "impossible", f"{capital(files.SET_HOME)}.")
        size = MIRRORS[name]["size"]
        text = f"not here yet: a training on it begins with a download of {size / 1e6:.0f} MB"
        return Finding(text, "warning", f"`fastcifar download --dataset {name}` gets it now (or --from PATH, offline).")
    images = {"train_images": len(found.train.images), "test_images": len(found.test.images)}
    text = "{train_images:,} train and {test_images:,} test images, whole".format(**images)
    kind = ", the published ones" if found.published else ", embedded" if name == EMBEDDED else ""
    values = {**images, "classes": len(found.classes), "digest": found.digest, "published": found.published}
    return Finding(f"{text}{kind}", values=values)
