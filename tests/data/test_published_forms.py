"""The real CIFAR-10 and CIFAR-100 in every form: the same digest, and the same first epoch. Needs the real images."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from forms import FORMS, Labelled
from PIL import Image

import fastcifar
from fastcifar.data.dataset import CLASSES, HASHES, Dataset, digest_of, sort_by_content
from fastcifar.data.source import as_split
from fastcifar.data.store import import_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real images are not here ({SHARED})"),
]
VARIANTS = ("image_folder_with_val", "npz_of_medmnist")  # of forms that are here, tested with small ones
# SHA-256 over the images in the order of (published file name without ending, label), as published beside them.
BY_NAME = {
    "cifar10": (
        "3f22cf621aef4f8ecb67009b5044c768c56b3a18fff11f905bcb787483970b57",
        "89e0d8490166e2bd8b0cb83c22c94d530e6cbf02b2f4f26b1be6da8f3b24f76f",
    ),
    "cifar100": (
        "681624a3c63014dd03d098d535073cf1a4eecbffdd59f5d97a59ce49a2af16d2",
        "5a87f1311002c3d265d878519c4b12288ff16f3127a2221330d384de7011b5a0",
    ),
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each dataset is unpacked by `read_by_name`."""
    return tmp_path_factory.mktemp("unpacked")


@cache
def read_by_name(name: str, unpacked: Path) -> tuple[Labelled, Labelled]:
    """Both splits in the order of the published names, read with Pillow alone."""
    strips = SHARED.parent / name
    if not strips.is_dir():
        pytest.skip(f"the real images are not here ({strips})")
    subprocess.run([sys.executable, SHARED / "unpack.py", unpacked / name, "--strips", strips], check=True)
    splits = []
    for split in ("train", "test"):
        files = [
            (path.stem, label, path)
            for label, class_name in enumerate(CLASSES[name])
            for path in (unpacked / name / split / class_name).iterdir()
        ]
        files.sort()
        pixels = np.stack([np.asarray(Image.open(path)) for _, _, path in files])
        splits.append(Labelled(pixels, np.array([label for _, label, _ in files]), CLASSES[name]))
    return splits[0], splits[1]


@pytest.mark.parametrize("name", BY_NAME)
def test_the_hashes_of_content_are_those_of_what_the_published_names_prove(name: str, unpacked: Path) -> None:
    for part, by_name, by_content in zip(read_by_name(name, unpacked), BY_NAME[name], HASHES[name], strict=True):
        rows = as_split(part.pixels.transpose(0, 3, 1, 2), torch.from_numpy(part.labels))
        assert digest_of(rows) == by_name
        assert digest_of(sort_by_content(rows)) == by_content
        planes = [np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes() for image in part.pixels]
        ordered = sorted(
            (sha256(image).digest(), label, image) for image, label in zip(planes, part.labels, strict=True)
        )
        assert sha256(b"".join(bytes([label]) + image for _, label, image in ordered)).hexdigest() == by_content


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("form", [form for form in FORMS if form not in VARIANTS])
def test_every_form_is_recognized(form: str, name: str, unpacked: Path, tmp_path: Path) -> None:
    shuffled = []
    for part in read_by_name(name, unpacked):
        order = np.random.default_rng(len(form)).permutation(len(part.labels))
        shuffled.append(Labelled(part.pixels[order], part.labels[order], part.classes))
    found = import_dataset(FORMS[form](tmp_path / "form", *shuffled))
    assert (found.name, found.classes, found.published) == (name, CLASSES[name], True)
    assert (digest_of(found.train), digest_of(found.test)) == HASHES[name]


def test_the_first_epoch_is_the_same_from_files_and_from_arrays(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = read_by_name("cifar10", unpacked)
    arrays = FORMS["npz_channels_last"](tmp_path / "arrays", train, test)

    def first_epoch(source: Path, home: str) -> tuple[Dataset, float]:
        monkeypatch.setenv("FASTCIFAR_HOME", str(tmp_path / home))
        dataset = import_dataset(source)
        recipe = fastcifar.load_recipe("tiny", "training.epochs=1", "network.widths=[8, 8, 8]", "evaluation.views=none")
        return dataset, fastcifar.train(recipe, dataset, threads=1).result.epochs[-1].train_loss

    files, arrays_too = first_epoch(unpacked / "cifar10", "a"), first_epoch(arrays, "b")
    assert files[0].digest == arrays_too[0].digest and torch.equal(files[0].train.images, arrays_too[0].train.images)
    assert files[1] == arrays_too[1]
