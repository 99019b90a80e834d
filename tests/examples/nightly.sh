#!/usr/bin/env bash
# Guard against regressions, for a nightly job: nightly.sh [recipe [target accuracy in percent]]
fastcifar bench "${1:-tiny}" --dataset shapes --set training.epochs=0.2 --set evaluation.views=none \
  --runs 3 --target "${2:-12}" --out "nightly/$(date +%F).jsonl" --quiet > nightly-report.txt
case $? in
  0) echo "as good as ever" ;;
  5) echo "accuracy fell"; cat nightly-report.txt ;;
  *) echo "could not be measured" ;;
esac
