//! Requests that are wrong, and requests that want to be expensive: each ends soon, in an error of one line or in a constraint.

use std::time::{Duration, Instant};

use crate::common;
use bitllama_structured::{Constraint, Error, Grammar};
use serde_json::{Value, json};

/// The time that a hostile request may take to compile, and each of its tokens; generous, since tests share their machine.
const SOON: Duration = Duration::from_secs(10);

fn in_one_line(error: &Error) {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.chars().count() < 300, "{text}");
}

/// Compiles a grammar and goes on for some tokens, on a stack as threads have it.
fn survives(name: &str, grammar: Result<Grammar, Error>) {
    let model = common::nano();
    let start = Instant::now();
    let constraint = grammar.and_then(|grammar| Constraint::new(&model.vocabulary, &grammar));
    let compiled = start.elapsed();
    let mut slowest = Duration::ZERO;
    let outcome = constraint.and_then(|mut constraint| {
        for turn in 0..40 {
            let start = Instant::now();
            let mut logits = vec![0.0; 1024];
            constraint.allow(&mut logits)?;
            slowest = slowest.max(start.elapsed());
            if constraint.is_over() {
                break;
            }
            let allowed: Vec<u32> = (1..1024).filter(|token| logits[*token as usize] == 0.0).collect();
            let Some(token) = allowed.get((turn * 7919) % allowed.len().max(1)) else { break };
            constraint.accept(*token)?;
        }
        Ok(())
    });
    println!("{name}: compiled in {compiled:?}, slowest mask {slowest:?}, {outcome:?}");
    assert!(compiled < SOON && slowest < SOON, "{name}: {compiled:?}, {slowest:?}");
    if let Err(error) = outcome {
        in_one_line(&error);
    }
}

fn schema(schema: Value) -> Result<Grammar, Error> {
    Grammar::json_schema(&schema, false)
}

#[test]
fn hostile_schemas_end_soon() {
    let mut deep = json!({"type": "string"});
    for _ in 0..60 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    survives("deep objects", schema(deep));
    let mut deep = json!({"type": "string"});
    for _ in 0..120 {
        deep = json!({"items": deep});
    }
    survives("deep arrays", schema(deep));
    let words: Vec<String> = (0..40_000).map(|word| format!("word {word} {}", word * 7919 % 1000)).collect();
    survives("huge enum", schema(json!({ "enum": words })));
    let properties: serde_json::Map<String, Value> =
        (0..400).map(|name| (format!("p{name}"), json!({"type": "integer"}))).collect();
    survives("many optional properties", schema(json!({"type": "object", "properties": properties})));
    survives("huge counts", schema(json!({"type": "array", "minItems": 1_000_000_000, "maxItems": 2_000_000_000})));
    survives("huge lengths", schema(json!({"type": "string", "minLength": 10_000_000, "maxLength": 1_000_000_000})));
    survives(
        "huge multiple",
        schema(json!({"type": "integer", "multipleOf": 9973, "minimum": -9e15, "maximum": 9e15})),
    );
    let any_of = |count: usize| {
        json!((0..count).map(|n| json!({"type": "string", "pattern": format!("a{{{n}}}b*")})).collect::<Vec<_>>())
    };
    survives(
        "products",
        schema(json!({"allOf": [{"anyOf": any_of(150)}, {"anyOf": any_of(150)}, {"anyOf": any_of(150)}]})),
    );
    let defs: serde_json::Map<String, Value> = (0..40)
        .map(|n| {
            let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
            (
                format!("d{n}"),
                if n == 39 {
                    json!({"type": "null"})
                } else {
                    json!({"anyOf": [{"items": next}, {"properties": {"a": next}}]})
                },
            )
        })
        .collect();
    survives("references that double", schema(json!({"$ref": "#/$defs/d0", "$defs": defs})));
    survives(
        "a circle",
        schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})),
    );
    survives(
        "a circle of all",
        schema(json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"minimum": 1}]}}, "$ref": "#/$defs/a"})),
    );
}

