//! `export`: what a run or an artifact becomes in other formats, and what is refused.

mod common;

use std::fs;
use std::path::Path;

use bitllama_core::weights::specs;
use bitllama_formats::gguf::Gguf;
use bitllama_formats::{StoredWeight, model};
use bitllama_runtime::{LogitsOf, Settings, open};
use common::{failure, run_json, short_run, succeed, succeed_json, train};
use serde_json::Value;

fn export(from: &Path, to: &str, output: &Path, more: &[&str]) -> std::process::Command {
    let [from, output] = [from, output].map(|path| path.to_str().unwrap());
    train(&[&["export", "--from", from, "--to", to, "--output", output], more].concat())
}

/// The types of a GGUF's matrices of blocks by `export --json`, but for `down_proj`, whose 432 columns no type of blocks has.
fn types(report: &Value) -> Vec<String> {
    let tensors = report["tensors"].as_array().unwrap().iter();
    let of_blocks = tensors.filter(|tensor| {
        let name = tensor["tensor"].as_str().unwrap();
        name.starts_with("blk.") && !name.contains("norm") && !name.contains("ffn_down")
    });
    let mut types: Vec<String> = of_blocks.map(|tensor| tensor["type"].as_str().unwrap().to_string()).collect();
    types.sort_unstable();
    types.dedup();
    types
}

/// Logits of a few tokens, with activations as `bitllama run` rounds them.
fn logits(path: &Path) -> Vec<f32> {
    let decoder = open(path).unwrap().decoder;
    let decoder = decoder.with_settings(Settings::fast());
    decoder.forward(&[5, 17, 200, 3, 77], &mut decoder.new_cache(), LogitsOf::All).unwrap().to_vec()
}

#[test]
fn a_student_trained_on_a_grid_of_gguf_is_the_same_from_the_artifact_and_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (target, method, expected) in [
        ("q4_0", "lsq", "Q4_0"),
        ("iq4_nl", "lsq", "IQ4_NL"),
        ("q5_0", "minmax", "Q5_0"),
        ("q4_1", "lsq", "Q4_1"),
        ("q5_1", "minmax", "Q5_1"),
    ] {
        let run = folder.path().join(target);
        let bits = format!("bits.layers.*={{ scheme = \"gguf:{target}\", method = \"{method}\" }}");
        run_json(&short_run(&run, &[&bits, "bits.embed_tokens=gguf:q8_0"]));
        let file = folder.path().join(format!("{target}.gguf"));
        let report = succeed_json(&mut export(&run, "gguf", &file, &["--exact", "--json"]));
        assert_eq!(types(&report), [expected], "{target}");
        assert!(logits(&run.join("artifact")) == logits(&file), "{target}: other logits");
        // The plan is in the run's recipe under the name that it was given.
        assert!(fs::read_to_string(run.join("recipe.toml")).unwrap().contains(&format!("gguf:{target}")));
        // Another export of the run replaces the file, which is on record by what it says about itself.
        succeed(&mut export(&run, "gguf", &file, &[]));
        assert!(Gguf::open(&file).unwrap().text("bitllama.provenance").unwrap().is_some());
    }
}

