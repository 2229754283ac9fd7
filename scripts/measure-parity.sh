#!/usr/bin/env bash
# How far an exported artifact is from the fake-quantized student it was made of, for every scheme: the quick start's
# recipe for a few steps, then the runtime's logits on the artifact against Burn's on the checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --quiet --release --workspace
train=target/release/bitllama-train
echo "scheme    mean_kld   same_top"
for scheme in binary ternary seq2 int2 int3 int4 nf4 iq4 int5 int6 int8; do
  run="$work/$scheme"
  "$train" distill --config recipes/quickstart.toml --set output="$run" --set data.cache="$work/cache" \
    --set "bits.*=$scheme" --set train.steps=20 --set train.checkpoint_every=20 --log json >/dev/null 2>&1
  "$train" eval --model "$run/artifact" --teacher "$run" --text data/austen/pride-and-prejudice.txt --ctx 256 \
    --chunks 20 --json 2>/dev/null |
    sed -E "s/.*\"mean_kld\":([^,]+),.*\"same_top\":([^,]+),.*/\1 \2/" | xargs printf "%-9s %s %s\n" "$scheme"
done
