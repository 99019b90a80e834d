"""The same labelled images written in every form that an import takes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcifar.data.dataset import Split


class Labelled:
    """Images, uint8 (N, 32, 32, 3), with the names and the numbers of their classes."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> None:
        self.pixels, self.labels, self.classes = pixels, labels, classes

    @classmethod
    def of(cls, split: Split, classes: tuple[str, ...], seed: int) -> Labelled:
        """The images of a split in a random order."""
        order = np.random.default_rng(seed).permutation(len(split.labels))
        return cls(split.images.permute(0, 2, 3, 1).numpy()[order], split.labels.numpy()[order], classes)

    @classmethod
    def random(cls, count: int, classes: tuple[str, ...], seed: int) -> Labelled:
        """Random images, every class as often as another."""
        random = np.random.default_rng(seed)
        return cls(
            random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % len(classes), classes
        )

    def names(self) -> list[str]:
        return [self.classes[label] for label in self.labels]


Writer = Callable[[Path, Labelled, Labelled], Path]  # writes both splits under a folder; returns what to import


def write_class_folders(folder: Path, part: Labelled) -> None:
    for row, (image, name) in enumerate(zip(part.pixels, part.names(), strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{row}.png", compress_level=1)


def image_folder(root: Path, train: Labelled, test: Labelled) -> Path:
    write_class_folders(root / "train", train)
    write_class_folders(root / "test", test)
    return root


def image_folder_with_val(root: Path, train: Labelled, test: Labelled) -> Path:
    write_class_folders(root / "Train", train)
    write_class_folders(root / "val", test)
    return root


def csv_and_flat_folders(root: Path, train: Labelled, test: Labelled) -> Path:
    for split, part in (("train", train), ("test", test)):
        (root / split).mkdir(parents=True)
        lines = ["id,label"]
        for row, (image, name) in enumerate(zip(part.pixels, part.names(), strict=True), start=1):
            Image.fromarray(image).save(root / split / f"{row}.png", compress_level=1)
            lines.append(f"{row},{name}")
        (root / f"{split}Labels.csv").write_text("\n".join(lines))
    (root / "sampleSubmission.csv").write_text("id,label\n1,cat\n")
    return root


def npz_channels_last(root: Path, train: Labelled, test: Labelled) -> Path:
    """As torchvision's `dataset.data` and `dataset.targets`."""
    root.mkdir()
    path = root / "arrays.npz"
    np.savez(path, x_train=train.pixels, y_train=train.labels, x_test=test.pixels, y_test=test.labels)
    return path


def npz_of_medmnist(root: Path, train: Labelled, test: Labelled) -> Path:
    """With a validation split, which is left out, and labels (N, 1)."""
    root.mkdir()
    parts = {"train": train, "val": Labelled(test.pixels[:1], test.labels[:1], test.classes), "test": test}
    arrays = {f"{split}_images": part.pixels for split, part in parts.items()}
    labels = {f"{split}_labels": part.labels[:, None].astype(np.uint8) for split, part in parts.items()}
    np.savez_compressed(root / "some.npz", **arrays, **labels)
    return root / "some.npz"


def npy_channels_first(root: Path, train: Labelled, test: Labelled) -> Path:
    """A folder of four files, images NCHW, labels as the names of the classes."""
    root.mkdir()
    for split, part in (("train", train), ("test", test)):
        np.save(root / f"{split}_data.npy", part.pixels.transpose(0, 3, 1, 2))
        np.save(root / f"{split}_labels.npy", np.array(part.names()))
    return root


def binary_version(root: Path, train: Labelled, test: Labelled) -> Path:
    """As published: for 100 classes with a coarse label before the fine one, else the training images in five files."""
    hundred = len(train.classes) == 100
    folder = root / ("cifar-100-binary" if hundred else "cifar-10-batches-bin")
    folder.mkdir(parents=True)

    def records(part: Labelled) -> np.ndarray:
        labels = part.labels[:, None].astype(np.uint8)
        planes = part.pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        return np.concatenate([labels // 5, labels, planes] if hundred else [labels, planes], axis=1)

    names = ["train.bin"] if hundred else [f"data_batch_{i}.bin" for i in range(1, 6)]
    for name, rows in zip(names, np.array_split(records(train), len(names)), strict=True):
        (folder / name).write_bytes(rows.tobytes())
    (folder / ("test.bin" if hundred else "test_batch.bin")).write_bytes(records(test).tobytes())
    return root


def parquet_of_hugging_face(root: Path, train: Labelled, test: Labelled) -> Path:
    """Two files of training images and one of test images, with the names of the classes in the schema."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    label = "fine_label" if len(train.classes) == 100 else "label"
    features = {"img": {"_type": "Image"}, label: {"names": list(train.classes), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    (root / "plain_text").mkdir(parents=True)
    for split, part, count in (("train", train, 2), ("test", test, 1)):
        for number, rows in enumerate(np.array_split(np.arange(len(part.labels)), count)):
            images = [{"bytes": png(part.pixels[row]), "path": f"{row}.png"} for row in rows]
            columns = {"img": images, "coarse_label": part.labels[rows] // 5, label: part.labels[rows]}
            table = arrow.table(columns).replace_schema_metadata(metadata)
            parquet.write_table(table, root / "plain_text" / f"{split}-{number:05d}-of-{count:05d}.parquet")
    return root


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


FORMS: dict[str, Writer] = {
    writer.__name__: writer
    for writer in (
        image_folder,
        image_folder_with_val,
        csv_and_flat_folders,
        npz_channels_last,
        npz_of_medmnist,
        npy_channels_first,
        binary_version,
        parquet_of_hugging_face,
    )
}