#[test]
fn a_recipe_names_what_its_student_is_exported_to() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let sets = ["bits.layers.*=gguf:q4_0", "bits.embed_tokens=gguf:q8_0", r#"export=["gguf", "hf", "gguf:q8_0"]"#];
    run_json(&short_run(&run, &sets));
    for file in ["student.gguf", "student-q8_0.gguf"] {
        assert!(logits(&run.join("artifact")) == logits(&run.join(file)), "{file}: other logits");
    }
    let [student, artifact] = ["student-hf", "artifact"].map(|name| model::open(&run.join(name)).unwrap());
    for spec in specs(&artifact.config) {
        assert!(student.weights.read(&spec).unwrap() == artifact.weights.read(&spec).unwrap(), "{}", spec.name);
    }
    // A new run in its place replaces them, as all that is the run's.
    let again: Vec<String> = short_run(&run, &sets).into_iter().chain(["--overwrite".to_string()]).collect();
    run_json(&again);
    let unknown = short_run(&folder.path().join("other"), &[r#"export=["gguf:q9"]"#]);
    let message = failure(&train(&unknown.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap());
    assert!(message.contains("expected one of artifact, v2, apl"), "{message}");
}

#[test]
fn quick_rounds_measures_and_runs_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let quick = |output: &Path, more: &[&str]| {
        let [model, output] = [&*nano, output].map(|path| path.to_str().unwrap().to_string());
        train(&[&["quick", &model, "--output", &output, "-n", "8"], more].concat())
    };
    let artifact = folder.path().join("artifact");
    let report = succeed_json(quick(&artifact, &["--json"]).arg("--bits").arg("8"));
    let perplexity = |at: &str| report[at]["perplexity"]["perplexity"].as_f64().unwrap();
    assert!((perplexity("after") / perplexity("before") - 1.0).abs() < 0.05, "{report}");
    assert!(
        report["after"]["bits_per_weight"].as_f64().unwrap() < report["before"]["bits_per_weight"].as_f64().unwrap()
    );
    assert!(report["train"].as_str().unwrap().contains("distill --config"));
    model::open(&artifact).unwrap();
    // Rounded to the grid of the format, and written in it.
    let file = folder.path().join("nano.gguf");
    let text = succeed(&mut quick(&file, &["--to", "gguf:q8_0"]));
    assert!(text.contains("bits per weight") && text.contains("tokens/s"), "{text}");
    assert!(Gguf::open(&file).is_ok());
    let message = failure(&train(&["quick", "no-such-model"]).output().unwrap());
    assert!(message.contains("no such file or folder, and no hub id"), "{message}");
}

#[test]
fn every_way_from_a_model_to_a_gguf_gives_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let quantize = |to: &str, output: &Path| {
        let output = output.to_str().unwrap();
        let args =
            ["quantize", "--model", "models/nano", "--scheme", "gguf:q5_0", "--to", to, "--exact", "--output", output];
        succeed(&mut train(&args));
    };
    quantize("artifact", &path("artifact"));
    quantize("gguf", &path("direct.gguf"));
    succeed(&mut export(&path("artifact"), "gguf", &path("artifact.gguf"), &["--exact"]));
    succeed(&mut export(&path("direct.gguf"), "hf", &path("hf"), &[]));
    succeed(&mut export(&path("hf"), "gguf", &path("f32.gguf"), &["--dtype", "f32", "--exact"]));
    let all =
        ["artifact", "direct.gguf", "artifact.gguf", "hf", "f32.gguf"].map(|name| model::open(&path(name)).unwrap());
    for spec in bitllama_core::weights::specs(&all[0].config) {
        let [first, others @ ..] = all.each_ref().map(|model| model.weights.read(&spec).unwrap());
        assert!(others.iter().all(|other| *other == first), "{}", spec.name);
    }
    let text = "The quick brown fox, 1234 times; isn't it?\n";
    let ids = all.each_ref().map(|model| model.tokenizer.encode(text, true).unwrap().get_ids().to_vec());
    assert!(ids.iter().all(|other| *other == ids[0]), "{ids:?}");
}

#[test]
fn what_a_file_cannot_hold_is_said_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (artifact, file) = (folder.path().join("artifact"), folder.path().join("student.gguf"));
    let args = ["quantize", "--model", "models/nano", "--bits", "4", "--scale-dtype", "f32", "--output"];
    succeed(&mut train(&[&args[..], &[artifact.to_str().unwrap()]].concat()));
    let message = failure(&export(&artifact, "gguf", &file, &["--exact"]).output().unwrap());
    assert!(message.contains("would not be exact in") && message.contains("use scale_dtype"), "{message}");
    assert!(!file.exists());
    let report = succeed_json(&mut export(&artifact, "gguf", &file, &["--json"]));
    let lossy = report["tensors"].as_array().unwrap().iter().find(|tensor| tensor["type"] == "Q4_0").unwrap();
    assert!(lossy["error"].as_f64().unwrap() > 0.0 && !lossy["remark"].is_null(), "{lossy}");

    // A file that is not ours stays, and so does a folder.
    let foreign = folder.path().join("foreign.gguf");
    fs::write(&foreign, "notes").unwrap();
    let message = failure(&export(&artifact, "gguf", &foreign, &[]).output().unwrap());
    assert!(message.contains("a file stands here that this program did not write"), "{message}");
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "notes");
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    let message = failure(&export(&artifact, "gguf", &taken, &[]).output().unwrap());
    assert!(message.contains("a folder stands here"), "{message}");
    let message = failure(&export(&artifact, "v2", &folder.path().join("v2"), &["--dtype", "f16"]).output().unwrap());
    assert!(message.contains("--dtype is of no use with --to artifact, v2 and apl"), "{message}");
}

