#!/usr/bin/env bash
# Kills commands at random times and starts them again, until they are done: distill, cache-teacher, generate-data, quantize,
# export and grid, on the teacher of the quick start. Results must be those of an undisturbed run to the bit, and nothing
# unfinished may stay: no temporary file, no lock.
#
#   scripts/kill-tests.sh [KILLS [COMMAND ...]]     50 kills of each command by default, some minutes on two cores
#
# Needs `cargo build --release` first. Says "distill: 50 of 50" and so on; what is wrong, it says and ends with 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kills="${1:-50}"
shift || true
commands=("${@:-}")
[ -n "${commands[0]}" ] || commands=(distill cache-teacher generate-data quantize export grid)
program="${CARGO_TARGET_DIR:-target}/release/bitllama-train"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fail() {
    echo "kill-tests: $1" >&2
    cp -r "$work" "$work.failed"
    echo "kill-tests: what there was lies in $work.failed" >&2
    exit 1
}

recipe=(--config recipes/quickstart.toml --set "data.cache=$work/tokens" --set data.sequence_length=32 --set train.batch_size=2
    --set train.warmup_steps=2 --set train.log_every=1 --set train.histograms=false --set eval.chunks=4)
training=(--set train.steps=48 --set train.checkpoint_every=6
    --set 'bits.layers.*={ scheme = "int2", method = "lsq" }')

# The command that writes its output into folder $2.
start() {
    case "$1" in
    distill) exec "$program" distill --resume --log json "${recipe[@]}" "${training[@]}" --set "output=$2/run" ;;
    cache-teacher)
        exec "$program" cache-teacher "${recipe[@]}" --set data.sequence_length=128 --set train.batch_size=8 \
            --set train.steps=96 --set "output=$2/none" --set "teacher.cache=$2/cache"
        ;;
    generate-data)
        exec "$program" generate-data --model models/nano --output "$2/corpus.jsonl" --tokens 6000 --length 64 --batch 8
        ;;
    quantize) exec "$program" quantize --model models/nano --bits 4 --group-size row --output "$2/artifact" ;;
    export) exec "$program" export --checkpoint "$work/export-run" --output "$2/artifact" ;;
    grid)
        mkdir -p "$2"
        sed "s#OUTPUT#$2/grid#; s#TOKENS#$work/tokens#" "$work/grid.toml" >"$2/grid.toml"
        exec "$program" grid --config "$2/grid.toml"
        ;;
    esac
}

cat >"$work/grid.toml" <<'GRID'
recipe = "recipes/quickstart.toml"
output = "OUTPUT"

[set]
"data.cache" = "TOKENS"
"data.sequence_length" = 32
"train.steps" = 12
"train.batch_size" = 2
"train.warmup_steps" = 2
"train.checkpoint_every" = 4
"train.histograms" = false
"eval.chunks" = 2

[schemes.int4]
set = { "bits.layers.*" = { scheme = "int4", method = "lsq" } }

[methods.rtn]
set = { "train.steps" = 0 }
[methods.ce]
set = { "distill.alpha" = 1.0 }
[methods.kl]
[methods.half]
set = { "distill.alpha" = 0.5 }

[eval]
texts = { sense = "data/austen/sense-and-sensibility.txt" }
ctx = 64
chunks = 2

[bench]
prompt = 16
generate = 4
repetitions = 1
GRID

# What decides whether two outputs in folders $2 and $3 are the same.
same() {
    local a="$2" b="$3" file
    case "$1" in
    distill)
        for file in artifact/weights.npz artifact/tokenizer.json baseline.json checkpoints/step-000048/model.safetensors \
            checkpoints/step-000048/scales.safetensors; do
            cmp "$a/run/$file" "$b/run/$file" || return 1
        done
        diff <(ls "$a/run/checkpoints") <(ls "$b/run/checkpoints") &&
            diff <(sed -E 's/,"tokens_per_second":[^,}]*//' "$a/run/metrics.jsonl") \
                <(sed -E 's/,"tokens_per_second":[^,}]*//' "$b/run/metrics.jsonl")
        ;;
    grid)
        for file in rtn ce kl half; do
            cmp "$a/grid/int4/$file/seed-0/texts.json" "$b/grid/int4/$file/seed-0/texts.json" &&
                cmp "$a/grid/int4/$file/seed-0/artifact/weights.npz" "$b/grid/int4/$file/seed-0/artifact/weights.npz" || return 1
        done
        ;;
    # Times are in the records only.
    *) diff -r -x .bitllama-record "$a" "$b" ;;
    esac
}

finished() {
    same "$1" "$work/$1-whole" "$work/$1" || fail "$1: another result than an undisturbed run's"
    local left
    left="$(find "$work/$1" "$work/tokens" -name '*~' 2>/dev/null || true)"
    [ -z "$left" ] || fail "$1: left behind: $left"
}

for command in "${commands[@]}"; do
    if [ "$command" = export ]; then
        "$program" distill --log json "${recipe[@]}" "${training[@]}" --set "output=$work/export-run" >"$work/log" 2>&1 ||
            fail "distill, for export: $(tail -1 "$work/log")"
    fi
    # Twice: the first fills the cache of tokens.
    for _ in 1 2; do
        rm -rf "$work/$command-whole"
        mkdir -p "$work/$command-whole"
        began=$(date +%s%N)
        (start "$command" "$work/$command-whole") >"$work/log" 2>&1 || fail "$command: $(tail -1 "$work/log")"
        milliseconds=$((($(date +%s%N) - began) / 1000000))
    done
    mkdir -p "$work/$command"
    killed=0
    while [ "$killed" -lt "$kills" ]; do
        (start "$command" "$work/$command") >"$work/log" 2>&1 &
        pid=$!
        after=$(((RANDOM * 32768 + RANDOM) % milliseconds))
        sleep "$((after / 1000)).$(printf '%03d' $((after % 1000)))"
        kill -9 "$pid" 2>/dev/null || true
        status=0
        wait "$pid" 2>/dev/null || status=$?
        case "$status" in
        137) killed=$((killed + 1)) ;;
        0)
            # It was faster. Every other time an artifact stays, for the next one to replace.
            finished "$command"
            case "$command" in quantize | export) keep=$((RANDOM % 2)) ;; *) keep=0 ;; esac
            [ "$keep" = 1 ] || rm -rf "${work:?}/$command"
            mkdir -p "$work/$command"
            ;;
        *) fail "$command: $(tail -1 "$work/log")" ;;
        esac
    done
    (start "$command" "$work/$command") >"$work/log" 2>&1 || fail "$command: $(tail -1 "$work/log")"
    finished "$command"
    echo "$command: $killed of $kills"
done
