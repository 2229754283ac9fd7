//! The main job end to end: recipe to artifact, killed and resumed, stopped and resumed, exported in every scheme.

mod common;

use std::fs;
use std::path::Path;

use common::{failure, metrics, run_json, short_run, start, succeed, succeed_json, train, wait_for};

const VALID_TEXT: &str = "data/austen/sense-and-sensibility.txt";

#[test]
fn a_run_leaves_a_table_an_artifact_and_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let sets = ["train.steps=30", "train.checkpoint_every=15", "train.batch_size=4", "train.lr=1e-3", "eval.chunks=10"];
    let result = run_json(&short_run(&run, &sets));
    for row in ["teacher", "round_to_nearest", "student"] {
        assert!(result[row]["perplexity"].as_f64().unwrap() > 1.0, "{row}");
        assert!(result[row]["bits_per_weight"].as_f64().unwrap() > 0.0 && result[row]["bytes"].as_u64().unwrap() > 0);
    }
    let perplexity = |row: &str| result[row]["perplexity"].as_f64().unwrap();
    assert!(perplexity("teacher") < perplexity("student") && perplexity("student") < perplexity("round_to_nearest"));
    for file in ["recipe.toml", "run.json", "result.json", "artifact/weights.npz", "artifact/manifest.json"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let lines = metrics(&run);
    assert_eq!(lines.iter().filter(|l| l.get("loss").is_some()).count(), 30);
    assert_eq!(lines.iter().filter(|l| l.get("valid_perplexity").is_some()).count(), 2);
    assert!(lines.iter().filter(|l| l.get("loss").is_some()).all(|l| l["ce"].is_f64() && l["divergence"].is_f64()));
    let checkpoints = fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(checkpoints, 2);

    // The resolved recipe runs as it stands.
    let again = folder.path().join("again");
    let recipe = run.join("recipe.toml");
    let set = format!("output={}", again.display());
    succeed(&mut train(&["distill", "--config", recipe.to_str().unwrap(), "--set", &set]));
    assert_eq!(metrics(&run), metrics(&again), "same seed, same numbers");
}

#[test]
fn an_earlier_run_is_neither_mixed_nor_lost() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let args = short_run(&run, &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    succeed(&mut train(&args));
    let before = metrics(&run);
    let message = common::failure(&train(&args).output().unwrap());
    assert!(message.contains("--resume") && message.contains("--overwrite"), "{message}");
    assert_eq!(metrics(&run), before);
    // Resuming a finished run only tells its result again.
    succeed(train(&args).arg("--resume"));
    assert_eq!(metrics(&run), before);
    succeed(train(&args).args(["--overwrite", "--set", "train.steps=3"]));
    assert_eq!(metrics(&run).iter().filter(|l| l.get("loss").is_some()).count(), 3);
    // Other data or another plan is another run.
    let message = common::failure(&train(&args).args(["--resume", "--set", "seed=7"]).output().unwrap());
    assert!(message.contains("made with another seed"), "{message}");
    let message =
        common::failure(&train(&args).args(["--resume", "--set", "data.valid_fraction=0.3"]).output().unwrap());
    assert!(message.contains("made with another data.valid_fraction"), "{message}");
    // Nor does a start that fails cost anything.
    let args = [&args[..], &["--overwrite", "--set", "data.train=[\"no/such\"]"]].concat();
    common::failure(&train(&args).output().unwrap());
    assert_eq!(metrics(&run).len(), 4);
    let recorded = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(recorded.contains("seed = 0") && run.join("artifact").is_dir(), "{recorded}");
}

#[test]
fn a_killed_run_resumes_to_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    // Trained scales are a part of the state.
    let lsq = "bits.layers.*.mlp.*={ scheme = \"int2\", method = \"lsq\", zero_point = true }";
    let sets = ["train.steps=24", "train.checkpoint_every=4", "train.grad_accumulation=2", lsq];
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let reference = run_json(&short_run(&whole, &sets));
    let args = short_run(&killed, &sets);
    // Killed twice, at whatever the process is doing when it has written so many lines.
    for lines in [7, 17] {
        let mut child = start(&[args.clone(), vec!["--resume".into()]].concat());
        wait_for(&killed.join("metrics.jsonl"), lines);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut resumed = run_json(&[args, vec!["--resume".into()]].concat());
    assert_eq!(metrics(&whole), metrics(&killed));
    resumed["artifact"] = reference["artifact"].clone();
    assert_eq!(reference, resumed);
    let weights = |run: &Path| fs::read(run.join("artifact/weights.npz")).unwrap();
    assert!(weights(&whole) == weights(&killed), "the artifacts differ");
}