#[test]
fn students_trained_on_grids_of_directories_are_repacked_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["gptq", "compressed-tensors"] {
        let run = folder.path().join(format);
        let bits = format!("bits.layers.*={{ scheme = \"{format}:int4\", method = \"lsq\" }}");
        run_json(&short_run(&run, &[&bits, "bits.embed_tokens=f32"]));
        let packed = folder.path().join(format!("{format}-packed"));
        let report = succeed_json(&mut export(&run, format, &packed, &["--exact", "--json"]));
        let tensors = report["tensors"].as_array().unwrap();
        assert!(tensors.iter().all(|tensor| tensor["error"] == 0.0));
        // Four layers; 432 columns of `down_proj` are no whole groups.
        assert_eq!(tensors.iter().filter(|tensor| tensor["type"] == "int4 g32").count(), 4 * 6);
        let artifact = model::open(&run.join("artifact")).unwrap();
        let back = model::open(&packed).unwrap();
        for spec in bitllama_core::weights::specs(&back.config) {
            let [written, found] = [&artifact, &back].map(|model| model.weights.stored(&spec).unwrap());
            match &written {
                // Codes, scales and all.
                StoredWeight::Packed(_) => assert!(written == found, "{format}: {}", spec.name),
                _ => assert!(written.into_values() == found.into_values(), "{format}: {}", spec.name),
            }
        }
        assert!(logits(&run.join("artifact")) == logits(&packed), "{format}: other logits");
        // Another export replaces the folder, which is on record.
        succeed(&mut export(&run, format, &packed, &[]));
    }
}

#[test]
fn each_format_of_packed_weights_is_written_and_replaced_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let quantize = |scheme: &str, to: &str, output: &Path| {
        let output = output.to_str().unwrap();
        let args =
            ["quantize", "--model", "models/nano", "--scheme", scheme, "--to", to, "--exact", "--output", output];
        succeed(&mut train(&args))
    };
    let text = quantize("mlx:int6", "mlx", &path("mlx"));
    assert!(text.contains("affine6 g32"), "{text}");
    let message = failure(&export(&path("mlx"), "hf", &path("hf"), &[]).output().unwrap());
    assert!(message.contains("weights that MLX packed are not supported"), "{message}");
    quantize("gptq:int3", "gptq:v2", &path("gptq"));
    quantize("bitnet:i2_s", "bitnet", &path("bitnet"));
    let bitnet = model::open(&path("bitnet")).unwrap();
    assert_eq!(bitnet.activations.inputs.len(), 4 * 7);
    // The student is the same from format to format.
    succeed(&mut export(&path("bitnet"), "artifact", &path("artifact"), &["--exact"]));
    succeed(&mut export(&path("artifact"), "bitnet", &path("bitnet"), &["--exact"]));
    assert!(logits(&path("artifact")) == logits(&path("bitnet")));
    let message =
        failure(&export(&path("artifact"), "mlx", &path("half"), &["--dtype", "bf16", "--exact"]).output().unwrap());
    assert!(message.contains("would not be exact in"), "{message}");
    let message = failure(&export(&path("gptq"), "bitnet", &path("none"), &[]).output().unwrap());
    assert!(
        message.contains("no matrix of the model can be packed in the format (the matrix has several scales"),
        "{message}"
    );
    assert!(!path("none").exists() && !path("half").exists());
    let message = failure(&export(&path("gptq"), "awq", &path("none"), &[]).output().unwrap());
    assert!(message.contains("compressed-tensors, gptq, gptq:v2, mlx, bitnet"), "{message}");
}

