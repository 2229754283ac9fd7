#!/usr/bin/env bash
# Holds a finished run against other people's readers: NumPy opens the artifact and must find the weights that the Burn
# model computes with, to the bit; TensorBoard's own reader opens the event files. Small artifacts of every scheme, with
# groups and zero points too, are read in the same way. transformers opens what is written of each family's golden model, and must compute
# what it computed of the original.
#
#   bash scripts/check-other-tools.sh [RUN]        (default: runs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=${1:-runs/quickstart}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet -r tests/python/requirements.txt

train="cargo run --quiet --release -p bitllama-train --"
# The rounded weights as the forward pass has them, taken from the Burn module.
$train export --checkpoint "$run" --output "$work/hf" --layout hf
$train export --checkpoint "$run" --output "$work/v2" --layout v2
for artifact in "$run/artifact" "$work/v2"; do
  "$work/venv/bin/python" tests/python/check_npz.py "$artifact" "$work/hf/model.safetensors"
done
BITLLAMA_CHECK_DIR="$work/small" cargo test --quiet --release -p bitllama-formats --lib \
  writes_for_the_python_checker -- --ignored
for weights in "$work"/small/*.safetensors; do
  "$work/venv/bin/python" tests/python/check_npz.py "${weights%.safetensors}" "$weights"
done
"$work/venv/bin/python" tests/python/check_tensorboard.py "$run/tensorboard" "$run/metrics.jsonl"

"$work/venv/bin/pip" install --quiet -r tests/golden/requirements.txt
BITLLAMA_CHECK_DIR="$work/families" cargo test --quiet --release -p bitllama-train --test families \
  writes_for_the_python_checker -- --ignored
"$work/venv/bin/python" tests/python/check_families.py "$work/families"
