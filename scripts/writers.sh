#!/usr/bin/env bash
# Two writers of one folder at the same time: quantize, export and distill, on the teacher of the quick start. Of the two one
# succeeds, or both in turn; whoever is refused is told who is writing; what is there afterwards is whole, and what one of those
# that succeeded writes when it is alone, to the bit.
#
#   scripts/writers.sh [ROUNDS [COMMAND ...]]     100 rounds of each command by default, some minutes on two cores
#
# Needs `cargo build --release` first. Says "quantize: 100 of 100 (N in turn, M refused)"; what is wrong, it says and ends with 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rounds="${1:-100}"
shift || true
commands=("${@:-}")
[ -n "${commands[0]}" ] || commands=(quantize export distill)
programs="${CARGO_TARGET_DIR:-target}/release"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fail() {
    echo "writers: $1" >&2
    exit 1
}

# A short run of seed $1 into $2.
distill() {
    "$programs/bitllama-train" distill --config recipes/quickstart.toml --log json --set "data.cache=$work/tokens" \
        --set data.sequence_length=32 --set train.batch_size=2 --set train.warmup_steps=2 --set train.checkpoint_every=4 \
        --set train.steps=8 --set train.histograms=false --set eval.chunks=2 --set "seed=$1" --set "output=$2"
}

# Writer $2 (1 or 2) of a command, which differ in what they write, into folder $3.
start() {
    case "$1" in
    quantize)
        "$programs/bitllama-train" quantize --model models/nano --bits "$(($2 * 4))" --group-size row --output "$3"
        ;;
    export) "$programs/bitllama-train" export --checkpoint "$work/run-$2" --output "$3" ;;
    distill) distill "$2" "$3" ;;
    esac
}

for command in "${commands[@]}"; do
    weights=weights.npz
    [ "$command" = distill ] && weights=artifact/weights.npz
    for writer in 1 2; do
        if [ "$command" = export ]; then
            distill "$writer" "$work/run-$writer" >"$work/log" 2>&1 || fail "distill, for export: $(tail -1 "$work/log")"
        fi
        start "$command" "$writer" "$work/$command-$writer" >"$work/log" 2>&1 || fail "$command: $(tail -1 "$work/log")"
    done
    in_turn=0 refused=0
    for round in $(seq "$rounds"); do
        output="$work/both-$command"
        # Every other round the folder is there already; a run does not take the place of another.
        if [ "$command" = distill ] || [ $((round % 2)) = 0 ]; then rm -rf "$output"; fi
        for writer in 1 2; do
            (
                sleep "0.0$((RANDOM % 10))"
                if start "$command" "$writer" "$output" >"$work/log-$writer" 2>&1; then echo yes; else echo no; fi
            ) >"$work/done-$writer" &
        done
        wait
        winners=""
        for writer in 1 2; do
            if [ "$(cat "$work/done-$writer")" = yes ]; then
                winners="$winners $writer"
            else
                grep -qE '^error: .*(is writing here|holds a run of)' "$work/log-$writer" ||
                    fail "$command, round $round: $(tail -1 "$work/log-$writer")"
            fi
        done
        case "$winners" in
        "") fail "$command, round $round: both were refused" ;;
        " 1 2") in_turn=$((in_turn + 1)) ;;
        *) refused=$((refused + 1)) ;;
        esac
        found=no
        for writer in $winners; do
            if cmp -s "$output/$weights" "$work/$command-$writer/$weights"; then found=yes; fi
        done
        [ "$found" = yes ] || fail "$command, round $round: the weights are those of none that succeeded"
        "$programs/bitllama" inspect "$output/${weights%weights.npz}" >"$work/log" 2>&1 ||
            fail "$command, round $round: $(tail -1 "$work/log")"
        left="$(find "$work" -name '*~')"
        [ -z "$left" ] || fail "$command, round $round: left behind: $left"
    done
    echo "$command: $rounds of $rounds ($in_turn in turn, $refused refused)"
done