#[cfg(unix)]
#[test]
fn ctrl_c_checkpoints_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let sets = ["train.steps=30", "train.checkpoint_every=30"];
    run_json(&short_run(&whole, &sets));
    let args = short_run(&stopped, &sets);
    let mut child = start(&args);
    wait_for(&stopped.join("metrics.jsonl"), 2);
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(stopped.join("checkpoints")).unwrap().count(), 1);
    run_json(&[args, vec!["--resume".into()]].concat());
    assert_eq!(metrics(&whole), metrics(&stopped));
}

#[test]
fn the_artifact_of_every_quantizer_says_what_the_fake_quantized_student_says() {
    let table = |scheme: &str, rest: &str| format!("{{ scheme = \"{scheme}\", {rest} }}");
    let plain = ["binary", "ternary", "int2", "int3", "int4", "int8"].map(|scheme| (scheme.to_string(), true));
    let others = [
        (table("binary", "method = \"elastic\""), true),
        (table("ternary", "method = \"twn\", granularity = \"tensor\""), true),
        (table("ternary", "method = \"seq\""), true),
        (table("seq2", "method = \"seq\""), false),
        (table("int4", "scale_dtype = \"f16\""), true),
        (table("nf4", "granularity = \"row\""), false),
        (table("int3", "method = \"lsq\", zero_point = true"), true),
    ];
    for (quantizer, older_tools) in plain.into_iter().chain(others) {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        run_json(&short_run(&run, &["train.steps=3", &format!("bits.*={quantizer}"), "bits.embed_tokens=int8"]));
        let v2 = folder.path().join("v2");
        let (run, v2) = (run.to_str().unwrap(), v2.to_str().unwrap());
        let export = train(&["export", "--checkpoint", run, "--output", v2, "--layout", "v2"]).output().unwrap();
        assert_eq!(export.status.success(), older_tools, "{quantizer}");
        for artifact in [format!("{run}/artifact"), v2.to_string()].iter().take(1 + older_tools as usize) {
            let result = succeed_json(&mut train(&[
                "eval",
                "--model",
                artifact,
                "--teacher",
                run,
                "--text",
                VALID_TEXT,
                "--ctx",
                "64",
                "--chunks",
                "8",
                "--json",
            ]));
            let (kld, same_top) = (result["mean_kld"].as_f64().unwrap(), result["same_top"].as_f64().unwrap());
            assert!(
                kld.abs() <= 3e-4 && same_top >= 0.99,
                "{quantizer} {artifact}: mean KLD {kld}, same top {same_top}"
            );
        }
    }
}

