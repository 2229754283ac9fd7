//! Every family against `transformers`: tiny models of `golden/make_families.py`, the same as GGUFs of `golden/make_family_ggufs.py`. Logits and
//! greedy text of the runtime and of Burn, a written directory, an artifact; and what is refused.
//!
//! Each test goes through all models and lists what failed, all together.

mod common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bitllama_core::rounding::StoredScales;
use bitllama_core::weights::specs;
use bitllama_core::{BitPlan, Quantizer, Scheme};
use bitllama_formats::{Model, hf, model};
use bitllama_nn::fake_quant::quantize;
use bitllama_nn::ops::composed;
use bitllama_nn::weights::Weights;
use bitllama_runtime::evaluate::LogitModel;
use bitllama_runtime::{Decoder, LogitsOf};
use bitllama_train::evaluate::Scored;
use bitllama_train::export::{self, Format};
use bitllama_train::models::to_device;
use burn::module::Module;
use burn::tensor::Device;
use serde::Deserialize;
use serde_json::{Value, json};

/// The largest difference, relative to the largest logit where that is above 1.
const TOLERANCE: f32 = 1e-3;
/// GGUFs with the logits of another model's folder: the converter's file with its metadata put another way.
const SAME: [(&str, &str); 2] = [("llama_factor_without_type", "llama_linear"), ("llama_scale_linear", "llama_linear")];

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    greedy: Greedy,
}

/// A sequence with its logits at some positions.
#[derive(Deserialize)]
struct Case {
    input_ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

/// A prefix with the tokens of the largest logits that follow.
#[derive(Deserialize)]
struct Greedy {
    prefix: Vec<u32>,
    tokens: Vec<u32>,
}

fn families() -> PathBuf {
    common::root().join("tests/golden/families")
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Names of the entries of the golden folder that `keep` makes a name of, sorted.
fn names(keep: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let entries = fs::read_dir(families()).unwrap();
    let mut names: Vec<String> = entries.filter_map(|entry| keep(&entry.unwrap().path())).collect();
    names.sort();
    names
}

fn folders() -> Vec<String> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_string());
    names(|path| path.join("expected.json").is_file().then(|| name(path))?)
}

fn ggufs() -> Vec<String> {
    let name = |path: &Path| Some(path.file_stem()?.to_str()?.to_string());
    names(|path| path.extension().is_some_and(|extension| extension == "gguf").then(|| name(path))?)
}

fn expected(name: &str) -> Expected {
    read_json(&families().join(name).join("expected.json"))
}

/// What a GGUF is expected to give: figures of its own, where the format has no place for a part of the config, or those of a folder.
fn expected_of_gguf(name: &str) -> Expected {
    let own = families().join(format!("{name}.gguf.json"));
    match own.is_file() {
        true => read_json(&own),
        false => expected(SAME.iter().find(|(gguf, _)| *gguf == name).map_or(name, |(_, folder)| folder)),
    }
}

