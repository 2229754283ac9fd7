//! A checkpoint, or the folder of a run, is a student in every reader; a step's loss does not depend on how its rows are
//! split; a run that diverges or is asked to stop leaves something to go on from.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use bitllama_core::weights::{WeightSpec, specs};
use bitllama_formats::checkpoint::{self, CheckpointState};
use bitllama_formats::{Artifact, Model, StoredWeight, checksums, model};
use bitllama_runtime::{Decoder, LogitsOf, Opened, Settings, open, open_latent};
use common::{failure, metrics, root, run_json, short_run, start, succeed, succeed_json, train, wait_for};
use serde_json::{Value, json};

const TEXT: &str = "data/austen/sense-and-sensibility.txt";

/// Trained scales, zero points, one scale a matrix, an embedding in int8.
const MIXED: [&str; 3] = [
    "bits.layers.*.mlp.*={ scheme = \"int2\", method = \"lsq\", zero_point = true }",
    "bits.*.o_proj={ scheme = \"ternary\", method = \"seq\", granularity = \"tensor\" }",
    "bits.embed_tokens=int8",
];

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the quick start's recipe for a few steps; its folder and what it printed.
fn run(folder: &Path, name: &str, sets: &[&str]) -> (PathBuf, Value) {
    let path = folder.join(name);
    let result = run_json(&short_run(&path, &[&["train.lr=1e-3"], sets].concat()));
    (path, result)
}

fn eval(model: &Path, flags: &[&str]) -> f64 {
    let args = ["eval", "--model", str(model), "--text", TEXT, "--ctx", "64", "--chunks", "4", "--json"];
    succeed_json(train(&args).args(flags))["perplexity"].as_f64().unwrap()
}

fn logits(Opened { decoder, .. }: Opened) -> Vec<f32> {
    let tokens: Vec<u32> = (1..40).map(|i| i * 7 % 500).collect();
    decoder.forward(&tokens, &mut decoder.new_cache(), LogitsOf::All).unwrap()
}

/// Packed bytes, scales and zero points to the bit.
fn same_weights(student: &Model, exported: &Artifact) {
    for spec in &specs(&student.config) {
        let same = student.weights.stored(spec).unwrap() == exported.weight(spec).unwrap();
        assert!(same, "{} is not what was exported", spec.name);
    }
}

fn close(a: f64, b: f64) -> bool {
    (a / b - 1.0).abs() < 1e-4
}