#[test]
fn hostile_expressions_and_grammars_end_soon() {
    for (name, regex) in [
        ("nested repetitions", "((((a{1,100}){1,100}){1,100}){1,100}){1,100}".to_owned()),
        ("catastrophic", "(a*)*(a|aa)+(.*.*.*.*)*x".to_owned()),
        ("exponential", "(.*a.{30}|.*b.{30}|.*c.{30})".to_owned()),
        ("parentheses", "(".repeat(5000) + &")".repeat(5000)),
        ("classes", r"(\pL|\pN|[^\x00-\x{10ffff}]|\w){1,1000}".to_owned()),
        ("options", "a?".repeat(5000) + &"a".repeat(5000)),
        ("broken", "(a".to_owned()),
        ("empty", String::new()),
        ("slash", "a/b\n/c".to_owned()),
    ] {
        survives(name, Grammar::regex(&regex));
        survives(name, schema(json!({"type": "string", "pattern": regex})));
    }
    let chain = |count: usize| (0..count).map(|n| format!("r{n}: r{}\n", n + 1)).collect::<String>() + "start: r0\n";
    for (name, grammar) in [
        ("rules in a chain", chain(2000) + "r2000: \"a\"\n"),
        ("terminals in a chain", (chain(2000) + "r2000: \"a\"\n").replace('r', "R").replace("staRt", "start")),
        ("parentheses", format!("start: {}\"a\"{}", "(".repeat(10_000), ")".repeat(10_000))),
        ("negations", format!("start: A\nA: {}/a/", "~".repeat(10_000))),
        ("ambiguous", "start: a\na: a a a | \"x\" | \"\"\n".to_owned()),
        ("endless", "start: start\n".to_owned()),
        ("right recursion", "start: \"a\" start | \"b\"".to_owned()),
        ("nothing", String::new()),
        ("a lenient schema", "start: %json {\"x-guidance\": {\"lenient\": 1}}".to_owned()),
        ("repetition", "start: (((\"a\"{0,1000}){0,1000}){0,1000}){0,1000}".to_owned()),
    ] {
        survives(name, Grammar::lark(&grammar));
    }
}

#[test]
fn formats_that_are_none_are_named_in_one_line() {
    let error = |format: Value| Grammar::of_response_format(&format).unwrap_err().to_string();
    let types = "\"text\", \"json_object\"";
    assert_eq!(error(json!({})), format!("response_format: `type` must be {types} or \"json_schema\""));
    assert_eq!(error(json!("json")), format!("response_format: `type` must be {types} or \"json_schema\""));
    assert_eq!(
        error(json!({"type": "xml"})),
        format!("response_format: the type `xml` is none of {types} and \"json_schema\"")
    );
    let of = |value: Value| json!({"type": "json_schema", "json_schema": value});
    assert_eq!(error(of(json!(1))), "response_format: `json_schema` must be an object with a `schema`");
    assert_eq!(error(of(json!({"name": "a"}))), "response_format: `json_schema.schema` is missing");
    assert_eq!(
        error(of(json!({"schema": {}, "strict": 1}))),
        "response_format: `json_schema.strict` must be true or false"
    );
    assert_eq!(error(of(json!({"schema": false}))), "response_format: the schema admits nothing");
    assert_eq!(
        error(of(json!({"schema": {"uniqueItems": true}}))),
        "response_format: the keyword `uniqueItems` in the schema is not supported"
    );
    assert_eq!(
        Grammar::regex(&"a".repeat(40_000)).unwrap_err().to_string(),
        "guided_regex: it is longer than 32768 bytes"
    );
    assert!(Grammar::lark(&"a".repeat(40_000)).is_err());
}

#[test]
fn schemas_that_cannot_be_compiled_are_named_in_one_line() {
    let model = common::bytes(&[]);
    let error = |value: Value| {
        let grammar = schema(value).unwrap();
        let outcome = Constraint::new(&model.vocabulary, &grammar);
        let Err(error) = outcome else { return format!("no error: {:?}", grammar) };
        in_one_line(&error);
        error.to_string()
    };
    for (value, part) in [
        (json!({"type": "string", "format": "telephone"}), "telephone"),
        (json!({"type": "strin"}), "strin"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "nsatisfiable"),
        (json!({"type": "string", "pattern": "(?=a)"}), "look"),
        (json!({"$ref": "#/$defs/a"}), "$defs"),
        (json!({"oneOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]}), "oneOf"),
        (json!({"required": 1}), "required"),
        (json!({"type": "string", "minLength": -1}), "minLength"),
        (json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "no text of the grammar"),
    ] {
        let text = error(value);
        assert!(text.starts_with("response_format: ") && text.contains(part), "{part}: {text}");
    }
}
