//! Random walks over allowed tokens against the schemas that allow them.

use crate::common;
use crate::common::validator::broken;
use bitllama_structured::Grammar;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Schemas with all keywords that are common in requests.
fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object"}),
        json!({
            "type": "object", "additionalProperties": false, "required": ["name", "age"],
            "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "note": {"type": ["string", "null"]}},
        }),
        json!({"enum": ["red", "green", 3, null, {"a": [1, 2]}]}),
        json!({"type": "object", "required": ["kind"], "properties": {"kind": {"const": "x\"y\n"}}, "additionalProperties": false}),
        json!({"type": "array", "minItems": 2, "maxItems": 4, "items": {"type": "boolean"}}),
        json!({"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "array", "maxItems": 2, "items": {"type": "number", "exclusiveMinimum": -1, "maximum": 2.5}}}),
        json!({"anyOf": [{"type": "string", "pattern": "^[a-c]{2,5}$"}, {"type": "integer", "multipleOf": 5}, {"type": "null"}]}),
        json!({"type": "array", "minItems": 4, "maxItems": 4, "items": {"anyOf": [
            {"type": "string", "format": "date"}, {"type": "string", "format": "uuid"},
            {"type": "string", "format": "ipv4"}, {"type": "string", "format": "email", "maxLength": 40},
        ]}}),
        json!({
            "$ref": "#/$defs/tree",
            "$defs": {"tree": {
                "type": "object", "additionalProperties": false, "required": ["value", "children"],
                "properties": {"value": {"type": "integer", "minimum": 1, "maximum": 9}, "children": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}}},
            }},
        }),
        json!({"oneOf": [
            {"type": "object", "required": ["t", "a"], "properties": {"t": {"const": "a"}, "a": {"type": "boolean"}}, "additionalProperties": false},
            {"type": "object", "required": ["t", "b"], "properties": {"t": {"const": "b"}, "b": {"type": "null"}}, "additionalProperties": false},
        ]}),
        json!({"allOf": [
            {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 3}}},
            {"type": "object", "required": ["b"], "properties": {"a": {"maximum": 7}, "b": {"type": "string", "minLength": 2, "maxLength": 3}}, "additionalProperties": false},
        ]}),
        json!({"type": "object", "maxProperties": 0}),
    ]
}

#[test]
fn every_walk_ends_in_json_of_its_schema() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for model in [common::bytes(&[]), common::nano()] {
        for mut schema in schemas() {
            let start = model.of_schema(&schema);
            if let Some(object) = schema.as_object_mut() {
                object.remove("maxProperties");
            }
            for _ in 0..12 {
                let text = model.walk(start.clone(), &mut random);
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert_eq!(broken(&schema, &schema, &value), None, "{schema}\n{text}");
            }
        }
    }
}

#[test]
fn exactly_the_tokens_that_continue_a_text_of_the_language_are_allowed() {
    let model = common::nano();
    let words = ["\"yes\"", "\"no\"", "\"not yet\"", "-1", "12"];
    let mut constraint = model.of_schema(&json!({"enum": ["yes", "no", "not yet", -1, 12]}));
    let texts: Vec<String> = (0..1024).map(|token| model.text(&[token])).collect();
    let mut written = String::new();
    for next in ["\"", "n", "o", "t", " ", "y", "e", "t", "\""] {
        let continues = |text: &str| words.iter().any(|word| word.starts_with(&format!("{written}{text}")));
        let expected: Vec<u32> = (1..1024).filter(|token| continues(&texts[*token as usize])).collect();
        assert_eq!(model.allowed(&mut constraint), expected, "after {written}");
        let token = texts.iter().position(|text| text == next).unwrap() as u32;
        constraint.accept(token).unwrap();
        written.push_str(next);
    }
    assert!(constraint.is_over() && constraint.may_end().unwrap());
    assert_eq!(model.allowed(&mut constraint), [0]);
    constraint.accept(0).unwrap();
    assert!(constraint.accept(5).is_err());
}

#[test]
fn tokens_that_are_not_allowed_cannot_be_accepted() {
    let model = common::bytes(&["<mark>"]);
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "maximum": 50}, "b": {"enum": ["x", "yy"]}}});
    let mut constraint = model.of_schema(&schema);
    for _ in 0..12 {
        let allowed = model.allowed(&mut constraint);
        for token in 0..301 {
            let accepted = constraint.clone().accept(token).is_ok();
            assert_eq!(accepted, allowed.contains(&token), "{token} in {constraint:?}");
        }
        // Neither special tokens nor logits without a token are ever allowed.
        assert!(allowed.iter().all(|token| *token <= 256));
        use rand::seq::IndexedRandom;
        constraint.accept(*allowed.choose(&mut random).unwrap()).unwrap();
        if constraint.is_over() {
            break;
        }
    }
}

