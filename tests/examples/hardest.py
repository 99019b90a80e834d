"""Does a network learn more from the images that an earlier network was least sure of than from random ones?"""

import torch

import fastcifar

dataset = fastcifar.load_dataset("shapes")  # or "cifar10"
recipe = fastcifar.load_recipe("tiny", "training.epochs=1")  # or "air94"
images, labels = dataset.train.images, dataset.train.labels

scout = fastcifar.train(recipe, dataset, seed=0)
confidence = scout.logits(images).softmax(1).gather(1, labels[:, None])[:, 0]
hardest = confidence.argsort()[: int(0.6 * len(labels))]
chance = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[: len(hardest)]

for name, keep in [("hardest 60 %", hardest), ("random 60 %", chance)]:
    trained = fastcifar.train(recipe, fastcifar.subset(dataset, keep), seed=1)
    print(f"{name}: {100 * trained.accuracy:.2f} %")
