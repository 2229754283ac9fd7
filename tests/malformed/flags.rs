//! Flags, texts and large files through the binary itself: exit code, one line, memory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::edit::{copy, nested, write};
use super::{Group, allowed, size};

const TEACHER: &str = "tests/fixtures/v0.1.0/teacher";

/// Runs `bitllama-train` in a folder, notes what it says, and checks how it ends.
fn run(group: &mut Group, name: &str, args: &[&str], prepare: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m");
    fs::create_dir(&model).unwrap();
    copy(TEACHER, &model);
    write(folder.path(), "text.txt", "It is a truth universally acknowledged.\n".repeat(50));
    prepare(folder.path());
    let said = folder.path().join("said");
    let (code, peak) = finished(folder.path(), args, &said);
    let text = fs::read_to_string(&said).unwrap();
    fs::remove_file(&said).unwrap();
    if code.is_none_or(|code| code == 0 || code > 2) {
        group.fault(name, &format!("ends with {code:?}: {text}"));
    }
    let input = size(folder.path()) + args.iter().map(|arg| arg.len()).sum::<usize>();
    if peak.is_some_and(|peak| peak > allowed(input)) {
        group.fault(name, &format!("takes {} MB for {input} bytes", peak.unwrap_or(0) >> 20));
    }
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    match errors[..] {
        [error] if text.trim_end().ends_with(error) => group.said(name, error, folder.path()),
        _ => group.fault(name, &format!("gives no one line of error: {text}")),
    }
}

/// Exit code, and the most memory that the process had, where the system tells.
///
/// A process counts the memory of the one that starts it as its own, up to that moment, and this one may have had much: so
/// this test's program is run once more, to start the command and to measure it.
fn finished(folder: &Path, args: &[&str], said: &Path) -> (Option<i32>, Option<usize>) {
    let job = tempfile::NamedTempFile::new().unwrap();
    serde_json::to_writer(job.as_file(), &(folder, args, said)).unwrap();
    let mut starter = Command::new(std::env::current_exe().unwrap());
    starter.args(["--ignored", "--exact", "flags::measured", "--nocapture"]).env("MALFORMED_JOB", job.path());
    let output = starter.stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("measured ")).unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(line).unwrap()
}

/// The other side of [`finished`].
#[test]
#[ignore = "starts a command for another test"]
fn measured() {
    let Some(job) = std::env::var_os("MALFORMED_JOB") else { return };
    let job = File::open(job).unwrap();
    let (folder, args, said): (PathBuf, Vec<String>, PathBuf) = serde_json::from_reader(job).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitllama-train"));
    command.args(args).current_dir(folder).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(File::create(said).unwrap());
    println!("\nmeasured {}", serde_json::to_string(&waited(command)).unwrap());
}

#[cfg(target_os = "linux")]
#[expect(clippy::zombie_processes, reason = "`wait4` waits for the child, which clippy does not see")]
fn waited(mut command: Command) -> (Option<i32>, Option<usize>) {
    let child = command.spawn().unwrap();
    let mut status = 0;
    // SAFETY: zeros are a `rusage`; the child is waited for here and nowhere else.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(child.id() as i32, &mut status, 0, &mut usage), child.id() as i32);
        usage
    };
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    (code, Some((usage.ru_maxrss as usize) << 10))
}

#[cfg(not(target_os = "linux"))]
fn waited(mut command: Command) -> (Option<i32>, Option<usize>) {
    (command.status().unwrap().code(), None)
}

const EVAL: [&str; 5] = ["eval", "--model", "m", "--text", "text.txt"];
const QUANTIZE: [&str; 5] = ["quantize", "--model", "m", "--output", "out"];
const GENERATE: [&str; 5] = ["generate-data", "--model", "m", "--output", "out.jsonl"];
const HUGE: &str = "1000000000000000000";

