#!/usr/bin/env bash
# A bench shared by two processes, and its report as Markdown.
torchrun --standalone --nproc-per-node 2 -m fastcifar bench tiny narrow=tiny --set narrow:network.widths='[8, 8, 8]' \
  --dataset shapes --set training.epochs=0.1 --set evaluation.views=none --runs 4 --out two.jsonl --quiet
fastcifar report two.rank*.jsonl --markdown