/// The folder of a golden model as a model directory, which takes the tokenizer that all share, with `config` as its config.
fn directory(parent: &Path, name: &str, config: &Value) -> PathBuf {
    let folder = parent.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::copy(families().join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let weights = families().join(name).join("model.safetensors");
    if weights.is_file() {
        fs::copy(weights, folder.join("model.safetensors")).unwrap();
    }
    folder
}

fn config(name: &str, file: &str) -> Value {
    read_json(&families().join(name).join(file))
}

/// The golden folder `name`, opened with its `config.json`.
fn open(name: &str) -> Result<Model> {
    let folder = tempfile::tempdir()?;
    Ok(model::open(&directory(folder.path(), name, &config(name, "config.json")))?)
}

/// What is to be checked by itself, and what it says when it fails; panics count.
struct Failures(Vec<String>);

impl Failures {
    fn check(&mut self, case: &str, check: impl FnOnce() -> Result<()>) {
        let result = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            let message = panic.downcast_ref::<String>().cloned();
            let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(anyhow::anyhow!("panicked: {}", message.unwrap_or_default()))
        });
        if let Err(error) = result {
            self.0.push(format!("{case}: {error:#}"));
        }
    }

    fn none(self) {
        assert!(self.0.is_empty(), "{} failed:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// Holds the logits of all positions from `first` on against those of `case`.
fn same_logits(way: &str, got: &[f32], case: &Case, first: usize) -> Result<()> {
    let vocab = case.logits[0].len();
    ensure!(got.len() == (case.input_ids.len() - first) * vocab, "{way}: {} logits", got.len());
    let scale = case.logits.iter().flatten().fold(1f32, |largest, logit| largest.max(logit.abs()));
    for (position, expected) in case.positions.iter().zip(&case.logits).filter(|(position, _)| **position >= first) {
        let got = &got[(position - first) * vocab..][..vocab];
        let largest = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let tokens = case.input_ids.len();
        ensure!(
            largest < TOLERANCE * scale,
            "{way}: off by {largest:.1e} at position {position} of {tokens} (logits up to {scale:.1})"
        );
    }
    Ok(())
}

/// Tokens of a sequence that the first of several passes must have, so that all of them rotate alike: longrope takes its long factors
/// for all positions once the context is longer than the original one.
fn first_pass(config: &Value, case: &Case) -> usize {
    let rope = ["rope_parameters", "rope_scaling"].iter().find_map(|key| config[*key].as_object());
    let long = rope.is_some_and(|rope| rope.contains_key("long_factor"));
    let original = rope.and_then(|rope| rope.get("original_max_position_embeddings"));
    let original = original.or(config.get("original_max_position_embeddings")).and_then(Value::as_u64).unwrap_or(0);
    if long && case.input_ids.len() > original as usize { original as usize + 1 } else { 1 }
}

/// The runtime: in one pass, in two, token by token, greedy.
fn check_runtime(decoder: &Decoder, expected: &Expected, config: &Value) -> Result<()> {
    for case in &expected.cases {
        let ids = &case.input_ids;
        let logits = decoder.forward(ids, &mut decoder.new_cache_for(ids.len()), LogitsOf::All)?;
        same_logits("one pass", &logits, case, 0)?;

        let first = first_pass(config, case);
        let middle = (ids.len() / 2 + 1).max(first);
        for (way, passes) in
            [("two passes", vec![middle, ids.len() - middle]), ("token by token", vec![1; ids.len() - first])]
        {
            let passes = if way == "two passes" { passes } else { [vec![first], passes].concat() };
            let (mut cache, mut logits, mut done) = (decoder.new_cache_for(ids.len()), Vec::new(), 0);
            for tokens in passes {
                logits.extend(decoder.forward(&ids[done..done + tokens], &mut cache, LogitsOf::All)?);
                done += tokens;
            }
            same_logits(way, &logits, case, 0)?;
        }
    }
    let Greedy { prefix, tokens } = &expected.greedy;
    let longest = prefix.len() + tokens.len();
    let (mut cache, mut next, mut found) = (decoder.new_cache_for(longest), prefix.clone(), Vec::new());
    for _ in tokens {
        let logits = decoder.forward(&next, &mut cache, LogitsOf::Last)?;
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).context("no logits")?;
        next = vec![best as u32];
        found.push(best as u32);
    }
    ensure!(found == *tokens, "greedy text {found:?}, {tokens:?} expected");
    Ok(())
}

/// Burn, with fused operators and with composed ones.
fn check_burn(source: &Model, expected: &Expected) -> Result<()> {
    let device = Device::flex();
    let mut burn = Scored::new(&to_device(source, &device)?, &device);
    for case in &expected.cases {
        let mut logits = || burn.logits(&case.input_ids).map_err(|error| anyhow::anyhow!("{error}"));
        same_logits("fused", &logits()?, case, 0)?;
        same_logits("composed", &composed(logits)?, case, 0)?;
    }
    Ok(())
}

#[test]
fn every_family_gives_the_logits_and_the_text_of_transformers() {
    let parent = tempfile::tempdir().unwrap();
    let mut failures = Failures(Vec::new());
    assert!(folders().len() >= 30, "{:?}", folders());
    for name in folders() {
        let expected = expected(&name);
        for spelling in ["config.json", "config_4.json"] {
            let config = config(&name, spelling);
            let opened = || anyhow::Ok(model::open(&directory(parent.path(), &name, &config))?);
            failures.check(&format!("{name} {spelling} in the runtime"), || {
                check_runtime(&Decoder::from_model(&opened()?)?, &expected, &config)
            });
            failures.check(&format!("{name} {spelling} in Burn"), || check_burn(&opened()?, &expected));
        }
    }
    failures.none();
}

#[test]
fn every_gguf_gives_the_logits_and_the_text_of_transformers() {
    let mut failures = Failures(Vec::new());
    assert!(ggufs().len() >= 20, "{:?}", ggufs());
    for name in ggufs() {
        let (path, expected) = (families().join(format!("{name}.gguf")), expected_of_gguf(&name));
        let config = families().join(&name).join("config.json");
        let config = if config.is_file() { read_json(&config) } else { Value::Null };
        failures.check(&format!("{name}.gguf in the runtime"), || {
            check_runtime(&Decoder::from_model(&model::open(&path)?)?, &expected, &config)
        });
        failures.check(&format!("{name}.gguf in Burn"), || check_burn(&model::open(&path)?, &expected));
    }
    failures.none();
}

/// All weights of a model in the order of its config.
fn weights(model: &Model) -> Result<Vec<(String, Vec<f32>)>> {
    specs(&model.config).into_iter().map(|spec| Ok((spec.name.clone(), model.weights.read(&spec)?))).collect()
}

/// Writes a model as a directory into `path`, in f32.
fn save(path: &Path, source: &Model) -> Result<()> {
    let weights: Result<Vec<_>> =
        specs(&source.config).into_iter().map(|spec| Ok((spec.clone(), source.weights.read(&spec)?))).collect();
    Ok(hf::save(path, &source.config, weights?, source.tokenizer_files(), hf::Dtype::F32)?)
}

#[test]
fn a_written_directory_is_the_same_model() {
    let parent = tempfile::tempdir().unwrap();
    let mut failures = Failures(Vec::new());
    let mut check = |name: &str, open: &dyn Fn() -> Result<Model>| {
        failures.check(name, || {
            let (source, path) = (open()?, parent.path().join(name));
            save(&path, &source)?;
            let again = model::open(&path)?;
            ensure!(again.config == source.config, "config {:?}, {:?} expected", again.config, source.config);
            ensure!(weights(&again)? == weights(&source)?, "other weights");
            Ok(())
        });
    };
    for name in folders() {
        check(&name, &|| open(&name));
    }
    for name in ggufs() {
        check(&format!("{name}.gguf"), &|| Ok(model::open(&families().join(format!("{name}.gguf")))?));
    }
    failures.none();
}

/// `scripts/check-other-tools.sh` runs this, and `python/check_families.py` over what it writes.
#[test]
#[ignore = "needs BITLLAMA_CHECK_DIR, the folder that it writes into"]
fn writes_for_the_python_checker() {
    let folder = PathBuf::from(std::env::var_os("BITLLAMA_CHECK_DIR").unwrap());
    for name in folders() {
        save(&folder.join(&name), &open(&name).unwrap()).unwrap();
    }
    for name in ggufs() {
        let source = model::open(&families().join(format!("{name}.gguf"))).unwrap();
        save(&folder.join(format!("{name}.gguf")), &source).unwrap();
    }
}

/// Logits of all cases by a model behind the trait of evaluation.
fn logits(model: &mut dyn LogitModel, expected: &Expected) -> Result<Vec<Vec<f32>>> {
    let cases = expected.cases.iter();
    cases.map(|case| model.logits(&case.input_ids).map_err(|error| anyhow::anyhow!("{error}"))).collect()
}

/// Exports the fake-quantized model and holds the artifact against it: weights to the bit, logits of the runtime.
fn check_artifact(path: &Path, source: &Model, plan: Option<Quantizer>, expected: &Expected) -> Result<()> {
    let device = Device::flex();
    let rules = plan.map(BitPlan::uniform).unwrap_or(BitPlan::new([])?);
    let plan = rules.resolve(&source.config)?;
    let student = quantize(to_device(source, &device)?, &plan, &StoredScales::new());
    export::student(Format::Artifact, path, &student, &plan, source.tokenizer_files(), json!({}))?;

    let artifact = model::open(path)?;
    let rounded = student.clone().valid().materialize();
    let rounded = Weights::of(&rounded);
    for spec in specs(&source.config) {
        ensure!(rounded.read(&spec) == artifact.weights.read(&spec)?, "{} is not what was exported", spec.name);
    }
    let mut runtime = bitllama_runtime::open(path)?.decoder;
    let of_burn = logits(&mut Scored::new(&student, &device), expected)?;
    let of_runtime = logits(&mut runtime, expected)?;
    for (burn, runtime) in of_burn.iter().zip(&of_runtime) {
        let scale = burn.iter().fold(1f32, |largest, logit| largest.max(logit.abs()));
        let largest = burn.iter().zip(runtime).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        ensure!(largest < TOLERANCE * scale, "the runtime is off by {largest:.1e} from the student");
    }
    if plan.iter().all(|(_, quantizer)| quantizer.is_none()) {
        for (case, logits) in expected.cases.iter().zip(&of_runtime) {
            same_logits("in full precision", logits, case, 0)?;
        }
    }
    Ok(())
}

#[test]
fn an_artifact_is_its_fake_quantized_model() {
    let parent = tempfile::tempdir().unwrap();
    let mut failures = Failures(Vec::new());
    // A student already: its inputs are rounded for its own ternary matrices, and matrices in full precision read theirs as they are.
    for name in folders().into_iter().filter(|name| name != "bitnet_packed") {
        let expected = expected(&name);
        for (plan, quantizer) in [
            ("f32", None),
            ("int8", Some(Scheme::Int8)),
            ("int4", Some(Scheme::Int4)),
            ("ternary", Some(Scheme::Ternary)),
        ] {
            let path = parent.path().join(format!("{name}-{plan}"));
            failures.check(&format!("{name} in {plan}"), || {
                check_artifact(&path, &open(&name)?, quantizer.map(Quantizer::from), &expected)
            });
        }
    }
    failures.none();
}

/// The error of a directory with this config, which must have all the words.
fn check_refused(name: &str, config: &Value, words: &[&str]) -> Result<()> {
    let parent = tempfile::tempdir()?;
    let Err(error) = model::open(&directory(parent.path(), name, config)) else { anyhow::bail!("it opens") };
    let message = error.to_string();
    ensure!(!message.contains('\n'), "several lines: {message}");
    ensure!(message.contains("config.json"), "it does not name the file: {message}");
    for word in words {
        ensure!(message.contains(word), "it does not name {word}: {message}");
    }
    Ok(())
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let mut failures = Failures(Vec::new());
    let families: [(&str, &[&str]); 5] = [
        ("mixtral", &["mixtral", "experts"]),
        ("qwen3_moe", &["qwen3_moe", "experts"]),
        ("deepseek_v2", &["deepseek_v2", "experts"]),
        ("deepseek_v3", &["deepseek_v3", "experts"]),
        ("gemma3", &["model_type", "gemma3"]),
    ];
    for (name, words) in families {
        let config = config(&format!("refused/{name}"), "config.json");
        failures.check(name, || check_refused(name, &config, words));
    }
    let rope = |parameters: Value| json!({ "rope_parameters": parameters });
    let changes: [(&str, Value, &str); 16] = [
        // transformers leaves it out of account in a Llama, other programs do not.
        ("llama_mha", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("llama_mha", rope(json!({"rope_type": "proportional", "rope_theta": 500.0})), "proportional"),
        ("llama_mha", rope(json!({"rope_type": "ntk", "rope_theta": 500.0, "factor": 2.0})), "ntk"),
        ("llama_mha", json!({"hidden_act": "quick_gelu"}), "quick_gelu"),
        ("llama_mha", json!({"num_local_experts": 4}), "num_local_experts"),
        ("llama_mha", json!({"quantization_config": {"quant_method": "awq", "bits": 4}}), "awq"),
        ("llama_mha", json!({"attn_logit_softcapping": 30.0}), "attn_logit_softcapping"),
        ("llama_mha", json!({"embedding_multiplier": 12.0}), "embedding_multiplier"),
        ("llama_mha", json!({"sliding_window": 8}), "sliding_window"),
        ("olmo2", json!({"clip_qkv": 8.0}), "clip_qkv"),
        ("qwen2", json!({"layer_types": ["chunked_attention", "full_attention"]}), "chunked_attention"),
        ("gemma2", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma3_text", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma2", json!({"layer_types": ["full_attention"]}), "layer_types"),
        ("smollm3", json!({"no_rope_layers": [1]}), "no_rope_layers"),
        ("llama_mha", json!({"model_type": "mamba"}), "mamba"),
    ];
    for (name, change, word) in changes {
        let config = merged(config(name, "config.json"), &change);
        failures.check(&format!("{name} with {change}"), || check_refused(name, &config, &[word]));
    }
    failures.none();
}

fn merged(mut config: Value, change: &Value) -> Value {
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn spellings_that_change_nothing_are_read() {
    let mut failures = Failures(Vec::new());
    let changes = [
        (
            "llama_mha",
            json!({"hidden_act": "swish", "pretraining_tp": 2, "attention_dropout": 0.1, "use_cache": false}),
        ),
        ("llama_mha", json!({"partial_rotary_factor": 1.0, "quantization_config": null, "sliding_window": null})),
        ("llama_mha", json!({"attn_logit_softcapping": null, "num_local_experts": 0, "some_note": "of its author"})),
        ("mistral_null_window", json!({"sliding_window": 64})),
        ("qwen2", json!({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0})),
        (
            "qwen3",
            json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 0, "layer_types": null}),
        ),
        ("gemma", json!({"hidden_act": "gelu"})),
        ("phi4mini", json!({"sliding_window": 262144})),
    ];
    for (name, change) in changes {
        let config = merged(config(name, "config.json"), &change);
        failures.check(&format!("{name} with {change}"), || {
            let parent = tempfile::tempdir()?;
            let source = model::open(&directory(parent.path(), name, &config))?;
            check_runtime(&Decoder::from_model(&source)?, &expected(name), &config)
        });
    }
    failures.none();
}

#[test]
fn a_folder_in_an_older_form_says_what_to_do() {
    let parent = tempfile::tempdir().unwrap();
    let folder = directory(parent.path(), "qwen3", &config("qwen3", "config.json"));
    fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    let message = model::open(&folder).err().unwrap().to_string();
    assert!(message.contains("pytorch_model.bin") && message.contains("safetensors"), "{message}");

    let folder = directory(parent.path(), "qwen3", &config("qwen3", "config.json"));
    fs::rename(folder.join("tokenizer.json"), folder.join("tokenizer.model")).unwrap();
    let message = model::open(&folder).err().unwrap().to_string();
    assert!(message.contains("tokenizer.model") && message.contains("tokenizer.json"), "{message}");
}