#[test]
fn every_way_from_a_model_to_onnx_gives_the_same_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let quantize = |to: &str, output: &Path| {
        let output = output.to_str().unwrap();
        let args =
            ["quantize", "--model", "models/nano", "--bits", "1.58", "--group-size", "row", "--to", to, "--exact"];
        succeed_json(&mut train(&[&args[..], &["--output", output, "--json"]].concat()))
    };
    quantize("artifact", &path("artifact"));
    let direct = quantize("onnx", &path("direct"));
    let exported = succeed_json(&mut export(&path("artifact"), "onnx", &path("exported"), &["--exact", "--json"]));
    assert_eq!(direct["tensors"], exported["tensors"]);
    for tensor in direct["tensors"].as_array().unwrap() {
        let name = tensor["tensor"].as_str().unwrap();
        let expected = match name {
            _ if name.contains("norm") => "FLOAT",
            "embed_tokens.weight" => "NBITS8",
            _ => "NBITS2",
        };
        assert_eq!((&tensor["type"], &tensor["error"]), (&expected.into(), &0.0.into()), "{name}");
    }
    for file in ["model.onnx.data", "genai_config.json", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(
            fs::read(path("direct").join(file)).unwrap() == fs::read(path("exported").join(file)).unwrap(),
            "{file}"
        );
    }
    // The origin is in the graph; the same command writes the same bytes, over what it wrote before.
    let graph = || fs::read(path("exported").join("model.onnx")).unwrap();
    let first = graph();
    succeed(&mut export(&path("artifact"), "onnx", &path("exported"), &[]));
    assert!(first == graph());
    assert!(String::from_utf8_lossy(&first).contains("MatMulNBits"));
    let report = succeed_json(&mut export(&path("artifact"), "onnx", &path("exported"), &["--opset-only", "--json"]));
    let types: Vec<_> = report["tensors"].as_array().unwrap().iter().map(|tensor| &tensor["type"]).collect();
    assert!(types.contains(&&"INT4".into()) && types.contains(&&"INT8".into()), "{types:?}");
    assert!(!String::from_utf8_lossy(&graph()).contains("com.microsoft"));
}

#[test]
fn a_trained_student_becomes_an_onnx_folder_and_what_is_wrong_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (run, onnx) = (folder.path().join("run"), folder.path().join("onnx"));
    let bits = "bits.layers.*={ scheme = \"int4\", scale_dtype = \"f16\" }";
    run_json(&short_run(&run, &[bits, "bits.embed_tokens=f32"]));
    let report = succeed_json(&mut export(&run, "onnx", &onnx, &["--exact", "--json"]));
    let types: Vec<_> = report["tensors"].as_array().unwrap().iter().map(|tensor| &tensor["type"]).collect();
    assert!(types.contains(&&"NBITS4".into()), "{types:?}");
    let message = failure(&export(&onnx, "hf", &folder.path().join("hf"), &[]).output().unwrap());
    assert!(message.contains("has model.onnx, which is written and not read"), "{message}");
    let message = failure(&export(&run, "hf", &folder.path().join("hf"), &["--opset-only"]).output().unwrap());
    assert!(message.contains("--opset-only is of use with --to onnx only"), "{message}");
    let message = failure(&export(&run, "onnx", &onnx, &["--dtype", "f16", "--exact"]).output().unwrap());
    assert!(message.contains("embed_tokens.weight would not be exact in FLOAT16"), "{message}");
    assert!(onnx.join("model.onnx").is_file(), "the folder of before stays");
    fs::write(onnx.join("notes.txt"), "mine").unwrap();
    let message = failure(&export(&run, "onnx", &onnx, &[]).output().unwrap());
    assert!(message.contains("notes.txt"), "{message}");
}