#[test]
fn the_runtime_reads_activations_keys_and_values_as_the_student_was_trained_to() {
    let plans: [(&str, &[&str]); 4] = [
        ("ternary", &["activations.layers.*=int8", "activations.kv_cache=int8", "train.int8_forward=true"]),
        ("ternary", &["activations.*=int8", "activations.*.down_proj=f32", "activations.embed_tokens=int4"]),
        ("binary", &["activations.*=sign", "activations.*.down_proj=int4", "student.sub_norm=true"]),
        ("int4", &["activations.*.v_proj=sign", "activations.kv_cache=int4"]),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (index, (scheme, activations)) in plans.into_iter().enumerate() {
        let run = folder.path().join(format!("run{index}"));
        let bits = [&format!("bits.*={scheme}"), "bits.embed_tokens=int8", "train.steps=4", "train.checkpoint_every=2"];
        let args = short_run(&run, &[&bits[..], activations].concat());
        let result = run_json(&args);
        // Rounding is a part of the run: its checkpoints go on with it, and with no other.
        fs::remove_dir_all(run.join("checkpoints/step-000004")).unwrap();
        let resume = [args.clone(), vec!["--resume".into()]].concat();
        assert_eq!(run_json(&resume), result);
        let other = [resume, vec!["--set".into(), "activations.layers.0.*=int4".into()]].concat();
        let other: Vec<&str> = other.iter().map(String::as_str).collect();
        assert!(failure(&train(&other).output().unwrap()).contains("made with another activations"));

        let (run, artifact) = (run.to_str().unwrap(), run.join("artifact").display().to_string());
        let text = ["--text", VALID_TEXT, "--ctx", "64", "--chunks", "8", "--json"];
        let eval = succeed_json(&mut train(&[&["eval", "--model", &artifact, "--teacher", run], &text[..]].concat()));
        let (kld, same_top) = (eval["mean_kld"].as_f64().unwrap(), eval["same_top"].as_f64().unwrap());
        println!("{scheme} {activations:?}: mean KLD {kld:.2e}, same top {same_top}");
        let median = eval["kld"]["median"].as_f64().unwrap();
        // Where sums in another order end on the other side of a half, a code differs, and the few positions that see it
        // do: by much, where signs stand behind.
        assert!(median.abs() <= 1e-4 && kld.abs() <= 0.05 && same_top >= 0.97, "{scheme} {activations:?}: {eval}");
        // What another rounding would have been is far away from that.
        let plain = folder.path().join("plain");
        let manifest = fs::read_to_string(format!("{artifact}/manifest.json")).unwrap();
        fs::create_dir_all(&plain).unwrap();
        for file in ["weights.npz", "tokenizer.json"] {
            fs::copy(format!("{artifact}/{file}"), plain.join(file)).unwrap();
        }
        fs::write(
            plain.join("manifest.json"),
            manifest.replace("activation_dtype", "a").replace("kv_cache_dtype", "k"),
        )
        .unwrap();
        let plain = plain.to_str().unwrap();
        let eval = succeed_json(&mut train(&[&["eval", "--model", plain, "--teacher", run], &text[..]].concat()));
        assert!(eval["mean_kld"].as_f64().unwrap() > 3.0 * kld.abs() + 1e-5, "{scheme} {activations:?}: {eval}");
    }
    let args = short_run(&folder.path().join("none"), &["activations.layers.9.*=int8"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert!(failure(&train(&args).output().unwrap()).contains("`layers.9.*` matches no matrix"));
    let text = succeed(train(&args[..args.len() - 2]).args(["--set", "activations.*=int8", "--dry-run"]));
    assert!(text.contains("[activations]") && text.contains("# activations: int8 into 28 matrices"), "{text}");
}

#[test]
fn a_student_with_sub_norms_is_trained_kept_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let sub_norm = ["student.sub_norm=true", "bits.*=int8"];
    let ones = run_json(&short_run(&run, &[&sub_norm[..], &["student.sub_norm_init=ones"]].concat()));
    fs::remove_dir_all(&run).unwrap();
    let args = short_run(&run, &[&sub_norm[..], &["train.checkpoint_every=2"]].concat());
    let result = run_json(&args);
    let perplexity = |result: &serde_json::Value, row: &str| result[row]["perplexity"].as_f64().unwrap();
    // Norms whose weights were found on the text disturb the teacher's function far less than those of ones.
    let (teacher, start) = (perplexity(&result, "teacher"), perplexity(&result, "round_to_nearest"));
    assert!(start < 1.5 * teacher && perplexity(&ones, "round_to_nearest") > 10.0 * teacher, "{teacher} {start}");
    // The checkpoint goes on to the same numbers, and names the architecture to other programs.
    let config = fs::read_to_string(run.join("checkpoints/step-000006/config.json")).unwrap();
    assert!(config.contains("BitNetForCausalLM"), "{config}");
    fs::remove_dir_all(run.join("checkpoints/step-000006")).unwrap();
    assert_eq!(run_json(&[args, vec!["--resume".into()]].concat()), result);

    let (run, artifact) = (run.to_str().unwrap(), run.join("artifact").display().to_string());
    let text = ["--text", VALID_TEXT, "--ctx", "64", "--chunks", "8", "--json"];
    let eval = succeed_json(&mut train(&[&["eval", "--model", &artifact, "--teacher", run], &text[..]].concat()));
    assert!(eval["mean_kld"].as_f64().unwrap().abs() <= 1e-6, "{eval}");
    let v2 = folder.path().join("v2");
    let export = ["export", "--checkpoint", run, "--output", v2.to_str().unwrap(), "--layout", "v2"];
    assert!(failure(&train(&export).output().unwrap()).contains("no place for sub-norms"));
    // Put in once, they are the student's own.
    let again = folder.path().join("again");
    let checkpoint = format!("student.model={run}/checkpoints/step-000004");
    let sets = ["student.sub_norm=true", "student.sub_norm_init=ones", &checkpoint];
    let args = short_run(&again, &sets);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert!(failure(&train(&args).output().unwrap()).contains("has sub-norms of its own"));
}

#[test]
fn a_dry_run_needs_no_weights_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let set = format!("output={}", folder.path().join("run").display());
    let result = succeed_json(
        train(&["distill", "--config", "recipes/tinyllama.toml", "--set", &set, "--dry-run", "--json"])
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", folder.path().join("hf")),
    );
    assert_eq!(result["parameters"], 1_100_048_384);
    assert!(result["bits_per_weight"].as_f64().unwrap() > 2.0 && result["memory_bytes"].as_u64().unwrap() > 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let text = succeed(&mut train(&["distill", "--config", "recipes/quickstart.toml", "--dry-run"]));
    assert!(text.contains("bits per weight") && text.contains("sequence_length = 128"), "{text}");
    for (bits, expected) in
        [("4bit", 5.256), ("3bit", 4.466), ("2bit", 3.677), ("ternary", 3.677), ("binary", 2.888), ("draft", 3.647)]
    {
        let recipe = format!("recipes/smollm2-135m-{bits}.toml");
        let result = succeed_json(&mut train(&["distill", "--config", &recipe, "--dry-run", "--json"]));
        assert!((result["bits_per_weight"].as_f64().unwrap() - expected).abs() < 5e-4, "{bits}: {result}");
    }
}

#[test]
fn pretraining_makes_a_model_that_evaluates() {
    let folder = tempfile::tempdir().unwrap();
    let (run, cache) = (folder.path().join("run"), folder.path().join("cache"));
    let sets = [
        format!("output={}", run.display()),
        format!("data.cache={}", cache.display()),
        "data.sequence_length=32".into(),
        "train.steps=3".into(),
        "train.batch_size=2".into(),
        "eval.chunks=2".into(),
    ];
    let mut command = train(&["pretrain", "--config", "recipes/pretrain-nano.toml", "--json"]);
    for set in &sets {
        command.args(["--set", set]);
    }
    let result = succeed_json(&mut command);
    let model = result["model"].as_str().unwrap();
    let eval = succeed_json(&mut train(&[
        "eval", "--model", model, "--text", VALID_TEXT, "--ctx", "32", "--chunks", "2", "--json",
    ]));
    assert!(eval["perplexity"].as_f64().unwrap() > 100.0, "three steps teach little: {eval}");
}

#[test]
fn a_student_starts_from_what_its_recipe_names() {
    let folder = tempfile::tempdir().unwrap();
    // Hardly trained: what comes out is what it started from.
    let still = ["train.steps=1", "train.lr=1e-12", "train.warmup_steps=0", "quant.calibration_tokens=8192"];
    let of = |bits: &str, init: &str| {
        let run = folder.path().join(init);
        let init = format!("quant.init={init}");
        let sets = [&still[..], &["bits.embed_tokens=int8", bits, &init]].concat();
        let result = run_json(&short_run(&run, &sets));
        fs::remove_dir_all(&run).unwrap();
        let perplexity = |row: &str| result[row]["perplexity"].as_f64().unwrap();
        perplexity("student") / perplexity("round_to_nearest")
    };
    let lsq = "bits.layers.*={ scheme = \"int2\", method = \"lsq\" }";
    assert!((of(lsq, "rtn") - 1.0).abs() < 1e-6);
    let [search, gptq, block] = ["search", "gptq", "block"].map(|init| of(lsq, init));
    assert!(search < 0.95 && gptq < search && block < 0.9 * gptq, "{search} {gptq} {block}");
    // A method that takes its scales from the weights starts from the rounded ones.
    let minmax = of("bits.layers.*=int2", "gptq");
    assert!(minmax < 0.9, "{minmax}");
}
