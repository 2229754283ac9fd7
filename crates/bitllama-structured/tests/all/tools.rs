//! Calls of tools: the grammar of each family, and what the parser makes of its texts.

use crate::common;
use crate::common::Model;
use crate::common::validator::broken;
use bitllama_structured::{Answer, Delta, Family, Tools};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const FAMILIES: [Family; 6] =
    [Family::Hermes, Family::Llama, Family::Mistral, Family::Phi, Family::Granite, Family::Generic];

/// Marks of all families, which models have as special tokens or as text.
const MARKS: [&str; 6] =
    ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<|tool_call|>", "<|/tool_call|>"];

fn weather() -> Value {
    json!({
        "type": "object", "required": ["place"],
        "properties": {"place": {"type": "string", "maxLength": 8}, "unit": {"enum": ["c", "f"]}},
    })
}

fn functions() -> Value {
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": weather()}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn tools(family: Family, choice: Value, parallel: bool) -> Tools {
    Tools::new(&functions(), Some(&choice), parallel, family).unwrap()
}

/// Models that have the marks as text, and as special tokens.
fn models() -> [Model; 3] {
    [common::bytes(&[]), common::bytes(&MARKS), common::nano()]
}

/// The names and arguments of calls, after a check of what they are.
fn checked(answer: &Answer) -> Vec<(String, Value)> {
    let calls = answer.tool_calls.iter().map(|call| {
        assert!(call.id.len() == 9 && call.id.chars().all(|c| c.is_ascii_alphanumeric()), "{}", call.id);
        let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
        let nothing = json!({"type": "object", "properties": {}, "additionalProperties": false});
        let schema = if call.name == "now" { nothing } else { weather() };
        assert_eq!(broken(&schema, &schema, &arguments), None);
        (call.name.clone(), arguments)
    });
    calls.collect()
}

#[test]
fn required_calls_are_read_back_from_what_the_grammar_allows() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for model in models() {
        for family in FAMILIES {
            for parallel in [false, true] {
                let tools = tools(family, json!("required"), parallel);
                let start = model.start(&tools.grammar(&model.vocabulary).unwrap());
                for _ in 0..6 {
                    let text = model.walk(start.clone(), &mut random);
                    let answer = tools.parse(&text);
                    assert_eq!(answer.content, None, "{family:?}: {text}");
                    let calls = checked(&answer);
                    assert!(calls.len() == 1 || (parallel && !calls.is_empty()), "{family:?}: {text}");
                }
            }
        }
    }
}

#[test]
fn a_named_function_is_called_once() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let choice = json!({"type": "function", "function": {"name": "now"}});
    for model in models() {
        for family in FAMILIES {
            let tools = tools(family, choice.clone(), true);
            let text = model.walk(model.start(&tools.grammar(&model.vocabulary).unwrap()), &mut random);
            assert_eq!(checked(&tools.parse(&text)), [("now".to_owned(), json!({}))], "{family:?}: {text}");
        }
    }
}

