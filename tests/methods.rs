//! Ways to distil: schedules, optimizers, losses between blocks, students of other shapes, a cached teacher.

mod common;

use std::fs;
use std::path::Path;

use common::{failure, metrics, root, run_json, short_run, start, succeed, succeed_json, train, wait_for};
use serde_json::{Value, json};

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Figures of one kind in a run's metrics, in order.
fn figures(run: &Path, name: &str) -> Vec<f64> {
    metrics(run).iter().filter_map(|line| line[name].as_f64()).collect()
}

/// The shape of the nano teacher, changed.
fn config(folder: &Path, changes: Value) -> String {
    let text = fs::read(root().join("models/nano/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let path = folder.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    path.display().to_string()
}

/// Everything at once, killed at two moments: stages of bits, rounding that fades in, scales that stop, another optimizer,
/// two losses between blocks, projections between widths, products in block floating point, blocks that are computed again.
#[test]
fn a_killed_run_of_many_methods_resumes_to_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let shape =
        json!({ "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 2 });
    let config = format!("student.config={}", config(folder.path(), shape));
    let sets = [
        &config,
        "bits.layers.*={ scheme = \"int2\", method = \"lsq\", zero_point = true }",
        "quant.stages=[{ scheme = \"int8\", steps = 5 }, { scheme = \"int4\", steps = 5 }]",
        "quant.delay_steps=1",
        "quant.warmup_steps=2",
        "quant.freeze_scales_steps=3",
        "train.optimizer=muon",
        "train.precision=bfp12",
        "train.recompute=block",
        "train.recompute_layers=1",
        "train.scale_lr=1e-3",
        "train.steps=16",
        "train.checkpoint_every=3",
        "distill.hidden={ weight = 1.0 }",
        "distill.relations={ weight = 0.5 }",
    ];
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let reference = run_json(&short_run(&whole, &sets));
    let args = short_run(&killed, &sets);
    for lines in [6, 14] {
        let mut child = start(&[args.clone(), vec!["--resume".into()]].concat());
        wait_for(&killed.join("metrics.jsonl"), lines);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // A checkpoint can be opened in whatever stage it was made.
    let eval = ["eval", "--model", killed.to_str().unwrap(), "--text", "data/austen/sense-and-sensibility.txt"];
    succeed(train(&eval).args(["--ctx", "64", "--chunks", "2"]));
    let mut resumed = run_json(&[args, vec!["--resume".into()]].concat());
    assert_eq!(metrics(&whole), metrics(&killed));
    resumed["artifact"] = reference["artifact"].clone();
    assert_eq!(reference, resumed);
    let artifact = |run: &Path| fs::read(run.join("artifact/weights.npz")).unwrap();
    assert!(artifact(&whole) == artifact(&killed), "the artifacts differ");
    for name in ["divergence", "hidden", "relations"] {
        assert_eq!(figures(&whole, name).len(), 16, "{name}");
        assert!(figures(&whole, name).iter().all(|value| value.is_finite() && *value > 0.0), "{name}");
    }
}

/// All losses, trained scales and micro-batches, with the graph in one piece and block by block.
#[test]
fn blocks_that_are_computed_again_change_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, more: &[&str]| {
        let run = folder.path().join(name);
        let sets = [
            "bits.layers.*={ scheme = \"int4\", method = \"lsq\" }",
            "train.grad_accumulation=2",
            "distill.hidden={ weight = 0.5, layers = [[0, 1], [2, 2], [3, 3]] }",
            "distill.relations={ weight = 0.5, layers = [[1, 1], [3, 2]] }",
        ];
        run_json(&short_run(&run, &[&sets[..], more].concat()));
        (metrics(&run), fs::read(run.join("artifact/weights.npz")).unwrap())
    };
    let again = "train.recompute=block";
    for (precision, recompute) in
        [("f32", &[again][..]), ("bfp12", &[again]), ("bfp12", &[again, "train.recompute_layers=2"])]
    {
        let precision = format!("train.precision={precision}");
        let (numbers, artifact) = of("whole", &[&precision]);
        let (of_blocks, artifact_of_blocks) = of("blocks", &[&[precision.as_str()], recompute].concat());
        assert_eq!(numbers, of_blocks, "{precision} {recompute:?}");
        assert!(artifact == artifact_of_blocks, "{precision} {recompute:?}: the artifacts differ");
        fs::remove_dir_all(folder.path().join("whole")).unwrap();
        fs::remove_dir_all(folder.path().join("blocks")).unwrap();
    }
}

#[test]
fn a_student_of_some_of_the_blocks_learns_with_every_optimizer() {
    for (optimizer, layers) in [("adamw", "2"), ("muon", "[0, 2, 3]"), ("adafactor", "2")] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let sets = [
            &format!("train.optimizer={optimizer}"),
            &format!("student.layers={layers}"),
            "train.steps=25",
            "train.checkpoint_every=25",
            "train.lr=2e-3",
            "train.batch_size=4",
            "distill.hidden={ weight = 0.5, loss = \"cosine\" }",
        ];
        let result = run_json(&short_run(&run, &sets));
        let perplexity = |row: &str| result[row]["perplexity"].as_f64().unwrap();
        assert!(perplexity("student") < 0.7 * perplexity("round_to_nearest"), "{optimizer}: {result}");
        let loss = figures(&run, "loss");
        assert!(loss.last() < loss.first(), "{optimizer}: {loss:?}");
        let artifact = run.join("artifact");
        let again = succeed_json(&mut train(&[
            "eval",
            "--model",
            artifact.to_str().unwrap(),
            "--teacher",
            run.to_str().unwrap(),
            "--text",
            "data/austen/sense-and-sensibility.txt",
            "--ctx",
            "64",
            "--chunks",
            "4",
            "--json",
        ]));
        assert!(again["mean_kld"].as_f64().unwrap().abs() < 3e-4, "{optimizer}: {again}");
    }
}

#[test]
fn cross_entropy_alone_runs_no_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let result = run_json(&short_run(&run, &["distill.alpha=1.0"]));
    assert!(result["teacher"]["perplexity"].as_f64().unwrap() > 1.0);
    assert!(figures(&run, "divergence").is_empty());
    assert_eq!(figures(&run, "loss"), figures(&run, "ce"));
}

#[test]
fn before_rounding_begins_the_student_is_the_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    run_json(&short_run(&run, &["quant.delay_steps=2", "quant.warmup_steps=3", "train.steps=7"]));
    let divergence = figures(&run, "divergence");
    assert!(divergence[0].abs() < 1e-6, "full precision: {divergence:?}");
    assert!(divergence[2] > 1e-3 && divergence[3] > divergence[2], "it fades in: {divergence:?}");
}

