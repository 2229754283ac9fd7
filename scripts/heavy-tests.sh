#!/usr/bin/env bash
# The tests that `cargo test` leaves out because they need a real model (98 MB) or much disk (5 GB): SmolLM2's logits
# against `transformers`, an archive beyond 4 GiB, and how soon a 1.1B artifact gives its first token; and the conformance
# of every quantizer on Burn's ndarray backend, which needs a build of Burn of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/fetch-smollm2.sh
cargo test --release --workspace -- --ignored --nocapture smollm2_gives_the_logits archives_beyond_4_gib first_token_within_300_ms
cargo test --release -p bitllama-nn --no-default-features --features ndarray
