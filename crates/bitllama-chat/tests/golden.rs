//! Prompts against those of `transformers` (`tests/golden/chat_templates.py`).

use std::collections::BTreeMap;

use bitllama_chat::{ChatTemplate, Conversation, Error, NaiveDateTime, SpecialTokens};
use serde::Deserialize;
use serde_json::{Map, Value};

const GOLDEN: &str = include_str!("../../../tests/golden/chat_templates.json");

#[derive(Deserialize)]
struct Golden {
    now: NaiveDateTime,
    conversations: BTreeMap<String, Conversation>,
    models: Vec<Model>,
    variables: Map<String, Value>,
    expressions: Vec<Expression>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    template: String,
    special_tokens: SpecialTokens,
    cases: BTreeMap<String, Outcome>,
}

#[derive(Deserialize)]
struct Expression {
    template: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Text(String),
    /// The words of `raise_exception`.
    Raised(String),
    /// The class of another exception, for which there are other words here.
    Fails(String),
}

impl Outcome {
    fn admits(&self, result: &Result<String, Error>) -> bool {
        match (self, result) {
            (Outcome::Text(text), Ok(prompt)) => text == prompt,
            (Outcome::Raised(words), Err(Error::Refused(refusal))) => words == refusal,
            (Outcome::Fails(_), Err(error)) => !matches!(error, Error::Refused(_)),
            _ => false,
        }
    }
}

/// The place of the first difference, with what is there.
fn difference(outcome: &Outcome, result: &Result<String, Error>) -> String {
    match (outcome, result) {
        (Outcome::Text(text), Ok(prompt)) => {
            let same = text.chars().zip(prompt.chars()).take_while(|(a, b)| a == b).count();
            let around = |text: &str| text.chars().skip(same.saturating_sub(30)).take(80).collect::<String>();
            format!("  at {same}: {:?}\n       not {:?}", around(text), around(prompt))
        }
        _ => format!("  {outcome:?}\n  not {result:?}"),
    }
}

fn model_differences(golden: &Golden) -> Vec<String> {
    let mut differences = Vec::new();
    for model in &golden.models {
        let template = ChatTemplate::new(&model.template, model.special_tokens.clone())
            .map(|template| template.with_clock(golden.now));
        for (name, outcome) in &model.cases {
            let result = template.clone().and_then(|template| template.render(&golden.conversations[name]));
            if !outcome.admits(&result) {
                differences.push(format!("{}, {name}:\n{}", model.name, difference(outcome, &result)));
            }
        }
    }
    differences
}

fn expression_differences(golden: &Golden) -> Vec<String> {
    let messages = vec![bitllama_chat::message("user", "Hello")];
    let conversation = Conversation { messages, extra: golden.variables.clone(), ..Conversation::default() };
    let render = |source| ChatTemplate::new(source, SpecialTokens::new())?.with_clock(golden.now).render(&conversation);
    let results = golden.expressions.iter().map(|expression| (expression, render(&expression.template)));
    let different = results.filter(|(expression, result)| !expression.outcome.admits(result));
    different
        .map(|(expression, result)| format!("{}\n{}", expression.template, difference(&expression.outcome, &result)))
        .collect()
}

#[test]
fn prompts_are_those_of_transformers() {
    let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
    let differences = model_differences(&golden);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn expressions_are_evaluated_as_in_transformers() {
    let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
    let differences = expression_differences(&golden);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn long_conversations_are_rendered() {
    let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
    let turn = |at: usize| bitllama_chat::message(["user", "assistant"][at % 2], &"word ".repeat(50));
    let conversation = Conversation { messages: (0..2001).map(turn).collect(), ..Conversation::default() };
    for model in &golden.models {
        let template = ChatTemplate::new(&model.template, model.special_tokens.clone()).unwrap();
        let result = template.render(&conversation);
        assert!(!matches!(result, Err(Error::Fuel(_) | Error::Output(_))), "{}: {result:?}", model.name);
    }
}

#[test]
#[ignore = "needs a file that chat_templates.py writes, named by BITLLAMA_CHAT_TEMPLATES"]
fn prompts_of_many_more_templates_are_those_of_transformers() {
    let file = std::env::var("BITLLAMA_CHAT_TEMPLATES").unwrap();
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let differences = model_differences(&golden);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