#[test]
fn a_cache_teaches_what_its_teacher_does() {
    let folder = tempfile::tempdir().unwrap();
    let (live, cache) = (folder.path().join("live"), folder.path().join("teacher"));
    let sets = ["distill.top_k=50", "distill.temperature=1.5", "train.grad_accumulation=2", "distill.alpha=0.2"];
    run_json(&short_run(&live, &sets));
    let with_cache = |run: &Path, more: &[&str]| {
        let cache = format!("teacher.cache={}", cache.display());
        short_run(run, &[&sets[..], &[cache.as_str()], more].concat())
    };
    let make = |more: &[&str], flags: &[&str]| {
        let args = with_cache(&live, more);
        let args: Vec<&str> = std::iter::once("cache-teacher").chain(strs(&args)[1..].iter().copied()).collect();
        let mut command = train(&args);
        command.args(flags);
        command
    };
    let refused =
        |more: &[&str]| failure(&train(&strs(&with_cache(&folder.path().join("none"), more))).output().unwrap());

    assert!(refused(&[]).contains("no teacher cache"), "{}", refused(&[]));
    let apart = |name: &str, other: &Path, steps: usize| {
        let pairs = figures(&live, name).into_iter().zip(figures(other, name)).take(steps);
        pairs.map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max)
    };
    for (dtype, bytes, bounds) in [("f32", 50 * 6 + 4, [1e-7, 1e-5]), ("f16", 50 * 4 + 4, [1e-4, 1e-2])] {
        let report = succeed_json(make(&[], &["--dtype", dtype, "--overwrite"]).arg("--json"));
        assert_eq!(report["bytes_per_token"], bytes);
        let run = folder.path().join(dtype);
        let result = run_json(&with_cache(&run, &[]));
        assert!(result["teacher"]["perplexity"].as_f64().unwrap() > 1.0);
        for name in ["loss", "divergence", "ce"] {
            let (first, all) = (apart(name, &run, 1), apart(name, &run, 6));
            // AdamW's first steps are as large for a small gradient as for a large one, so later weights differ by more.
            assert!(first <= bounds[0] && all <= bounds[1], "{dtype} {name}: {first} {all}");
        }
    }

    // Other settings, other rows, more rows; a part that is missing.
    let message = failure(&make(&[], &["--dtype", "f32"]).output().unwrap());
    assert!(message.contains("other settings") && message.contains("--overwrite"), "{message}");
    assert!(refused(&["seed=3"]).contains("another data"), "{}", refused(&["seed=3"]));
    assert!(refused(&["distill.temperature=1.0"]).contains("another distill.temperature"));
    assert!(refused(&["distill.top_k=51"]).contains("fewer than distill.top_k = 51"));
    assert!(refused(&["distill.hidden={ weight = 1.0 }"]).contains("need the teacher itself"));
    let message = refused(&["train.steps=600"]);
    assert!(message.contains("has 24 rows") && message.contains("takes 2400"), "{message}");
    succeed(&mut make(&["train.steps=600"], &["--dtype", "f16"]));
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 2 + 5, "a record, an index and five parts of 512 rows");
    fs::remove_file(cache.join("rows-000001.bin")).unwrap();
    assert!(refused(&[]).contains("`cache-teacher` goes on"), "{}", refused(&[]));
    succeed(&mut make(&[], &["--dtype", "f16"]));
    let other = folder.path().join("f16-again");
    run_json(&with_cache(&other, &[]));
    assert_eq!(metrics(&folder.path().join("f16")), metrics(&other));

    // The teacher's files are others now.
    let path = cache.join("index.json");
    let whole = fs::read(&path).unwrap();
    let mut index: Value = serde_json::from_slice(&whole).unwrap();
    index["teacher"]["sha256"] = json!("0");
    fs::write(&path, index.to_string()).unwrap();
    assert!(refused(&[]).contains("another teacher,"), "{}", refused(&[]));
    fs::write(&path, whole).unwrap();

    // A teacher of another tokenizer.
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["tokenizer_sha256"] = json!("0");
    fs::write(&path, index.to_string()).unwrap();
    assert!(refused(&[]).contains("another tokenizer than the student's"), "{}", refused(&[]));
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [
        ("student.layers=9", "one of the 4 blocks"),
        ("student.layers=[3, 1]", "rising order"),
        ("distill.hidden={ weight = 1.0, layers = [[0, 4]] }", "[0, 4] is no pair"),
        ("distill.hidden={ weight = -1.0 }", "`distill.hidden.weight` must be positive"),
        ("distill.relations={ weight = 1.0, heads = 7 }", "heads` = 7 does not divide"),
        ("quant.delay_steps=6", "leaves no step"),
        ("quant.stages=[{ scheme = \"int8\", steps = 6 }]", "leaves no step"),
        ("train.optimizer=sgd", "unknown variant `sgd`"),
        ("train.scale_lr=0.0", "`train.scale_lr` must be positive"),
        ("train.scale_lr=1e-3", "no method in `[bits]` trains any"),
        ("train.int8_forward=true", "the student has none"),
        ("train.recompute_layers=2", "needs train.recompute = \"block\""),
    ];
    for (set, expected) in wrong {
        let run = folder.path().join("run");
        let message = failure(&train(&strs(&short_run(&run, &[set]))).output().unwrap());
        assert!(message.contains(expected), "{set}: {message}");
        assert!(!run.exists(), "{set}");
    }
}

