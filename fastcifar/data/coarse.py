"""The 20 superclasses of CIFAR-100, five classes each: its coarse labels.

The table is the one published with the dataset: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009. Datasets are stored with their fine labels alone; the coarse ones follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcifar.errors import UsageError

# In the order of the published coarse labels, 0 to 19.
SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
COARSE_NAMES = tuple(SUPERCLASSES)
SUPERCLASS = {name: number for number, names in enumerate(SUPERCLASSES.values()) for name in names.split()}


def coarse_labels(classes: Sequence[str]) -> Tensor:
    """The superclass of each class by its name, int64 (100,), as numbers of COARSE_NAMES; `classes` in any order.

    Raises UsageError where they are not the 100 classes of CIFAR-100.
    """
    if sorted(classes) != sorted(SUPERCLASS):
        raise UsageError("Only the 100 classes of CIFAR-100 have superclasses, and these are other classes.")
    return torch.tensor([SUPERCLASS[name] for name in classes])