#[test]
fn a_checkpoint_is_its_student_in_every_reader() {
    let folder = tempfile::tempdir().unwrap();
    let (path, result) = run(folder.path(), "run", &MIXED);
    let best = checkpoint::student_of(&path).unwrap();
    assert!(best.starts_with(path.join("checkpoints")));
    let artifact = path.join("artifact");

    // The runtime: packed as exported, to the bit.
    let (student, exported) = (model::open(&best).unwrap(), Artifact::open(&artifact).unwrap());
    same_weights(&student, &exported);
    assert_eq!(student.weights.stored_bytes(), exported.size().bytes as u64);
    let expected = logits(open(&artifact).unwrap());
    assert_eq!(logits(open(&best).unwrap()), expected);
    assert_eq!(logits(open(&path).unwrap()), expected, "a run is its best student");
    assert_ne!(logits(open_latent(&path).unwrap()), expected);

    // Evaluation, of a checkpoint, a run and an artifact.
    let perplexity = eval(&artifact, &[]);
    for model in [&best, &path] {
        assert!(close(eval(model, &[]), perplexity));
    }
    let latent = eval(&path, &["--latent-weights"]);
    assert!(latent < 0.9 * perplexity, "the teacher's weights are better than rounded ones: {latent} {perplexity}");
    let message =
        failure(&train(&["eval", "--model", "models/nano", "--text", TEXT, "--latent-weights"]).output().unwrap());
    assert!(message.contains("models/nano: not a checkpoint (no state.json)"), "{message}");

    // A teacher, and start weights, on the documents that the run itself was evaluated on.
    let student_of_run = result["student"]["perplexity"].as_f64().unwrap();
    let teacher = format!("teacher.model={}", str(&path));
    let started = format!("student.model={}", str(&best));
    let full = ["train.steps=0", "bits.*=f32", "bits.embed_tokens=f32"];
    let (_, second) = run(folder.path(), "second", &[&full[..], &[&teacher, &started]].concat());
    for row in ["teacher", "student"] {
        assert!(close(second[row]["perplexity"].as_f64().unwrap(), student_of_run), "{row}: {second}");
    }
    assert_eq!(second["teacher"]["bytes"], result["student"]["bytes"]);
    let dry = short_run(&folder.path().join("dry"), &[&teacher]);
    assert!(run_json(&[dry, vec!["--dry-run".into()]].concat())["teacher_parameters"].as_u64().unwrap() > 0);
    let flags = ["teacher.latent_weights=true", "student.latent_weights=true"];
    let (_, third) = run(folder.path(), "third", &[&full[..], &[&teacher, &started], &flags].concat());
    for row in ["teacher", "student"] {
        assert!(third[row]["perplexity"].as_f64().unwrap() < 0.9 * student_of_run, "{row}: {third}");
    }
    let orphan = short_run(&folder.path().join("orphan"), &["student.latent_weights=true"]);
    let message = failure(&train(&orphan.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap());
    assert!(message.contains("`student.latent_weights` needs student.model"), "{message}");

    // Without its checkpoints a finished run is its artifact.
    fs::remove_dir_all(path.join("checkpoints")).unwrap();
    assert_eq!(logits(open(&path).unwrap()), expected);
    assert!(close(eval(&path, &[]), perplexity));
    assert_eq!(model::open(&path).unwrap().path, artifact);
}

#[test]
fn rounded_weights_are_quantized_and_write_text() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = run(folder.path(), "run", &[&MIXED[..], &["train.steps=3"]].concat());
    let student = model::open(&path).unwrap();
    // Everything in f32: what is written is what was read.
    let copy = |name: &str, flags: &[&str]| {
        let out = folder.path().join(name);
        let args = ["quantize", "--model", str(&path), "--bits", "8", "--embedding", "f32", "--rule", "*=f32"];
        succeed(train(&args).args(flags).args(["--output", str(&out)]));
        Artifact::open(&out).unwrap()
    };
    let (rounded, latent) = (copy("rounded", &[]), copy("latent", &["--latent-weights"]));
    let full = |artifact: &Artifact, spec: &WeightSpec| match artifact.weight(spec).unwrap() {
        StoredWeight::Full(values) => values,
        other => panic!("{} is {other:?}", spec.name),
    };
    for spec in &specs(&student.config) {
        assert_eq!(full(&rounded, spec), student.weights.read(spec).unwrap(), "{}", spec.name);
    }
    let up = specs(&student.config).into_iter().find(|spec| spec.name.contains("up_proj")).unwrap();
    assert_ne!(full(&latent, &up), full(&rounded, &up));

    let corpus = |name: &str, model: &Path, flags: &[&str]| {
        let out = folder.path().join(name);
        let args = ["generate-data", "--model", str(model), "--tokens", "40", "--length", "20", "--batch", "2"];
        succeed(train(&args).args(flags).args(["--output", str(&out)]));
        fs::read_to_string(out).unwrap()
    };
    let written = corpus("run.jsonl", &path, &[]);
    assert_eq!(written, corpus("artifact.jsonl", &path.join("artifact"), &[]));
    assert_ne!(written, corpus("latent.jsonl", &path, &["--latent-weights"]));
}

