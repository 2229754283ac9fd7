//! Bad input: one line that names file and cause, exit code not 0, nothing half-written.

mod common;

use std::fs;
use std::path::Path;

use common::{failure, root, short_run, succeed, train};

const TEXT: &str = "data/austen/sense-and-sensibility.txt";

fn eval_failure(model: &Path, text: &str) -> String {
    failure(&train(&["eval", "--model", model.to_str().unwrap(), "--text", text, "--ctx", "64"]).output().unwrap())
}

/// Text of a folder's files: to see that nothing came or went.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().to_string()).collect();
    names.sort();
    names
}

/// A copy of the small teacher that can be spoiled.
fn copy_of_nano(folder: &Path) -> std::path::PathBuf {
    let copy = folder.join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(root().join("models/nano")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn missing_files() {
    let folder = tempfile::tempdir().unwrap();
    let message = eval_failure(&folder.path().join("gone.gguf"), TEXT);
    assert!(message.contains("gone.gguf"), "{message}");
    for name in ["models/nanoo", "models/gone.gguf", "../gone"] {
        let message = eval_failure(Path::new(name), TEXT);
        assert!(message.contains(&format!("{name}: no such file or folder")), "{message}");
    }
    let message = eval_failure(&root().join("models/nano"), "no-such-text.txt");
    assert!(message.contains("no-such-text.txt"), "{message}");
    let message = failure(&train(&["distill", "--config", "no-such.toml"]).output().unwrap());
    assert!(message.contains("no-such.toml"), "{message}");
    let run = folder.path().join("run");
    let args = short_run(&run, &["data.train=[\"no/such/folder\"]"]);
    let message = failure(&train(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap());
    assert!(message.contains("no/such/folder"), "{message}");
    assert!(listing(folder.path()).is_empty(), "{:?}", listing(folder.path()));
}

#[test]
fn truncated_models() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of_nano(folder.path());
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let message = eval_failure(&model, TEXT);
    assert!(message.contains("model.safetensors"), "{message}");

    let gguf = folder.path().join("cut.gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0\x05\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x04").unwrap();
    let message = eval_failure(&gguf, TEXT);
    assert!(message.contains("cut.gguf"), "{message}");
}

#[test]
fn a_truncated_artifact() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let args = short_run(&run, &["train.steps=1"]);
    succeed(&mut train(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    let weights = run.join("artifact/weights.npz");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1000]).unwrap();
    let message = eval_failure(&run.join("artifact"), TEXT);
    assert!(message.contains("weights.npz"), "{message}");
}

#[test]
fn wrong_keys_and_values_of_a_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("r.toml");
    let text = fs::read_to_string(root().join("recipes/quickstart.toml")).unwrap();
    fs::write(&recipe, text.replace("batch_size", "batchsize")).unwrap();
    let message = failure(&train(&["distill", "--config", recipe.to_str().unwrap()]).output().unwrap());
    let line = text.lines().position(|l| l.starts_with("batch_size")).unwrap() + 1;
    assert!(message.contains(&format!("r.toml:{line}:")) && message.contains("`batch_size`"), "{message}");

    let output = format!("output={}", folder.path().join("run").display());
    fs::write(&recipe, text.replace("layers.*", "layer.*")).unwrap();
    let arguments = ["distill", "--config", recipe.to_str().unwrap(), "--set", &output];
    let message = failure(&train(&arguments).output().unwrap());
    assert!(message.contains("r.toml: ") && message.contains("`layer.*` matches no matrix"), "{message}");

    let output = train(&["distill", "--config", "recipes/quickstart.toml", "--device", "tch"]).output().unwrap();
    if !cfg!(feature = "tch") {
        let message = failure(&output);
        assert!(message.contains("--features tch"), "{message}");
    }
}

