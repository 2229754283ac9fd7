#!/usr/bin/env bash
# Type-checks the CUDA path on a machine without a GPU: every line of ours and of Burn's behind `--features cuda`.
#
# A real build would download a prebuilt LLVM in the build script of `tracel-llvm`, a dependency of `cubecl-cuda`, and
# would want the CUDA libraries to run. With DOCS_RS=1, as on docs.rs, those build scripts download and link nothing,
# which is all that a check needs. It says that the GPU path compiles, not that it computes.
#
# Minutes from cold (it is a second dependency tree), so the GitHub workflow runs it as a job of its own and .ci/run
# does not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DOCS_RS=1 cargo check --release -p bitllama-train --features cuda "$@"