/// Commands with one flag too many, or a wrong one. `LONG` is a hundred thousand characters.
const COMMANDS: [(&str, &[&str], &[&str]); 58] = [
    ("unknown command", &["distil"], &[]),
    ("unknown flag", &EVAL, &["--texts", "x"]),
    ("long unknown flag", &EVAL, &["--LONG"]),
    ("no model", &["eval", "--text", "text.txt"], &[]),
    ("no text", &["eval", "--model", "m"], &[]),
    ("model that is not there", &["eval", "--model", "gone", "--text", "text.txt"], &[]),
    ("long model", &["eval", "--model", "LONG", "--text", "text.txt"], &[]),
    ("ctx of words", &EVAL, &["--ctx", "many"]),
    ("long ctx", &EVAL, &["--ctx", "LONG"]),
    ("negative ctx", &EVAL, &["--ctx=-1"]),
    ("ctx of 0", &EVAL, &["--ctx", "0"]),
    ("ctx of 3", &EVAL, &["--ctx", "3"]),
    ("huge ctx", &EVAL, &["--ctx", HUGE]),
    ("ctx beyond 64 bits", &EVAL, &["--ctx", "99999999999999999999"]),
    ("fraction of chunks", &EVAL, &["--ctx", "32", "--chunks", "1.5"]),
    ("no chunks", &EVAL, &["--ctx", "32", "--chunks", "0"]),
    ("unknown device", &EVAL, &["--device", "LONG"]),
    ("task of an unknown layout", &["eval", "--model", "m", "--task"], &["quiz=t.jsonl"]),
    ("task that is not there", &["eval", "--model", "m", "--task"], &["t.jsonl"]),
    ("limit without a task", &EVAL, &["--limit", "5"]),
    ("no bits", &QUANTIZE, &[]),
    ("unknown bits", &QUANTIZE, &["--bits", "7"]),
    ("unknown scheme", &QUANTIZE, &["--scheme", "LONG"]),
    ("bits and scheme", &QUANTIZE, &["--bits", "4", "--scheme", "int4"]),
    ("groups of 0", &QUANTIZE, &["--bits", "4", "--group-size", "0"]),
    ("groups of 48", &QUANTIZE, &["--bits", "4", "--group-size", "48"]),
    ("huge groups", &QUANTIZE, &["--bits", "4", "--group-size", "9223372036854775776"]),
    ("groups of words", &QUANTIZE, &["--bits", "4", "--group-size", "some"]),
    ("rule without a scheme", &QUANTIZE, &["--bits", "4", "--rule", "*"]),
    ("rule of an unknown scheme", &QUANTIZE, &["--bits", "4", "--rule", "*=int9"]),
    ("rule that reaches nothing", &QUANTIZE, &["--bits", "4", "--rule", "LONG=int4"]),
    ("rule that is no glob", &QUANTIZE, &["--bits", "4", "--rule", "[=int4"]),
    ("too many layers", &QUANTIZE, &["--bits", "4", "--layers", HUGE]),
    ("method without text", &QUANTIZE, &["--bits", "4", "--method", "gptq"]),
    ("text without a method", &QUANTIZE, &["--bits", "4", "--calibration", "text.txt"]),
    ("NaN damping", &QUANTIZE, &["--bits", "4", "--damping", "nan"]),
    ("negative damping", &QUANTIZE, &["--bits", "4", "--damping=-1"]),
    ("infinite rate", &QUANTIZE, &["--bits", "4", "--lr", "inf"]),
    ("no epochs", &QUANTIZE, &["--bits", "4", "--epochs", "0"]),
    (
        "calibration context of 0",
        &QUANTIZE,
        &["--bits", "4", "--method", "gptq", "--calibration", "text.txt", "--calibration-ctx", "0"],
    ),
    (
        "huge calibration context",
        &QUANTIZE,
        &["--bits", "4", "--method", "gptq", "--calibration", "text.txt", "--calibration-ctx", HUGE],
    ),
    (
        "calibration tokens of 0",
        &QUANTIZE,
        &[
            "--bits",
            "4",
            "--method",
            "gptq",
            "--calibration",
            "text.txt",
            "--calibration-ctx",
            "32",
            "--calibration-tokens",
            "0",
        ],
    ),
    ("double quantization of rows", &QUANTIZE, &["--bits", "4", "--double-quant", "--group-size", "row"]),
    ("no tokens to write", &GENERATE, &["--tokens", "0"]),
    ("huge batch", &GENERATE, &["--tokens", "100", "--batch", HUGE]),
    ("a large batch", &GENERATE, &["--tokens", "100", "--batch", "65537"]),
    ("batch of 0", &GENERATE, &["--tokens", "100", "--batch", "0"]),
    ("huge length", &GENERATE, &["--tokens", "100", "--length", HUGE]),
    ("length of 1", &GENERATE, &["--tokens", "100", "--length", "1"]),
    ("NaN temperature", &GENERATE, &["--tokens", "100", "--length", "8", "--temperature", "nan"]),
    ("negative temperature", &GENERATE, &["--tokens", "100", "--length", "8", "--temperature=-1"]),
    ("NaN top-p", &GENERATE, &["--tokens", "100", "--length", "8", "--top-p", "nan"]),
    ("top-p of 2", &GENERATE, &["--tokens", "100", "--length", "8", "--top-p", "2"]),
    ("top-k of 0", &GENERATE, &["--tokens", "100", "--length", "8", "--top-k", "0"]),
    ("negative seed", &GENERATE, &["--tokens", "100", "--seed=-1"]),
    ("an unknown format of an export", &["export", "--from", "m", "--output", "out", "--to", "gguf:q9_0"], &[]),
    ("a folder without results", &["report", "m"], &[]),
    ("jobs of 0", &["grid", "--config", "g.toml", "--jobs", "0"], &[]),
];