#[test]
fn what_a_device_or_the_environment_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let of = |sets: &[&str]| {
        let args = short_run(&run, sets);
        train(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let message = failure(&of(&["train.precision=bfp12"]).args(["--device", "cuda:0"]).output().unwrap());
    assert!(message.contains("quickstart.toml: `train.precision`") && message.contains("cuda:0"), "{message}");
    for (name, value, known) in [("BITLLAMA_OPERATORS", "slow", "`plain`"), ("BITLLAMA_ISA", "sse9", "`scalar`")] {
        let message = failure(&of(&[]).env(name, value).output().unwrap());
        assert!(message.contains(&format!("{name}: unknown")), "{message}");
        assert!(message.contains(&format!("`{value}`")) && message.contains(known), "{message}");
    }
    assert!(listing(folder.path()).is_empty(), "{:?}", listing(folder.path()));
}

#[test]
fn models_whose_parts_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of_nano(folder.path());
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let with = |key: &str, value: usize| {
        let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
        json[key] = value.into();
        fs::write(model.join("config.json"), json.to_string()).unwrap();
    };
    with("intermediate_size", 400);
    let message = eval_failure(&model, TEXT);
    assert!(message.contains("mlp") && message.contains("400"), "{message}");

    // A tokenizer with one token more than the model.
    fs::write(model.join("config.json"), &config).unwrap();
    let tokenizer = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let mut token = json["added_tokens"][0].clone();
    (token["id"], token["content"]) = (1024.into(), "<|one too many|>".into());
    json["added_tokens"].as_array_mut().unwrap().push(token);
    fs::write(model.join("tokenizer.json"), json.to_string()).unwrap();
    let message = eval_failure(&model, TEXT);
    assert!(message.contains("1025 tokens") && message.contains("1024"), "{message}");

    // JSON, but no tokenizer.
    json["decoder"] = 5.into();
    fs::write(model.join("tokenizer.json"), json.to_string()).unwrap();
    let message = eval_failure(&model, TEXT);
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn empty_text() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, " \n").unwrap();
    let message = eval_failure(&root().join("models/nano"), empty.to_str().unwrap());
    assert!(message.contains("empty.txt"), "{message}");
    let run = folder.path().join("run");
    let args = short_run(&run, &[&format!("data.train=[\"{}\"]", empty.display())]);
    let message = failure(&train(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap());
    assert!(message.contains("empty.txt"), "{message}");
    assert!(!run.exists());
}

#[test]
fn a_loss_that_is_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let fail = |sets: &[&str], flags: &[&str]| {
        let args = short_run(&run, sets);
        failure(&train(&args.iter().map(String::as_str).collect::<Vec<_>>()).args(flags).output().unwrap())
    };
    let message = fail(&["distill.temperature=1e-38"], &[]);
    assert!(message.contains("step 1: the divergence is NaN"), "{message}");
    assert!(message.contains("no weight has moved yet") && message.contains("there is no checkpoint yet"), "{message}");

    let args = short_run(&run, &["train.steps=3"]);
    succeed(&mut train(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    let message = fail(&["train.lr=1e37", "train.steps=9", "train.checkpoint_every=9"], &["--resume"]);
    // Which number overflows first depends on the operators.
    assert!(message.contains("step 5: the ") && message.contains("step-000003"), "{message}");
}

/// A disk of 4 MB, where user namespaces allow to make one; the latent weights of a checkpoint alone take more.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let run = disk.join("run");
    let args = short_run(&run, &[&format!("data.cache={}", folder.path().join("cache").display())]);
    let quoted: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    let script = format!(
        "mount -t tmpfs -o size=4m tmpfs '{disk}' || exit 99; '{}' {}; code=$?; find '{disk}' | sort >'{}'; exit $code",
        env!("CARGO_BIN_EXE_bitllama-train"),
        quoted.join(" "),
        folder.path().join("listing").display(),
        disk = disk.display(),
    );
    let output = std::process::Command::new("unshare").args(["-rm", "sh", "-c", &script]).current_dir(root()).output();
    let Ok(output) = output else { return eprintln!("skipped: no `unshare` here") };
    let listing = fs::read_to_string(folder.path().join("listing"));
    if output.status.code() == Some(99) || listing.is_err() {
        return eprintln!("skipped: no user namespace here: {}", String::from_utf8_lossy(&output.stderr));
    }
    let message = failure(&output);
    assert!(message.contains("checkpoints") && message.contains("No space left"), "{message}");
    let listing = listing.unwrap();
    assert!(!listing.contains("step-") && !listing.contains('~'), "half-written files stay: {listing}");
}
