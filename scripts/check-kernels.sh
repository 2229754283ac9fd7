#!/usr/bin/env bash
# Memory safety of the kernels, beyond what `cargo test` can see. Without arguments all of these, else those named:
#
#   miri     the tests of products under Miri, with its AVX2 and AVX-512: portable code and both instruction sets are
#            interpreted, on fewer and smaller cases. More than half an hour.
#   pool     the tests of the thread pool under Miri.
#   address  all tests of the crate with AddressSanitizer, on the instruction sets of this processor. Minutes.
#   thread   the tests of the thread pool with ThreadSanitizer, which builds the standard library anew. Minutes.
#   arm      all tests of the crate on AArch64, under qemu where this machine is none. Minutes.
#
# A check says what it needs and this machine has not, and counts as failed then. Builds go to target/check-*, so that they
# and those of `cargo build` do not replace each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target="${CARGO_TARGET_DIR:-target}"
host="$(rustc -vV | sed -n 's/^host: //p')"
case "$host" in
x86_64-*) features="-Ctarget-feature=+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni,+avx512vpopcntdq" ;;
*) features="" ;;
esac

missing() {
    echo "check-kernels: $1" >&2
    return 1
}

nightly() {
    cargo +nightly --version >/dev/null 2>&1 || missing "needs nightly Rust: rustup toolchain install nightly"
}

miri() {
    nightly && { cargo +nightly miri --version >/dev/null 2>&1 || missing "needs Miri: rustup +nightly component add miri rust-src"; } || return
    # Proptest looks for files of earlier failures, the pool for processors.
    CARGO_TARGET_DIR="$target/check-miri" RUSTFLAGS="$features" MIRIFLAGS="-Zmiri-disable-isolation" \
        cargo +nightly miri test -p bitllama-kernels "$@"
}

check_miri() { miri --test products; }

check_pool() { miri --lib pool && miri --test pool; }

check_address() {
    nightly || return
    # The pool forgets the payloads of all panics but the first, as to drop one might panic again.
    ASAN_OPTIONS=detect_leaks=0 CARGO_TARGET_DIR="$target/check-address" RUSTFLAGS="-Zsanitizer=address" \
        cargo +nightly test -p bitllama-kernels --lib --tests --target "$host"
}

check_thread() {
    nightly || return
    [[ -e "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]] ||
        missing "needs the source of the standard library: rustup +nightly component add rust-src" || return
    CARGO_TARGET_DIR="$target/check-thread" RUSTFLAGS="-Zsanitizer=thread" \
        cargo +nightly test -Zbuild-std -p bitllama-kernels --lib --test pool --target "$host"
}

check_arm() {
    local arm=aarch64-unknown-linux-gnu
    if [[ "$host" == aarch64-* ]]; then
        cargo test -p bitllama-kernels --lib --tests
        return
    fi
    [[ -e "$(rustc --print sysroot)/lib/rustlib/$arm" ]] || missing "needs the target: rustup target add $arm" || return
    command -v aarch64-linux-gnu-gcc >/dev/null || missing "needs a linker: apt install gcc-aarch64-linux-gnu" || return
    command -v qemu-aarch64 >/dev/null || missing "needs an emulator: apt install qemu-user" || return
    CARGO_TARGET_DIR="$target/check-arm" \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max" \
        cargo test -p bitllama-kernels --lib --tests --target "$arm"
}

checks=("$@")
[[ $# -gt 0 ]] || checks=(miri pool address thread arm)
for check in "${checks[@]}"; do
    declare -F "check_$check" >/dev/null || { echo "check-kernels: no check \`$check\`: miri, pool, address, thread, arm" >&2; exit 2; }
done
failed=()
for check in "${checks[@]}"; do
    echo "== $check"
    "check_$check" || failed+=("$check")
done
[[ ${#failed[@]} -eq 0 ]] || { echo "check-kernels: failed: ${failed[*]}" >&2; exit 1; }