/// Low-bit activations, keys and values belong to a student as its weights do; a stage of progressive bits has scales of its
/// own, which are not those of the plan.
#[test]
fn activations_and_stages_are_part_of_a_student() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        "bits.layers.*={ scheme = \"int2\", method = \"lsq\" }",
        "activations.layers.*=int8",
        "activations.kv_cache=int4",
        "quant.stages=[{ scheme = \"int4\", steps = 3 }]",
    ];
    let (path, result) = run(folder.path(), "run", &sets);
    for (_, step) in checkpoint::list(&path.join("checkpoints")).unwrap() {
        let state = CheckpointState::read(&step).unwrap().unwrap();
        assert_eq!(state.stage.is_some(), state.step == 3);
        let artifact = folder.path().join(state.step.to_string());
        succeed(&mut train(&["export", "--checkpoint", str(&step), "--output", str(&artifact)]));
        let (student, exported) = (model::open(&step).unwrap(), Artifact::open(&artifact).unwrap());
        assert_eq!(student.activations, exported.activations);
        assert!(!student.activations.inputs.is_empty() && student.activations.kv_cache.is_some());
        // Scales that the weights give, as in a stage, may differ in the last bit: a mean in another order.
        if state.stage.is_none() {
            same_weights(&student, &exported);
            assert_eq!(logits(open(&step).unwrap()), logits(open(&artifact).unwrap()));
        }
        // Codes of activations turn over where two programs sum in another order.
        let [a, b] = [&step, &artifact].map(|model| eval(model, &[]));
        assert!((a / b - 1.0).abs() < 1e-2, "{a} {b}");
    }
    // As a teacher too.
    let teacher = format!("teacher.model={}", str(&path));
    let (_, second) = run(folder.path(), "second", &["train.steps=0", &teacher]);
    let of = |result: &Value, row: &str| result[row]["perplexity"].as_f64().unwrap();
    assert!(close(of(&second, "teacher"), of(&result, "student")), "{second}");
}

#[test]
fn a_pretraining_run_is_its_model() {
    let folder = tempfile::tempdir().unwrap();
    let (path, recipe) = (folder.path().join("run"), folder.path().join("recipe.toml"));
    let text = format!(
        "output = '{}'\n[student]\nconfig = \"models/nano/config.json\"\ntokenizer = \"models/nano/tokenizer.json\"\n\
         [data]\ntrain = [\"data/austen\"]\nsequence_length = 32\ncache = '{}'\n\
         [train]\nsteps = 2\nlr = 1e-3\nbatch_size = 2\n[eval]\nchunks = 2\n",
        str(&path),
        str(&folder.path().join("cache")),
    );
    fs::write(&recipe, text).unwrap();
    let result = succeed_json(&mut train(&["pretrain", "--config", str(&recipe), "--json"]));
    let perplexity = eval(&path, &[]);
    assert!((perplexity / result["perplexity"].as_f64().unwrap() - 1.0).abs() < 0.2);
    assert_eq!(logits(open(&path).unwrap()), logits(open_latent(&path).unwrap()), "nothing is rounded");
    fs::remove_dir_all(path.join("checkpoints")).unwrap();
    // In f16.
    assert!((eval(&path, &[]) / perplexity - 1.0).abs() < 1e-2);
    assert_eq!(model::open(&path).unwrap().path, path.join("model"));
}

/// Rows with 1 to 32 scored targets.
fn uneven(folder: &Path) -> PathBuf {
    let words = fs::read_to_string(root().join(TEXT)).unwrap();
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut lines = vec![json!({ "text": words[..2500].join(" ") })];
    lines.extend(words[3000..4500].iter().map(|word| json!({ "text": word })));
    let path = folder.join("uneven.jsonl");
    fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path
}

