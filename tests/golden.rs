//! Logits and answers against `transformers`: `golden/make_hf_models.py` made the models and their figures,
//! `golden/make_task_scores.py` those of the tasks.

mod common;

use std::fs;

use bitllama_core::weights::specs;
use bitllama_formats::{hf, model};
use bitllama_runtime::evaluate::{LogitModel, Task, TaskFile, answer, log_likelihoods};
use bitllama_runtime::text::own_bos;
use bitllama_train::evaluate::Scored;
use bitllama_train::models::to_device;
use burn::tensor::Device;
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn largest_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(a, b)| (*a as f64 - b).abs()).fold(0.0, f64::max)
}

#[test]
fn tiny_models_give_the_logits_of_transformers() {
    for name in ["tied_gqa", "untied_mha", "untied_gqa_sharded", "llama3_rope", "bitnet_silu"] {
        let folder = common::root().join("tests/golden/hf").join(name);
        let golden: Value = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let source = model::open(&folder).unwrap();
        let device = Device::flex();
        let mut burn = Scored::new(&to_device(&source, &device).unwrap(), &device);
        let mut runtime = bitllama_runtime::Decoder::from_model(&source).unwrap();
        for (ids, logits) in golden["input_ids"].as_array().unwrap().iter().zip(golden["logits"].as_array().unwrap()) {
            let tokens: Vec<u32> = numbers(ids).iter().map(|id| *id as u32).collect();
            let expected = numbers(logits);
            for (engine, got) in [("Burn", burn.logits(&tokens)), ("runtime", runtime.logits(&tokens))] {
                let largest = largest_difference(&got.unwrap(), &expected);
                println!("{name} in {engine}: largest difference {largest:.1e}");
                assert!(largest <= 1e-3, "{name} in {engine}: {largest}");
            }
        }
    }
}

#[test]
fn tasks_get_the_answers_of_transformers() {
    let golden = fs::read(common::root().join("tests/golden/task_scores.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let source = model::open(&common::root().join("models/nano")).unwrap();
    let bos = own_bos(&source.tokenizer).unwrap();
    let device = Device::flex();
    let mut burn = Scored::new(&to_device(&source, &device).unwrap(), &device);
    let mut runtime = bitllama_runtime::Decoder::from_model(&source).unwrap();
    for name in ["hellaswag", "arc", "piqa", "winogrande", "boolq"] {
        let path = common::root().join(format!("tests/data/tasks/{name}.jsonl"));
        let task = Task::read(&TaskFile { layout: None, path }, None).unwrap();
        assert_eq!(task.layout().name(), name);
        let questions = task.questions(&source.tokenizer, bos, source.config.max_position_embeddings).unwrap();
        let golden = &golden[name];
        let expected = numbers(&golden["log_likelihoods"]);
        let engines: [(&str, &mut dyn LogitModel); 2] = [("Burn", &mut burn), ("runtime", &mut runtime)];
        for (engine, model) in engines {
            let found = questions.iter().flat_map(|question| log_likelihoods(model, &question.choices).unwrap());
            let found: Vec<f64> = found.collect();
            assert_eq!(found.len(), expected.len());
            let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            println!("{name} in {engine}: largest difference {largest:.1e}");
            assert!(largest <= 1e-3, "{name} in {engine}: {largest}");
            let score = serde_json::to_value(answer(model, &questions, |_| ()).unwrap()).unwrap();
            for (field, found) in score.as_object().unwrap() {
                let (found, expected) = (found.as_f64().unwrap(), golden[field].as_f64().unwrap());
                assert!((found - expected).abs() < 1e-9, "{name} in {engine}: {field} {found}, {expected} expected");
            }
        }
    }
}

/// SmolLM2-135M-Instruct, fetched by `scripts/fetch-smollm2.sh`: `scripts/heavy-tests.sh` runs this.
#[test]
#[ignore = "needs models/smollm2-135m-instruct"]
fn smollm2_gives_the_logits_of_transformers() {
    let gguf = common::root().join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    let golden = fs::read(common::root().join("tests/golden/smollm2_logits.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let source = model::open(&gguf).unwrap();
    let tokens: Vec<u32> = numbers(&golden["input_ids"]).iter().map(|id| *id as u32).collect();
    let encoded = source.tokenizer.encode(golden["text"].as_str().unwrap(), false).unwrap();
    assert_eq!(encoded.get_ids(), tokens, "the tokenizer rebuilt from the GGUF");

    // The same weights as a Hugging Face directory.
    let folder = tempfile::tempdir().unwrap();
    let weights = specs(&source.config).into_iter().map(|spec| {
        let values = source.weights.read(&spec).unwrap();
        (spec, values)
    });
    hf::save(&folder.path().join("hf"), &source.config, weights, &source.tokenizer, hf::Dtype::F32).unwrap();
    let directory = model::open(&folder.path().join("hf")).unwrap();

    let device = Device::flex();
    let burn = |source| Scored::new(&to_device(source, &device).unwrap(), &device).logits(&tokens);
    let mut runtime = bitllama_runtime::Decoder::from_model(&source).unwrap();
    let ids: Vec<usize> = numbers(&golden["last_ids"]).iter().map(|id| *id as usize).collect();
    let expected = numbers(&golden["last_logits"]);
    for (engine, got) in [
        ("Burn, GGUF", burn(&source)),
        ("Burn, Hugging Face directory", burn(&directory)),
        ("runtime, GGUF", runtime.logits(&tokens)),
    ] {
        let got = got.unwrap();
        let last = &got[got.len() - source.config.vocab_size..];
        let chosen: Vec<f32> = ids.iter().map(|id| last[*id]).collect();
        let largest = largest_difference(&chosen, &expected);
        println!("{engine}: largest difference {largest:.2e}");
        assert!(largest <= 1e-3, "{engine}: {largest}");
    }
}
