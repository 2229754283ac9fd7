//! `quantize`: from a model to an artifact without a run, by every method.

mod common;

use std::path::Path;

use common::{failure, succeed, succeed_json, train};

/// The nano teacher has learned one of these novels as well as the other.
const CALIBRATION: &str = "data/austen/pride-and-prejudice.txt";
const TEXT: &str = "data/austen/sense-and-sensibility.txt";

fn quantize(output: &Path, args: &[&str]) -> serde_json::Value {
    let output = output.to_str().unwrap();
    let calibrated = args.iter().any(|arg| ["importance", "gptq", "block"].contains(arg));
    let text = ["--calibration", CALIBRATION, "--calibration-tokens", "16384", "--calibration-ctx", "128"];
    let text = if calibrated { &text[..] } else { &[] };
    let fixed = ["quantize", "--model", "models/nano", "--output", output, "--json"];
    succeed_json(&mut train(&[&fixed, text, args].concat()))
}

fn perplexity(model: &Path) -> f64 {
    let model = model.to_str().unwrap();
    let args = ["eval", "--model", model, "--text", TEXT, "--ctx", "128", "--chunks", "20", "--json"];
    succeed_json(&mut train(&args))["perplexity"].as_f64().unwrap()
}

#[test]
fn each_method_is_better_than_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let of = |method: &str| {
        let output = folder.path().join(method);
        let result = quantize(&output, &["--bits", "2", "--group-size", "row", "--method", method]);
        assert!(result["bits_per_weight"].as_f64().unwrap() < 4.0, "{result}");
        perplexity(&output)
    };
    let full = perplexity(Path::new("models/nano"));
    let found = ["rtn", "search", "gptq", "block"].map(of);
    assert!(found.is_sorted_by(|a, b| *a > 1.02 * *b), "{found:?}");
    assert!(found[3] > 0.98 * full, "{found:?} {full}");
    let importance = of("importance");
    assert!(importance < found[1], "{importance} {found:?}");
}

#[test]
fn eight_bits_lose_nothing_and_every_grid_can_be_reconstructed() {
    let folder = tempfile::tempdir().unwrap();
    let full = perplexity(Path::new("models/nano"));
    let output = folder.path().join("artifact");
    quantize(&output, &["--bits", "8"]);
    let found = perplexity(&output);
    assert!((found / full - 1.0).abs() < 0.003, "{found} {full}");
    let grids: [&[&str]; 7] = [
        &["--bits", "1"],
        &["--bits", "1.58"],
        &["--scheme", "seq2"],
        &["--scheme", "nf4", "--group-size", "32", "--double-quant", "--rule", "*.down_proj=f32"],
        &["--bits", "2", "--zero-point"],
        &["--bits", "3", "--group-size", "tensor"],
        &[
            "--bits",
            "4",
            "--rule",
            "*.mlp.*=int8",
            "--rule",
            "layers.0.*=f32",
            "--group-size",
            "32",
            "--rule",
            "*.down_proj=f32",
        ],
    ];
    for grid in grids {
        let args = [grid, &["--method", "block", "--epochs", "1", "--layers", "2"]].concat();
        let args: Vec<&str> =
            if args.contains(&"--group-size") { args } else { [&args[..], &["--group-size", "row"]].concat() };
        quantize(&output, &args);
        let found = perplexity(&output);
        assert!(found > full && found < 400.0, "{grid:?}: {found}");
        succeed(&mut train(&[
            "eval",
            "--model",
            output.to_str().unwrap(),
            "--text",
            TEXT,
            "--ctx",
            "64",
            "--chunks",
            "1",
        ]));
    }
}

#[test]
fn scales_take_the_bytes_that_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, args: &[&str]| {
        let output = folder.path().join(name);
        let plan = ["--scheme", "nf4", "--group-size", "32", "--rule", "*.down_proj=f32", "--embedding", "nf4"];
        let result = quantize(&output, &[&plan, args].concat());
        let manifest = std::fs::read(output.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let quantization = &manifest["quantization"];
        assert_eq!(quantization["bytes"], result["bytes"]);
        (result["bytes"].as_u64().unwrap(), quantization["scale"]["dtype"].as_str().unwrap().to_string())
    };
    let (f32, f32_name) = of("f32", &["--scale-dtype", "f32"]);
    let (f16, f16_name) = of("f16", &[]);
    let (double, double_name) = of("double", &["--double-quant"]);
    assert_eq!([&f32_name[..], &f16_name, &double_name], ["float32", "float16", "int8"]);
    // Two bytes less a scale, and one more; then four for each 256 scales.
    let (halved, quartered) = (f32 - f16, f16 - double);
    assert!(halved == 2 * (halved / 2) && quartered < halved / 2 && quartered > halved / 2 - halved / 32);
    let [first, second, third] = ["f32", "f16", "double"].map(|name| perplexity(&folder.path().join(name)));
    assert!((second / first - 1.0).abs() < 0.01 && (third / first - 1.0).abs() < 0.01, "{first} {second} {third}");
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("artifact");
    let refused = |args: &[&str]| {
        let fixed = ["quantize", "--model", "models/nano", "--output", output.to_str().unwrap()];
        let message = failure(&train(&[&fixed, args].concat()).output().unwrap());
        assert!(!output.exists(), "{message}");
        message
    };
    assert!(refused(&["--bits", "4", "--method", "gptq"]).contains("--method gptq needs text: pass --calibration"));
    assert!(refused(&["--bits", "4", "--calibration", TEXT]).contains("--method search uses no text"));
    assert!(refused(&["--bits", "4", "--group-size", "64"]).contains("groups of 64 columns"));
    assert!(refused(&["--bits", "4", "--group-size", "48"]).contains("group_size = 48 is no multiple of 32"));
    let double = refused(&["--scheme", "nf4", "--group-size", "row", "--double-quant"]);
    assert!(double.contains("double_quant needs a group_size"), "{double}");
    assert!(refused(&["--bits", "1", "--zero-point"]).contains("no zero_point"));
    assert!(refused(&["--bits", "4", "--layers", "5"]).contains("has 4 blocks"));
    assert!(refused(&["--bits", "4", "--rule", "*.mlpp.*=int8"]).contains("`*.mlpp.*` matches no matrix"));
    assert!(refused(&["--bits", "4", "--rule", "int8"]).contains("--rule int8: expected GLOB=SCHEME"));
    let short = ["--bits", "4", "--method", "gptq", "--calibration", TEXT, "--calibration-tokens", "100"];
    assert!(refused(&short).contains("100 calibration tokens are no row of 512"));
}