#[test]
fn a_loss_does_not_depend_on_how_a_step_is_split() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("data.train=['{}']", str(&uneven(folder.path())));
    // AdamW's first step is lr * g / (|g| + epsilon): about the gradient.
    let shared = [
        &text,
        "data.valid=[\"data/austen/sense-and-sensibility.txt\"]",
        "train.steps=1",
        "train.lr=1.0",
        "train.epsilon=1.0",
    ];
    let shared = [&shared[..], &["train.warmup_steps=0", "train.max_grad_norm=0.0", "bits.*=f32"]].concat();
    for (name, sets) in [
        ("text", vec!["distill.alpha=1.0"]),
        ("both", vec!["distill.alpha=0.5", "distill.temperature=2.0"]),
        ("states", vec!["distill.alpha=0.5", "distill.hidden={ weight = 1.0 }", "distill.relations={ weight = 1.0 }"]),
    ] {
        let step = |batch: usize, passes: usize| {
            let split = [format!("train.batch_size={batch}"), format!("train.grad_accumulation={passes}")];
            let sets: Vec<&str> = shared.iter().chain(&sets).copied().chain(split.iter().map(String::as_str)).collect();
            let path = folder.path().join(format!("{name}-{batch}x{passes}"));
            run_json(&short_run(&path, &sets));
            let line = metrics(&path).into_iter().find(|line| line["ce"].is_f64()).unwrap();
            (line, model::open_latent(&path).unwrap())
        };
        let (whole, moved) = step(8, 1);
        let before = model::open(&root().join("models/nano")).unwrap();
        for (batch, passes) in [(2, 4), (1, 8)] {
            let (line, split) = step(batch, passes);
            for figure in ["loss", "ce", "divergence", "hidden", "relations", "grad_norm"] {
                let (a, b) = (line[figure].as_f64(), whole[figure].as_f64());
                assert_eq!(a.is_some(), b.is_some());
                assert!(a.zip(b).is_none_or(|(a, b)| (a / b - 1.0).abs() < 1e-5), "{name} {batch}: {line} {whole}");
            }
            for spec in &specs(&before.config) {
                let [start, a, b] = [&before, &moved, &split].map(|model| model.weights.read(spec).unwrap());
                let step = start.iter().zip(&a).map(|(x, a)| (a - x).abs()).fold(0.0, f32::max);
                let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(step > 1e-5 && apart < 1e-3 * step, "{name} {batch} {}: {apart} of {step}", spec.name);
            }
        }
    }
}

#[test]
fn a_run_that_diverges_names_the_key_and_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let [path, other] = ["run", "other"].map(|name| folder.path().join(name));
    let sets = ["train.steps=60", "train.checkpoint_every=2", "train.warmup_steps=0"];
    let args_in = |path: &Path, lr: &str, more: &[&str]| -> Vec<String> {
        let mut args = short_run(path, &[&sets[..], &[lr]].concat());
        args.extend(more.iter().map(|flag| flag.to_string()));
        args
    };
    let args = |lr: &str, more: &[&str]| args_in(&path, lr, more);
    let output = |args: Vec<String>| train(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    // A good start, and then too much.
    succeed(&mut train(
        &args("train.lr=1e-3", &["--set", "train.steps=4"]).iter().map(String::as_str).collect::<Vec<_>>(),
    ));
    let message = failure(&output(args("train.lr=1e6", &["--resume"])));
    assert!(message.contains("error: step 6: the gradient is 0 at a loss of "), "{message}");
    let message = failure(&output(args("train.lr=100", &["--resume"])));
    assert!(message.contains("error: step 6: the perplexity of the held-out documents is inf"), "{message}");
    assert!(message.contains("lower `train.lr`, which is 100 "), "{message}");
    let last = checkpoint::newest(&path.join("checkpoints")).unwrap().unwrap();
    assert!(message.contains("`--resume` goes on from the last good checkpoint") && message.contains(str(&last)));
    let mut old: Value = serde_json::from_slice(&fs::read(last.join("state.json")).unwrap()).unwrap();
    assert!(old["perplexity"].is_f64() && old["best"]["perplexity"].is_f64(), "{old}");
    // What version 0.1.0 wrote of an infinite perplexity is none.
    old["best"]["perplexity"] = Value::Null;
    fs::write(last.join("state.json"), old.to_string()).unwrap();
    checksums::write(&last).unwrap();
    let result = output(args("train.lr=1e-3", &["--resume", "--set", "train.steps=8"]));
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));

    let message = failure(&output(args_in(&other, "train.lr=1e20", &[])));
    assert!(message.contains("lower `train.lr`") && message.contains("there is no checkpoint yet"), "{message}");
    assert_eq!(checkpoint::list(&other.join("checkpoints")).unwrap().len(), 0);
}

#[cfg(unix)]
mod signals {
    use std::process::{Command, Stdio};

    use super::*;

    fn send(signal: &str, pid: u32) {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    }