/// Recipes that are good but for the machine or the model that they ask for.
const RECIPES: [(&str, &[&str]); 9] = [
    ("a batch that no memory holds", &["train.batch_size=1000000000"]),
    (
        "calibration that no memory holds",
        &["quant.init=gptq", "quant.calibration_tokens=1000000000000", "train.steps=0"],
    ),
    ("rows longer than the context", &["data.sequence_length=1000000", "quant.calibration_tokens=1000000"]),
    ("layers beyond the model's", &["student.layers=9223372036854775807"]),
    ("no layers", &["student.layers=0"]),
    ("layers that fall", &["student.layers=[1, 0]"]),
    ("more blocks to compute again than there are", &["train.recompute=block", "train.recompute_layers=50"]),
    ("a chunk longer than the context", &["eval.ctx=100000"]),
    ("a glob that reaches nothing", &["bits.layer.*=int4"]),
];

const RECIPE: &str = "output = \"run\"\n[teacher]\nmodel = \"m\"\n[bits]\n\"layers.*\" = \"int4\"\n[data]\ntrain = [\"text.txt\"]\n\
                      document_start = [\"It\"]\nsequence_length = 32\ncache = \"cache\"\n[train]\nsteps = 2\nlr = 1e-3\n";

/// Flags with something wrong in them.
pub fn flags(group: &mut Group) {
    let long = "x".repeat(100_000);
    for (name, command, flags) in COMMANDS {
        let args: Vec<String> = command.iter().chain(flags).map(|arg| arg.replace("LONG", &long)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(group, name, &args, |_| ());
    }
    for (name, sets) in RECIPES {
        for dry in [false, true] {
            // Memory is the business of a run; a dry run says how much it would be.
            if dry && name.contains("no memory") {
                continue;
            }
            let mut args = vec!["distill", "--config", "r.toml"];
            sets.iter().for_each(|set| args.extend(["--set", set]));
            args.extend(dry.then_some("--dry-run"));
            let name = if dry { format!("{name}, dry") } else { name.to_string() };
            run(group, &name, &args, |folder| drop(write(folder, "r.toml", RECIPE)));
        }
    }
    let rows =
        ["cache-teacher", "--config", "r.toml", "--set", "teacher.cache=c", "--set", "train.steps=1000000000000"];
    run(group, "more rows than a cache has", &rows, |folder| drop(write(folder, "r.toml", RECIPE)));
}

/// Texts, and files of megabytes, with something wrong in them.
pub fn texts(group: &mut Group) {
    const MEGABYTES: usize = 16 << 20;
    let mut try_text = |name: &str, file: &str, bytes: &[u8]| {
        let args = ["eval", "--model", "m", "--ctx", "32", "--text", file];
        run(group, name, &args, |folder| drop(write(folder, file, bytes)));
    };
    try_text("empty text", "t.txt", b"");
    try_text("blank text", "t.txt", b" \n\t\r\n ");
    try_text("a short text", "t.txt", b"It is");
    try_text("no UTF-8", "t.txt", b"It is \xff a truth");
    try_text("UTF-16", "t.txt", b"\xff\xfeI\0t\0");
    try_text("line that is no JSON", "t.jsonl", b"{\"text\": \"a\"}\nhello\n");
    try_text("line without the field", "t.jsonl", b"{\"text\": \"a\"}\n{\"body\": \"b\"}\n");
    try_text("field that is no text", "t.jsonl", b"{\"text\": 5}\n");
    try_text("deep line", "t.jsonl", nested(100_000).as_bytes());
    try_text("long bad line", "t.jsonl", &vec![b'['; MEGABYTES]);
    try_text("long text that is no UTF-8", "t.txt", &[vec![b'a'; MEGABYTES], vec![0xff]].concat());

    let many = format!("[0{}]", ",0".repeat(MEGABYTES / 2));
    let mut try_file = |name: &str, file: &str, bytes: &[u8]| {
        run(group, name, &EVAL, |folder| drop(write(&folder.join("m"), file, bytes)));
    };
    try_file(
        "config of many numbers",
        "config.json",
        format!("{{\"model_type\": \"llama\", \"a\": {many}}}").as_bytes(),
    );
    try_file("manifest of many numbers", "manifest.json", format!("{{\"weights\": {many}}}").as_bytes());
    try_file("state of many numbers", "state.json", format!("{{\"step\": {many}}}").as_bytes());
    let header = format!("{{\"a\": {{\"dtype\": \"F32\", \"shape\": {many}, \"data_offsets\": [0, 0]}}}}");
    let weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    try_file("weights of many dimensions", "model.safetensors", &weights);
    run(group, "index of many numbers", &EVAL, |folder| {
        fs::remove_file(folder.join("m/model.safetensors")).unwrap();
        drop(write(&folder.join("m"), "model.safetensors.index.json", format!("{{\"weight_map\": {many}}}")));
    });
    let recipe = ["distill", "--config", "r.toml"];
    run(group, "recipe of many numbers", &recipe, |folder| drop(write(folder, "r.toml", format!("seeds = {many}"))));
    run(group, "grid of many seeds", &["grid", "--config", "g.toml"], |folder| {
        drop(write(folder, "g.toml", format!("seeds = {many}")));
    });
    run(group, "results of many numbers", &["report", "."], |folder| drop(write(folder, "results.json", &many)));
    let array = |kind: u32, size: usize| {
        let count = MEGABYTES / size;
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
        let key = [&21u64.to_le_bytes()[..], b"tokenizer.ggml.tokens", &9u32.to_le_bytes()].concat();
        [head, key, kind.to_le_bytes().into(), (count as u64).to_le_bytes().into(), vec![0; count * size]].concat()
    };
    for (name, kind, size) in [("bytes", 0, 1), ("bools", 7, 1), ("empty texts", 8, 8), ("numbers", 6, 4)] {
        let args = ["eval", "--model", "m.gguf", "--text", "text.txt"];
        run(group, &format!("GGUF of many {name}"), &args, |folder| drop(write(folder, "m.gguf", array(kind, size))));
    }
    let task = ["eval", "--model", "m", "--task", "t.jsonl"];
    run(group, "task of many numbers", &task, |folder| drop(write(folder, "t.jsonl", format!("{{\"goal\": {many}}}"))));
}