#[test]
fn an_end_is_allowed_only_where_the_text_is_whole() {
    let model = common::bytes(&[]);
    let mut constraint = model.of_schema(&json!({"type": "integer", "minimum": 10, "maximum": 250}));
    for (digit, whole) in [(b'1', false), (b'2', true), (b'3', true)] {
        assert!(!model.allowed(&mut constraint).contains(&256) || whole);
        constraint.accept(digit.into()).unwrap();
        assert_eq!(constraint.may_end().unwrap(), digit != b'1');
        assert_eq!(model.allowed(&mut constraint).contains(&256), digit != b'1');
    }
}

#[test]
fn a_clone_goes_on_by_itself() {
    fn other_threads_may_have<T: Send>(_: &T) {}
    let model = common::bytes(&[]);
    let mut first = model.of_schema(&json!({"enum": ["a", "b"]}));
    first.accept(b'"'.into()).unwrap();
    let mut second = first.clone();
    other_threads_may_have(&second);
    other_threads_may_have(&model.vocabulary);
    first.accept(b'a'.into()).unwrap();
    assert_eq!(model.allowed(&mut second), [u32::from(b'a'), u32::from(b'b')]);
    second.accept(b'b'.into()).unwrap();
    assert!(first.accept(0).is_err());
    assert_eq!(model.allowed(&mut second), [u32::from(b'"')]);
    // After an error, every call is one.
    let error = first.may_end().unwrap_err().to_string();
    assert!(error.starts_with("constrained generation: ") && !error.contains('\n'), "{error}");
    assert!(first.allow(&mut [0.0; 300]).is_err() && !first.is_over());
}

#[test]
fn response_formats_are_openais() {
    let model = common::bytes(&[]);
    let grammar = |format: Value| Grammar::of_response_format(&format).unwrap();
    assert!(grammar(json!({"type": "text"})).is_none());
    let object = grammar(json!({"type": "json_object"})).unwrap();
    assert!(model.admits(&object, r#"{"a": [1, {"b": null}], "c": "é"}"#));
    assert!(!model.admits(&object, "[1]"));
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let open = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let closed = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}});
    assert!(model.admits(&grammar(open).unwrap(), r#"{"a": 1, "b": 2}"#));
    let closed = grammar(closed).unwrap();
    assert!(model.admits(&closed, "{\n  \"a\": 1\n}"));
    assert!(!model.admits(&closed, r#"{"a": 1, "b": 2}"#));
    // White space alone cannot go on for ever.
    assert!(!model.admits(&closed, "{\n\n\n\"a\": 1}"));
    assert!(!model.admits(&closed, "{  \"a\": 1}"));
}

#[test]
fn regular_expressions_and_grammars_are_matched_as_a_whole() {
    let model = common::nano();
    let regex = Grammar::regex(r"(yes|no)!{1,3}").unwrap();
    assert!(model.admits(&regex, "no!!"));
    assert!(!model.admits(&regex, "no"));
    assert!(!model.admits(&regex, "maybe!"));
    let lark = Grammar::lark("start: greeting (\", \" greeting)*\ngreeting: \"hello\" | /hi+/").unwrap();
    assert!(model.admits(&lark, "hello, hiii, hello"));
    assert!(!model.admits(&lark, "hello, "));
}

#[test]
fn a_model_without_end_tokens_stops_by_itself() {
    let tokenizer = common::bytes(&[]).tokenizer;
    let model = common::Model::new(tokenizer, 256, &[]);
    let mut constraint = model.start(&Grammar::regex("ab?").unwrap());
    assert_eq!(model.allowed(&mut constraint), [u32::from(b'a')]);
    constraint.accept(b'a'.into()).unwrap();
    assert!(constraint.may_end().unwrap() && !constraint.is_over());
    constraint.accept(b'b'.into()).unwrap();
    assert!(constraint.is_over());
    assert_eq!(
        constraint.allow(&mut [0.0; 256]).unwrap_err().to_string(),
        "constrained generation: no token of the model can go on here"
    );
}

#[test]
fn logits_without_a_token_are_never_allowed() {
    let model = common::bytes(&[]);
    let mut constraint = model.start(&Grammar::regex("(?s:.*)").unwrap());
    // More logits than the vocabulary was made for, and fewer.
    let mut logits = vec![1.0; 333];
    constraint.allow(&mut logits).unwrap();
    assert!(logits[257..].iter().all(|logit| *logit == f32::NEG_INFINITY));
    assert_eq!(logits[..128], [1.0; 128]);
    let mut few = vec![1.0; 70];
    constraint.allow(&mut few).unwrap();
    assert_eq!(few, [1.0; 70]);
    assert!(constraint.accept(290).is_err());
}
