//! The time of masks. `BITLLAMA_TOKENIZER` names a `tokenizer.json` to measure with; without it, the tokens are invented.

use std::time::{Duration, Instant};

use crate::common;
use crate::common::Model;
use bitllama_structured::{Family, Grammar, Tools};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokenizers::Tokenizer;

/// A tokenizer of 49,152 tokens: bytes, and words of one to four syllables, half of them behind a space.
fn invented() -> Model {
    let bytes = common::bytes(&[]).tokenizer;
    let mut tokenizer: serde_json::Value = serde_json::from_str(&bytes.to_string(false).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (consonants, vowels) = ("bcdfghklmnprstvwz{}[]\":,.0123456789", "aeiouy");
    let mut next = 300;
    'words: for length in 1..4 {
        for number in 0_usize.. {
            let mut rest = number;
            let mut word = String::from(if number % 2 == 0 { "Ġ" } else { "" });
            for _ in 0..length {
                word.push(consonants.chars().nth(rest % consonants.len()).unwrap());
                rest /= consonants.len();
                word.push(vowels.chars().nth(rest % vowels.len()).unwrap());
                rest /= vowels.len();
            }
            if rest > 0 {
                break;
            }
            vocabulary.insert(word, next.into());
            next += 1;
            if next == 49_152 {
                break 'words;
            }
        }
    }
    Model::new(tokenizer.to_string().parse().unwrap(), 49_152, &[256])
}

fn given(path: &std::ffi::OsStr) -> Model {
    let tokenizer = Tokenizer::from_file(path).unwrap();
    let size = tokenizer.get_vocab_size(true);
    let ends = ["<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"];
    let end = ends.iter().find_map(|end| tokenizer.token_to_id(end)).unwrap();
    Model::new(tokenizer, size, &[end])
}

#[test]
#[ignore = "prints times"]
fn masks_take_well_under_a_millisecond() {
    let start = Instant::now();
    let model = std::env::var_os("BITLLAMA_TOKENIZER").map_or_else(invented, |path| given(&path));
    println!("{} tokens, vocabulary {:?}", model.vocabulary.size(), start.elapsed());
    let person = json!({
        "type": "object", "required": ["name", "age", "tags", "home"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
            "home": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}},
        },
    });
    let functions = json!([{"type": "function", "function": {"name": "store", "parameters": person}}]);
    let tools = |choice: &str, family| Tools::new(&functions, Some(&json!(choice)), true, family).unwrap();
    let of_tools = |choice: &str, family| tools(choice, family).grammar(&model.vocabulary).unwrap();
    for (name, grammar) in [
        ("any object", Grammar::json_object()),
        ("schema", Grammar::json_schema(&person, true).unwrap()),
        ("regex", Grammar::regex(r"[A-Z][a-z]+ [0-9]{3,20}( [a-z]+)*\.").unwrap()),
        ("required call", of_tools("required", Family::Hermes)),
        ("free text, Hermes", of_tools("auto", Family::Hermes)),
        ("free text, generic", of_tools("auto", Family::Generic)),
        ("free text, Phi", of_tools("auto", Family::Phi)),
    ] {
        let start = Instant::now();
        let first = model.start(&grammar);
        let compiled = start.elapsed();
        let start = Instant::now();
        drop(first.clone());
        let cloned = start.elapsed();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut times = Vec::new();
        for _ in 0..8 {
            let mut constraint = first.clone();
            for _ in 0..60 {
                let mut logits = vec![0.0; model.vocabulary.size()];
                let start = Instant::now();
                constraint.allow(&mut logits).unwrap();
                times.push(start.elapsed());
                let allowed: Vec<u32> =
                    (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(token, _)| token).collect();
                constraint.accept(*allowed.choose(&mut random).unwrap()).unwrap();
                if constraint.is_over() {
                    break;
                }
            }
        }
        times.sort_unstable();
        let mean = times.iter().sum::<Duration>() / times.len() as u32;
        let at = |part: usize| times[(times.len() - 1) * part / 100];
        println!(
            "{name}: compiled {compiled:?}, cloned {cloned:?}, mask mean {mean:?}, median {:?}, 99% {:?}, slowest {:?}",
            at(50),
            at(99),
            at(100)
        );
    }
}
