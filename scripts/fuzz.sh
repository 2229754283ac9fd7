#!/usr/bin/env bash
# Damaged files against every reader: recipes and overrides, grids, config.json, safetensors and their index, tokenizers, GGUF, NPZ
# and NumPy arrays, manifests, checkpoints' state and scales, a teacher's cache, tasks, results.
#
#   scripts/fuzz.sh MINUTES [TARGET,..]
#
# Prints inputs and findings of each target; what leads to a panic, to more memory than 64 MB and twice the input, or takes seconds
# is saved in target/fuzz. Exit code 1 if there is any. Seeds: tests/fuzz/corpus. Works on the stable toolchain, in one process;
# with nightly and cargo-fuzz, fuzz/fuzz_targets/reader.rs is guided by coverage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes=${1:?usage: scripts/fuzz.sh MINUTES [TARGET,..]}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

if BITLLAMA_FUZZ_MINUTES=$minutes BITLLAMA_FUZZ_TARGETS=${2:-} \
  cargo test --quiet --release -p bitllama-train --test fuzz -- --ignored --nocapture for_minutes | tee "$log"; then
  exit 0
fi
# A stack overflow or an allocation that the system refuses ends the process: the target that was last named did that.
last=$(grep -E '^[a-z0-9-]+ in ' "$log" | tail -1)
if [[ -n $last ]] && ! grep -qE "^${last%% in *} .* inputs," "$log"; then
  echo "fuzz: the process died in ${last%% in *}; the input that did it lies in ${last#* in }" >&2
fi
exit 1
