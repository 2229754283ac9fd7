//! Flags of `bitllama` with something wrong in them, each with the exact line that it gives; and output that nobody reads.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// An artifact of release 0.1.0 and a text, by the root of the repository.
const FOLDER: &str = "tests/fixtures/v0.1.0";

fn bitllama(args: &[&str]) -> Command {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitllama"));
    command.args(args).current_dir(root.join(FOLDER));
    command
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const RUN: [&str; 5] = ["run", "--artifact", "artifact", "--prompt", "She"];
const EVAL: [&str; 5] = ["eval", "--artifact", "artifact", "--text", "text.txt"];
const BENCH: [&str; 3] = ["bench", "--artifact", "artifact"];
const SHAPE: [&str; 3] = ["bench", "--shape", "nano"];
const HUGE: &str = "18446744073709551615";

/// A command, its flags, the line.
const CASES: [(&[&str], &[&str], &str); 38] = [
    (&RUN, &["--temperature", "nan"], "temperature = NaN is not a number from 0 up"),
    (&RUN, &["--temperature=-1"], "temperature = -1 is not a number from 0 up"),
    (&RUN, &["--temperature", "hot"], "invalid value 'hot' for '--temperature <T>': invalid float literal"),
    (&RUN, &["--top-p", "nan"], "top-p = NaN is not above 0 and at most 1"),
    (&RUN, &["--top-k", "0"], "top-k = 0 is not at least 1"),
    (&RUN, &["-n=-1"], "invalid value '-1' for '--max-tokens <N>': invalid digit found in string"),
    (&RUN, &["--threads", "0"], "invalid value '0' for '--threads <N>': 0 is not in 1..=1024"),
    (&RUN, &["--threads", "65535"], "invalid value '65535' for '--threads <N>': 65535 is not in 1..=1024"),
    (
        &RUN,
        &["--kv", "f12"],
        "invalid value 'f12' for '--kv <TYPE>': unknown kind of keys and values `f12`, expected one of `f32`, `f16`, `int8`, \
         `int4`",
    ),
    (&EVAL, &["--ctx", "0"], "text.txt: a context of 0 tokens is too short to score, at least 4"),
    (
        &EVAL,
        &["--ctx", HUGE],
        "text.txt: the text has 21958 tokens, fewer than one chunk of 18446744073709551615; choose a smaller context or a longer text",
    ),
    (&EVAL, &["--chunks", "0"], "text.txt: at least one chunk must be scored"),
    (
        &BENCH,
        &["-p", HUGE],
        "artifact: 18446744073709551615 tokens do not fit into the model's context of 128 (max_position_embeddings)",
    ),
    (
        &BENCH,
        &["-p", "8", "-n", HUGE],
        "artifact: 18446744073709551615 tokens do not fit into the model's context of 128 (max_position_embeddings)",
    ),
    (
        &BENCH,
        &["-p", "8", "-n", "8", "-d", HUGE],
        "artifact: 18446744073709551615 tokens do not fit into the model's context of 128 (max_position_embeddings)",
    ),
    (&BENCH, &["-p", "0", "-n", "0"], "artifact: nothing to time: no tokens, no sequences or no repetitions"),
    (
        &BENCH,
        &["-p", "8", "-n", "8", "-r", "0"],
        "artifact: nothing to time: no tokens, no sequences or no repetitions",
    ),
    (&BENCH, &["-t", "4000"], "invalid value '4000' for '--threads <N,..>': 4000 is not in 1..=1024"),
    (
        &["bench", "--shape", "nano-"],
        &[],
        "--shape nano-: no such file, nor a config that comes with the program; did you mean `nano`?",
    ),
    (&SHAPE, &["--group-size", "48"], "quantizer: group_size = 48 is no multiple of 32"),
    (
        &SHAPE,
        &["--group-size", "64"],
        "bit plan: embed_tokens.weight: quantizer: a matrix of 1024 x 160 has no whole groups of 64 columns",
    ),
    (&SHAPE, &["--zero-point"], "quantizer: `ternary` with `absmean` has no zero_point"),
    (&SHAPE, &["--scheme", "f32", "--zero-point"], "--zero-point: weights in f32 have none"),
    (&SHAPE, &["--scale-dtype", "bf16"], "invalid value 'bf16' for '--scale-dtype <TYPE>': expected `f32` or `f16`"),
    (
        &SHAPE,
        &["--gguf-type", "q9_0"],
        "invalid value 'q9_0' for '--gguf-type <TYPE>': unknown type, expected one of q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, \
         iq4_xs, tq1_0, tq2_0, q1_0, q2_0",
    ),
    (
        &SHAPE,
        &["--gguf-type", "iq2_xs"],
        "invalid value 'iq2_xs' for '--gguf-type <TYPE>': weights of this type are not multiplied as codes, expected one of q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, \
         iq4_xs, tq1_0, tq2_0, q1_0, q2_0",
    ),
    (
        &SHAPE,
        &["--gguf-type", "q4_k"],
        "embed_tokens.weight: 160 columns are no whole number of Q4_K's blocks of 256; choose another shape",
    ),
    (
        &["bench", "--shape", "smollm2-135m"],
        &["--gguf-type", "Q4_K", "--embedding", "int8"],
        "layers.0.self_attn.q_proj.weight: 576 columns are no whole number of Q4_K's blocks of 256; choose another shape, or \
         one of the types q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, q2_0",
    ),
    (
        &SHAPE,
        &["--gguf-type", "q4_k", "--scheme", "int4"],
        "the argument '--gguf-type <TYPE>' cannot be used with '--scheme <SCHEME>'",
    ),
    (
        &SHAPE,
        &["--gguf-type", "q4_k", "--group-size", "64"],
        "the argument '--gguf-type <TYPE>' cannot be used with '--group-size <N>'",
    ),
    (
        &SHAPE,
        &["--gguf-type", "q4_k", "--zero-point"],
        "the argument '--gguf-type <TYPE>' cannot be used with '--zero-point'",
    ),
    (
        &SHAPE,
        &["--gguf-type", "q4_k", "--scale-dtype", "f16"],
        "the argument '--gguf-type <TYPE>' cannot be used with '--scale-dtype <TYPE>'",
    ),
    (&BENCH, &["--group-size", "64"], "the argument '--artifact <DIR>' cannot be used with '--group-size <N>'"),
    (&["inspect"], &[], "the following required arguments were not provided: <DIR>"),
    (&["inspect", "none"], &[], "none/manifest.json: No such file or directory (os error 2)"),
    (&["inspects"], &[], "unrecognized subcommand 'inspects' tip: a similar subcommand exists: 'inspect'"),
    (&["run", "--artifact", "none", "--prompt", "x"], &[], "none: no such model directory or GGUF file"),
    (&["run", "--artifact", "artifact"], &[], "the following required arguments were not provided: --prompt <TEXT>"),
];

#[test]
fn each_fault_takes_one_line() {
    let wrong: Vec<String> = CASES
        .iter()
        .filter_map(|(command, flags, line)| {
            let output = bitllama(&[*command, *flags].concat()).output().unwrap();
            let (found, expected) = (said(&output), format!("error: {line}\n"));
            let good = found == expected && output.stdout.is_empty() && matches!(output.status.code(), Some(1 | 2));
            (!good).then(|| format!("{command:?} {flags:?} ({:?}): {found}", output.status.code()))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn more_sequences_than_memory_holds_are_refused() {
    let output = bitllama(&[&BENCH[..], &["-p", "0", "-n", "8", "-s", "1000000000000000"]].concat()).output().unwrap();
    let text = said(&output);
    if cfg!(target_os = "linux") {
        assert!(
            text.starts_with("error: artifact: takes about 1024000000.0 GB of memory, this machine has "),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }
}

#[test]
fn output_that_nobody_reads_ends_nothing() {
    for args in
        [&["inspect", "artifact"][..], &[&EVAL[..], &["--ctx", "64", "--chunks", "4"]].concat()[..], &RUN, &["--help"]]
    {
        let mut child = bitllama(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}");
    }
}