/// A text with two calls, or one where a family has no more, as templates render it.
fn written(family: Family) -> (String, usize) {
    let call = |key: &str| format!(r#"{{"name": "get_weather", "{key}": {{"place": "Zürich", "unit": "c"}}}}"#);
    let now = r#"{"name": "now", "arguments": {}}"#;
    let text = match family {
        Family::Hermes => {
            format!("<tool_call>\n{}\n</tool_call>\n<tool_call>\n{now}\n</tool_call>", call("arguments"))
        }
        Family::Llama => return (call("parameters"), 1),
        Family::Mistral => {
            let with_id = r#"{"name": "now", "arguments": {}, "id": "abc123def"}"#;
            format!("[TOOL_CALLS] [{}, {with_id}]", call("arguments"))
        }
        Family::Phi => format!("<|tool_call|>[{}, {now}]<|/tool_call|>", call("arguments")),
        Family::Granite => format!("<|tool_call|>[{}, {now}]", call("arguments")),
        Family::Generic => return (call("arguments"), 1),
    };
    (text, 2)
}

#[test]
fn calls_as_templates_write_them_are_allowed_and_read() {
    for model in models() {
        for family in FAMILIES {
            for choice in ["required", "auto"] {
                let tools = tools(family, json!(choice), true);
                let grammar = tools.grammar(&model.vocabulary).unwrap();
                let (text, calls) = written(family);
                assert!(model.admits(&grammar, &text), "{family:?} {choice}: {text}");
                let answer = tools.parse(&text);
                assert_eq!((answer.content.as_deref(), answer.tool_calls.len()), (None, calls), "{family:?}: {text}");
                assert_eq!(checked(&answer)[0], ("get_weather".into(), json!({"place": "Zürich", "unit": "c"})));
                assert_eq!(answer.tool_calls[0].arguments, r#"{"place": "Zürich", "unit": "c"}"#);
            }
        }
    }
}

#[test]
fn a_model_that_may_call_writes_any_text_or_calls_well() {
    for model in models() {
        for family in FAMILIES {
            let grammar = tools(family, json!("auto"), true).grammar(&model.vocabulary).unwrap();
            for text in ["", "It is 21 °C.", "{a} < b > [c]", "<tool", "[TOOL] <|tool|> {\"x\": 1}\n\n"] {
                assert!(model.admits(&grammar, text), "{family:?}: {text}");
            }
            let (text, _) = written(family);
            for bad in [
                text.replace("Zürich", "Zürich on the lake"),
                text.replace("\"c\"", "\"k\""),
                text.replace("get_", "got_"),
            ] {
                assert!(!model.admits(&grammar, &bad), "{family:?}: {bad}");
            }
        }
    }
}

#[test]
fn text_may_stand_before_and_between_calls_that_have_marks() {
    for model in models() {
        for family in [Family::Hermes, Family::Mistral, Family::Phi, Family::Granite] {
            let tools = tools(family, json!("auto"), true);
            let (calls, _) = written(family);
            let text = format!("I look.\n{calls}");
            assert!(model.admits(&tools.grammar(&model.vocabulary).unwrap(), &text), "{family:?}");
            let answer = tools.parse(&text);
            assert_eq!((answer.content.as_deref(), answer.tool_calls.len()), (Some("I look."), 2), "{family:?}");
        }
        let tools = tools(Family::Hermes, json!("auto"), true);
        let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
        let text = format!("a {call} b {call}\nc");
        assert!(model.admits(&tools.grammar(&model.vocabulary).unwrap(), &text));
        let answer = tools.parse(&text);
        assert_eq!((answer.content.as_deref(), answer.tool_calls.len()), (Some("a b c"), 2));
    }
}

#[test]
fn special_tokens_are_free_in_text_but_not_in_calls() {
    let model = common::bytes(&[MARKS.as_slice(), &["<think>"]].concat());
    for family in FAMILIES {
        let grammar = tools(family, json!("auto"), true).grammar(&model.vocabulary).unwrap();
        let (text, _) = written(family);
        assert!(model.admits(&grammar, "<think>a<think>b"), "{family:?}");
        assert!(!model.admits(&grammar, &text.replace("Zü", "<think>")), "{family:?}");
        assert!(!model.admits(&grammar, &text.replace("Zü", "<end>")), "{family:?}");
    }
}

#[test]
fn one_call_is_all_where_calls_are_not_parallel() {
    let model = common::bytes(&MARKS);
    for family in [Family::Hermes, Family::Mistral, Family::Phi, Family::Granite] {
        let (text, _) = written(family);
        for choice in ["auto", "required"] {
            let grammar = tools(family, json!(choice), false).grammar(&model.vocabulary).unwrap();
            assert!(!model.admits(&grammar, &text), "{family:?}");
        }
    }
}

#[test]
fn pieces_of_any_size_give_the_same_answer() {
    for family in FAMILIES {
        let tools = tools(family, json!("auto"), true);
        let (calls, _) = written(family);
        for text in [
            calls.clone(),
            format!("I <tool look [TOOL_ {{}}. {calls}"),
            calls.replace('}', "} "),
            format!("a\n{calls}\n\nb {calls}  c"),
            "<tool_call".into(),
        ] {
            let whole = tools.parse(&text);
            for size in [1, 2, 3, 7] {
                let (mut splitter, mut answer) = (tools.splitter(), Answer::default());
                let characters: Vec<char> = text.chars().collect();
                let mut deltas = Vec::new();
                characters
                    .chunks(size)
                    .for_each(|piece| deltas.extend(splitter.push(&piece.iter().collect::<String>())));
                deltas.extend(splitter.finish());
                deltas.into_iter().for_each(|delta| answer.add(delta));
                let plain = |answer: &Answer| (answer.content.clone(), checked(answer));
                assert_eq!(plain(&answer), plain(&whole), "{family:?} in pieces of {size}: {text}");
            }
        }
    }
}

#[test]
fn text_comes_at_once_unless_a_mark_may_begin() {
    let mut splitter = tools(Family::Hermes, json!("auto"), true).splitter();
    let content = |text: &str| vec![Delta::Content(text.to_owned())];
    assert_eq!(splitter.push("a b"), content("a b"));
    assert_eq!(splitter.push(" <to"), []);
    assert_eq!(splitter.push("p> c "), content(" <top> c"));
    assert_eq!(splitter.push("<tool_call>{\"name\": \"now\", \"argu"), []);
    let arguments = |text: &str| Delta::Arguments(text.to_owned());
    let deltas = splitter.push("ments\": {\"}\": \"");
    assert!(matches!(&deltas[0], Delta::Call(call) if call.name == "now" && call.arguments.is_empty()));
    assert_eq!(deltas[1..], [arguments("{\"}\": \"")]);
    assert_eq!(splitter.push("\\\"}"), [arguments("\\\"}")]);
    assert_eq!(splitter.push("\", \"a\": [{}]}, \"id\": \"}"), [arguments("\", \"a\": [{}]}")]);
    assert_eq!(splitter.push("\"}"), []);
    assert_eq!(splitter.push("</tool_call>\n"), []);
    assert_eq!(splitter.finish(), []);
}

#[test]
fn calls_with_their_name_behind_the_arguments_come_whole() {
    let mut splitter = tools(Family::Generic, json!("auto"), true).splitter();
    assert_eq!(splitter.push(r#"{"arguments": {"a": {}}, "name": "no"#), []);
    let deltas = splitter.push("w\"}");
    assert!(matches!(&deltas[..], [Delta::Call(call)] if call.name == "now" && call.arguments == r#"{"a": {}}"#));
}

#[test]
fn a_call_that_is_cut_off_ends_early() {
    for text in [r#"{"name": "now", "arguments": {"#, r#"{"name": "now", "arguments": {"a": ["}"#] {
        let answer = tools(Family::Generic, json!("auto"), true).parse(text);
        assert_eq!((answer.content, answer.tool_calls.len()), (None, 1));
        assert_eq!(answer.tool_calls[0].arguments, text[text.len() - answer.tool_calls[0].arguments.len()..]);
        assert!(answer.tool_calls[0].arguments.starts_with('{'));
    }
}

#[test]
fn what_is_no_call_stays_in_the_content() {
    let hermes = tools(Family::Hermes, json!("auto"), true);
    for text in [
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"now\"}</tool_call>",
        "<tool_call>{\"name\": \"now\", \"arguments\": \"{}\"}</tool_call>",
        "<tool_call>{\"name\": \"now\", \"argum",
        "a <tool_call>no</tool_call>",
        "a <tool_ca",
    ] {
        assert_eq!(hermes.parse(text), Answer { content: Some(text.into()), tool_calls: Vec::new() });
    }
    let generic = tools(Family::Generic, json!("auto"), true);
    for text in ["{\"a\": 1} b", "{ not JSON", "a {\"name\": \"now\", \"arguments\": {}}"] {
        assert_eq!(generic.parse(text), Answer { content: Some(text.into()), tool_calls: Vec::new() });
    }
    // Without a choice there is nothing to find.
    let none = tools(Family::Hermes, json!("none"), true);
    assert!(none.grammar(&common::bytes(&[]).vocabulary).is_none());
    assert_eq!(none.parse(&written(Family::Hermes).0).tool_calls, []);
}

#[test]
fn marks_that_are_special_tokens_have_a_text() {
    let model = common::bytes(&MARKS);
    let phi = tools(Family::Phi, json!("auto"), true);
    assert_eq!(phi.mark(&model.vocabulary, 261), Some("<|tool_call|>"));
    assert_eq!(phi.mark(&model.vocabulary, 262), Some("<|/tool_call|>"));
    for token in [65, 256, 257, 299, 9999] {
        assert_eq!(phi.mark(&model.vocabulary, token), None);
    }
}

#[test]
fn a_call_is_json_as_openai_has_it() {
    let answer = tools(Family::Generic, json!("auto"), true).parse(r#"{"name": "now", "arguments": { }}"#);
    let call = &answer.tool_calls[0];
    let expected = json!({"id": call.id, "type": "function", "function": {"name": "now", "arguments": "{ }"}});
    assert_eq!(serde_json::to_value(call).unwrap(), expected);
}

#[test]
fn tools_that_are_none_are_named_in_one_line() {
    let error =
        |tools: Value, choice: Value| Tools::new(&tools, Some(&choice), true, Family::Hermes).unwrap_err().to_string();
    let named = |function: Value| json!([{"type": "function", "function": function}]);
    let auto = || json!("auto");
    assert_eq!(error(json!({}), auto()), "tools: they must be a list");
    assert_eq!(error(json!([{"type": "retrieval"}]), auto()), "tools: entry 0: `type` must be \"function\"");
    assert_eq!(error(named(json!(1)), auto()), "tools: entry 0: `function` must be an object");
    assert_eq!(error(named(json!({})), auto()), "tools: entry 0: `function.name` must be a text");
    assert_eq!(
        error(named(json!({"name": "a b"})), auto()),
        "tools: entry 0: the name `a b` must be 1 to 64 of a-z, A-Z, 0-9, `_` and `-`"
    );
    assert_eq!(
        error(named(json!({"name": "a", "parameters": {"type": "array"}})), auto()),
        "tools: entry 0: `a`: `parameters` must have the type \"object\""
    );
    assert_eq!(
        error(named(json!({"name": "a", "parameters": {"properties": {"b": {"not": {}}}}})), auto()),
        "tools: entry 0: `a`: the keyword `not` in `b` is not supported"
    );
    let twice =
        json!([{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}]);
    assert_eq!(error(twice, auto()), "tools: there are two functions `a`");
    assert_eq!(error(json!([]), json!("required")), "tool_choice: a call is required, and there are no tools");
    let other = json!({"type": "function", "function": {"name": "b"}});
    assert_eq!(error(functions(), other), "tool_choice: there is no function `b` among the tools");
    let neither = "tool_choice: it must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ..}}";
    assert_eq!(error(functions(), json!("any")), neither);
    assert_eq!(error(functions(), json!({"type": "tool"})), neither);
}
