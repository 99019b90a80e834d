#!/usr/bin/env bash
# Sweep over a learning rate; one line a run (rate, accuracy, train time), the best one last. Needs jq.
# Short runs on the embedded images: for real ones leave out --dataset and the --set lines of length and views.
for lr in 0.03 0.1 0.3; do
  fastcifar train tiny --dataset shapes --set training.epochs=0.2 --set evaluation.views=none \
    --set optimizer.filters.lr=$lr --out sweep/$lr --json 2> /dev/null | jq -r "[$lr, .accuracy, .train_s] | @tsv"
done | sort -n -k 2