#[test]
fn a_corpus_of_the_teacher_is_the_same_however_often_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole.jsonl"), folder.path().join("stopped.jsonl"));
    let make = |output: &Path, tokens: &str, more: &[&str]| {
        let fixed = ["generate-data", "--model", "models/nano", "--length", "48", "--batch", "4", "--tokens", tokens];
        let mut command = train(&fixed);
        command.args(["--output", output.to_str().unwrap()]).args(more);
        command
    };
    let report = succeed_json(make(&whole, "1500", &[]).arg("--json"));
    let tokens = report["tokens"].as_u64().unwrap();
    assert!((1500..1500 + 4 * 48).contains(&tokens), "{report}");
    succeed(&mut make(&stopped, "600", &[]));
    // Stopped in the middle of a line of the second document of a group.
    let bytes = fs::read(&whole).unwrap();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    let begun = fs::read(&stopped).unwrap();
    assert!(bytes.starts_with(&begun) && begun.len() < bytes.len());
    let count = begun.iter().filter(|b| **b == b'\n').count();
    fs::write(&stopped, [&begun[..], lines[count], &lines[count + 1][..9]].concat()).unwrap();
    // As the note that precedes a group says.
    let note = folder.path().join("stopped.jsonl.origin.json");
    let mut origin: serde_json::Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
    let group: usize = lines[count..count + 4].iter().map(|line| line.len()).sum();
    origin["written"]["pending"] = (begun.len() + group).into();
    fs::write(&note, origin.to_string()).unwrap();
    succeed(&mut make(&stopped, "1500", &[]));
    assert!(fs::read(&stopped).unwrap() == bytes, "the same file");

    let message = failure(&make(&stopped, "1500", &["--seed", "1"]).output().unwrap());
    assert!(message.contains("other settings") && message.contains("--overwrite"), "{message}");
    succeed(&mut make(&stopped, "600", &["--seed", "1", "--overwrite"]));
    assert!(!bytes.starts_with(&fs::read(&stopped).unwrap()));
    let foreign = folder.path().join("foreign.jsonl");
    fs::write(&foreign, "mine").unwrap();
    assert!(
        failure(&make(&foreign, "10", &[]).output().unwrap()).contains("not on record as written by `generate-data`")
    );
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "mine");

    // It is text to train on, in documents.
    let run = folder.path().join("run");
    let sets = [&format!("data.train=[\"{}\"]", whole.display()), "data.document_start=[]", "eval.chunks=1"];
    run_json(&short_run(&run, &sets));
}