    #[test]
    fn every_signal_that_asks_checkpoints_and_stops() {
        let folder = tempfile::tempdir().unwrap();
        let sets = ["train.steps=400", "train.checkpoint_every=400"];
        // SAFETY: a default action has no handler. Runs inherit it, also where these tests were started by `nohup`.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        for (signal, code) in [("-TERM", 143), ("-HUP", 129), ("-INT", 130)] {
            let path = folder.path().join(signal);
            let mut child = start(&short_run(&path, &sets));
            wait_for(&path.join("metrics.jsonl"), 2);
            send(signal, child.id());
            assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
            assert_eq!(checkpoint::list(&path.join("checkpoints")).unwrap().len(), 1);
        }
    }

    /// `nohup` starts a program with hang-ups ignored.
    #[test]
    fn hang_ups_that_are_ignored_stay_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let args = short_run(&path, &["train.steps=400", "train.checkpoint_every=400"]);
        let mut child = Command::new("sh")
            .args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_bitllama-train")])
            .args(&args)
            .current_dir(root())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&path.join("metrics.jsonl"), 2);
        send("-HUP", child.id());
        wait_for(&path.join("metrics.jsonl"), 6);
        assert!(child.try_wait().unwrap().is_none(), "it goes on");
        send("-TERM", child.id());
        assert_eq!(child.wait().unwrap().code(), Some(143));
    }

    const SHORT: &str = "\"data.sequence_length\" = 32\n\"train.steps\" = 4000\n\"train.batch_size\" = 2\n\
                         \"train.log_every\" = 1\n\"train.checkpoint_every\" = 4000\n\"eval.chunks\" = 2\n";

    /// A grid passes on what only it was told.
    #[test]
    fn a_grid_asks_its_runs_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let (grid, output) = (folder.path().join("grid.toml"), folder.path().join("out"));
        let text = format!(
            "recipe = \"recipes/quickstart.toml\"\noutput = '{}'\n[set]\n\"data.cache\" = '{}'\n{SHORT}\
             [schemes.ternary]\nset = {{ \"bits.layers.*\" = \"ternary\" }}\n[methods.distill]\n\
             [eval]\ntexts = {{ novel = \"{TEXT}\" }}\nctx = 64\nchunks = 1\n\
             [bench]\nprompt = 8\ngenerate = 2\nrepetitions = 1\n",
            str(&output),
            str(&folder.path().join("tokens")),
        );
        fs::write(&grid, text).unwrap();
        let mut child = start(&["grid".into(), "--config".into(), str(&grid).into()]);
        let run = output.join("ternary/distill/seed-0");
        wait_for(&run.join("metrics.jsonl"), 1);
        send("-TERM", child.id());
        assert_eq!(child.wait().unwrap().code(), Some(143));
        assert_eq!(checkpoint::list(&run.join("checkpoints")).unwrap().len(), 1);
    }
}

/// Keys beyond the range of f16, in a model that computes what the one with ordinary keys computes.
#[test]
fn keys_beyond_f16_are_computed_as_in_f32() {
    let nano = model::open(&root().join("models/nano")).unwrap();
    let scaled = |by: f32| {
        let weight = |spec: &WeightSpec| {
            let mut values = nano.weights.read(spec)?;
            let factor = if spec.name.ends_with("k_proj.weight") {
                by
            } else if spec.name.ends_with("q_proj.weight") {
                1.0 / by
            } else {
                1.0
            };
            values.iter_mut().for_each(|x| *x *= factor);
            Ok(StoredWeight::Full(values))
        };
        Decoder::new(nano.config.clone(), weight).unwrap()
    };
    let half = Settings { kv: "f16".parse().unwrap(), ..Settings::default() };
    // A power of two: products are the same to the bit.
    let (plain, large) = (scaled(1.0), scaled(524_288.0));
    let tokens: Vec<u32> = (1..60).map(|i| i * 7 % 500).collect();
    let expected = plain.forward(&tokens, &mut plain.new_cache(), LogitsOf::All).unwrap();
    assert_eq!(large.forward(&tokens, &mut large.new_cache(), LogitsOf::All).unwrap(), expected);
    let large = large.with_settings(half);
    let mut cache = large.new_cache();
    let whole = large.forward(&tokens, &mut cache, LogitsOf::All).unwrap();
    let apart = |found: &[f32]| found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart(&whole) < 0.05, "{}", apart(&whole));
    // Token by token, in a cache that was used before, the same.
    cache.clear();
    let mut found = Vec::new();
    for token in &tokens {
        found.extend(large.forward(&[*token], &mut cache, LogitsOf::All).unwrap());
    }
    assert!(apart(&found) < 0.05, "{}", apart(&found));
}
