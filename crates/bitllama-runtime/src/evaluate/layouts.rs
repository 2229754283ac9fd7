//! How the examples of known datasets become questions: the prompts of lm-evaluation-harness's tasks (`lm_eval/tasks/`), to the
//! letter. A continuation is a space (`target_delimiter`) and the choice, unless said otherwise.
//!
//! | layout | after | context | choices |
//! |---|---|---|---|
//! | `hellaswag` | `hellaswag/hellaswag.yaml`, `hellaswag/utils.py` | `{activity_label}: {ctx_a} {ctx_b}`, with `ctx_b` in small letters behind its first; in it and in the endings, brackets are removed | `endings` |
//! | `arc` | `arc/arc_easy.yaml` (also of `arc_challenge`) | `Question: {question}\nAnswer:` | `choices.text` |
//! | `piqa` | `piqa/piqa.yaml` | `Question: {goal}\nAnswer:` | `sol1`, `sol2` |
//! | `winogrande` | `winogrande/default.yaml`, `winogrande/preprocess_winogrande.py` | `sentence` up to its blank `_`, and `option1` or `option2` in its place | the same for both: what stands behind the blank; the choices are the contexts |
//! | `boolq` | `super_glue/boolq/default.yaml` | `{passage}\nQuestion: {question}?\nAnswer:` | `no`, `yes` |
//!
//! The harness reports `acc_norm` for the first three only. For the others it is what its formula gives: over the characters of
//! a context in `winogrande`, of `no` and `yes` in `boolq`.

use std::fmt;
use std::str::FromStr;

use bitllama_core::excerpt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The fields of a dataset, and the questions made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`.
    HellaSwag,
    /// `question`, `choices` with `text` and `label`, `answerKey`; of ARC-Easy and ARC-Challenge.
    Arc,
    /// `goal`, `sol1`, `sol2`, `label`.
    Piqa,
    /// `sentence` with a blank `_`, `option1`, `option2`, `answer` (1 or 2).
    WinoGrande,
    /// `passage`, `question`, `label` (0 or 1) or `answer` (a boolean).
    BoolQ,
}

/// One question of a file, in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Example {
    pub choices: Vec<ChoiceText>,
    /// Which of them is right.
    pub answer: usize,
}

/// One choice in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChoiceText {
    pub context: String,
    pub continuation: String,
    /// Characters of the choice.
    pub length: usize,
}

/// A line's JSON object.
type Fields = Map<String, Value>;

/// What a line holds, or why it does not.
type Parsed<T> = std::result::Result<T, String>;

impl Layout {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::HellaSwag, Self::Arc, Self::Piqa, Self::WinoGrande, Self::BoolQ];

    /// Its name: that of the harness's task, where there is one task.
    pub fn name(self) -> &'static str {
        match self {
            Self::HellaSwag => "hellaswag",
            Self::Arc => "arc",
            Self::Piqa => "piqa",
            Self::WinoGrande => "winogrande",
            Self::BoolQ => "boolq",
        }
    }

    /// The field that the others lack.
    fn own_field(self) -> &'static str {
        match self {
            Self::HellaSwag => "endings",
            Self::Arc => "answerKey",
            Self::Piqa => "sol1",
            Self::WinoGrande => "option1",
            Self::BoolQ => "passage",
        }
    }

    /// The layout that has such fields.
    pub(super) fn detect(fields: &Fields) -> Parsed<Self> {
        let found = Self::ALL.into_iter().find(|layout| fields.contains_key(layout.own_field()));
        found.ok_or_else(|| {
            let known = Self::ALL.map(|layout| format!("{layout} has `{}`", layout.own_field()));
            format!("its fields are those of no known layout: {}", known.join(", "))
        })
    }

    /// The question that a line asks.
    pub(super) fn example(self, fields: &Fields) -> Parsed<Example> {
        match self {
            Self::HellaSwag => hellaswag(fields),
            Self::Arc => arc(fields),
            Self::Piqa => piqa(fields),
            Self::WinoGrande => winogrande(fields),
            Self::BoolQ => boolq(fields),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|layout| layout.name() == name);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::Options(format!("unknown layout `{}` of a task; known: {known}", excerpt(name)))
        })
    }
}

fn hellaswag(fields: &Fields) -> Parsed<Example> {
    let ctx = format!("{} {}", text(fields, "ctx_a")?, capitalized(text(fields, "ctx_b")?));
    let context = without_brackets(&format!("{}: {ctx}", text(fields, "activity_label")?));
    let endings: Vec<String> = texts(fields, "endings")?.into_iter().map(without_brackets).collect();
    let answer = index(fields, "label", 0, endings.len())?;
    Ok(behind(&context, endings.iter().map(String::as_str), answer))
}

fn arc(fields: &Fields) -> Parsed<Example> {
    let choices = field(fields, "choices")?.as_object().ok_or("field `choices` is no object")?;
    let within = |reason| format!("in `choices`: {reason}");
    let (texts, labels) = (texts(choices, "text").map_err(within)?, texts(choices, "label").map_err(within)?);
    if texts.len() != labels.len() {
        return Err(format!("`choices` has {} texts and {} labels", texts.len(), labels.len()));
    }
    let key = text(fields, "answerKey")?;
    let answer = labels.iter().position(|label| *label == key);
    let answer = answer
        .ok_or_else(|| format!("answerKey `{}` is none of the labels {}", excerpt(key), excerpt(&labels.join(", "))))?;
    Ok(behind(&question(text(fields, "question")?), texts, answer))
}

fn piqa(fields: &Fields) -> Parsed<Example> {
    let solutions = [text(fields, "sol1")?, text(fields, "sol2")?];
    Ok(behind(&question(text(fields, "goal")?), solutions, index(fields, "label", 0, 2)?))
}

fn winogrande(fields: &Fields) -> Parsed<Example> {
    let sentence = text(fields, "sentence")?;
    let (before, after) = sentence.split_once('_').ok_or("`sentence` has no blank `_`")?;
    let choice = |option| {
        let context = format!("{before}{option}");
        ChoiceText { continuation: format!(" {}", after.trim()), length: context.chars().count(), context }
    };
    let choices = [text(fields, "option1")?, text(fields, "option2")?].map(choice).to_vec();
    Ok(Example { choices, answer: index(fields, "answer", 1, 2)? })
}

fn boolq(fields: &Fields) -> Parsed<Example> {
    let answer = match (fields.get("label"), fields.get("answer")) {
        (None, Some(Value::Bool(answer))) => (*answer).into(),
        (None, Some(_)) => return Err("field `answer` is no boolean".into()),
        (None, None) => return Err("no field `label` nor `answer`".into()),
        (Some(_), _) => index(fields, "label", 0, 2)?,
    };
    let (passage, question) = (text(fields, "passage")?, text(fields, "question")?);
    Ok(behind(&format!("{passage}\nQuestion: {question}?\nAnswer:"), ["no", "yes"], answer))
}

fn question(text: &str) -> String {
    format!("Question: {text}\nAnswer:")
}

/// Choices that follow the same context.
fn behind<'a>(context: &str, choices: impl IntoIterator<Item = &'a str>, answer: usize) -> Example {
    let choice = |choice: &str| ChoiceText {
        context: context.into(),
        continuation: format!(" {choice}"),
        length: choice.chars().count(),
    };
    Example { choices: choices.into_iter().map(choice).collect(), answer }
}

/// The first letter large and all others small, names too.
fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &characters.as_str().to_lowercase()
}

/// HellaSwag's text without the marks of WikiHow's headings, `[header]` and the like; a title begins a sentence.
fn without_brackets(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let (mut kept, mut rest) = (String::new(), &text[..]);
    while let Some(open) = rest.find('[') {
        let inside = &rest[open + 1..];
        // What a bracket closes is on its own line.
        rest = match inside.find([']', '\n']).filter(|end| inside[*end..].starts_with(']')) {
            Some(end) => {
                kept.push_str(&rest[..open]);
                &inside[end + 1..]
            }
            None => {
                kept.push_str(&rest[..=open]);
                inside
            }
        };
    }
    // Once from left to right: of three spaces two stay.
    (kept + rest).replace("  ", " ")
}

fn field<'a>(fields: &'a Fields, name: &str) -> Parsed<&'a Value> {
    fields.get(name).ok_or_else(|| format!("no field `{name}`"))
}

fn text<'a>(fields: &'a Fields, name: &str) -> Parsed<&'a str> {
    field(fields, name)?.as_str().ok_or_else(|| format!("field `{name}` is no string"))
}

fn texts<'a>(fields: &'a Fields, name: &str) -> Parsed<Vec<&'a str>> {
    let items = field(fields, name)?.as_array().map(|items| items.iter().map(Value::as_str).collect());
    items.flatten().ok_or_else(|| format!("field `{name}` is no list of strings"))
}

/// The number in a field, which may stand there as a string, less `first`: one of `count` choices.
fn index(fields: &Fields, name: &str, first: i64, count: usize) -> Parsed<usize> {
    let value = field(fields, name)?;
    let number = value.as_i64().or_else(|| value.as_str()?.trim().parse().ok());
    let number = number.ok_or_else(|| format!("field `{name}` is no whole number: {}", excerpt(&value.to_string())))?;
    let index = number.checked_sub(first).and_then(|index| usize::try_from(index).ok());
    index.filter(|index| *index < count).ok_or_else(|| {
        let last = first + count as i64 - 1;
        match count {
            0 => format!("{name} {number}, but there is no choice"),
            _ => format!("{name} {number} is none of the {count} choices, {first} to {last}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(layout: Layout, value: Value) -> Parsed<Example> {
        layout.example(value.as_object().unwrap())
    }

    /// Contexts and continuations of a line that must be found to be of this layout, and the place of the answer.
    fn prompts(layout: Layout, value: Value) -> (Vec<(String, String)>, usize) {
        assert_eq!(Layout::detect(value.as_object().unwrap()), Ok(layout));
        let Example { choices, answer } = parse(layout, value).unwrap();
        (choices.into_iter().map(|choice| (choice.context, choice.continuation)).collect(), answer)
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(context, continuation)| (context.into(), continuation.into())).to_vec()
    }

    #[test]
    fn prompts_of_hellaswag() {
        let value = json!({
            "activity_label": "Tea", "ctx_a": "[header] Tea [title] Boil  water. [step] Now", "ctx_b": "mr. Bennet",
            "endings": ["drinks it.", "[substeps] pours  it [title] away"], "label": "1",
        });
        let context = "Tea: Tea. Boil water. Now Mr. bennet";
        // "[title]" leaves two spaces, which become one.
        assert_eq!(
            prompts(Layout::HellaSwag, value),
            (pairs([(context, " drinks it."), (context, "  pours it. away")]), 1)
        );
        let value = json!({ "activity_label": "A", "ctx_a": "B", "ctx_b": "", "endings": ["c", "d"], "label": 0 });
        assert_eq!(prompts(Layout::HellaSwag, value), (pairs([("A: B", " c"), ("A: B", " d")]), 0));
    }

    #[test]
    fn brackets_and_spaces() {
        assert_eq!(without_brackets(" a [x] b "), "a b");
        assert_eq!(without_brackets("a [x [y] z] b"), "a z] b");
        assert_eq!(without_brackets("a [x\ny] [z"), "a [x\ny] [z");
        assert_eq!(without_brackets("a [title] b"), "a. b");
        assert_eq!(without_brackets("[title] a"), " a");
        assert_eq!(without_brackets("a   b    c"), "a  b  c");
        assert_eq!(capitalized("éTÉ Of"), "Été of");
        assert_eq!(capitalized(""), "");
    }

    #[test]
    fn prompts_of_arc() {
        let value = json!({
            "question": "Why?", "choices": { "text": ["so", "thus", "hence"], "label": ["1", "2", "3"] }, "answerKey": "3",
        });
        let context = "Question: Why?\nAnswer:";
        assert_eq!(
            prompts(Layout::Arc, value),
            (pairs([(context, " so"), (context, " thus"), (context, " hence")]), 2)
        );
    }

    #[test]
    fn prompts_of_piqa() {
        let value = json!({ "goal": "open a door", "sol1": "push ", "sol2": "dig", "label": 0 });
        let context = "Question: open a door\nAnswer:";
        assert_eq!(prompts(Layout::Piqa, value), (pairs([(context, " push "), (context, " dig")]), 0));
    }

    #[test]
    fn prompts_of_winogrande() {
        let value =
            json!({ "sentence": "As _ ran, it rang _.", "option1": "Al", "option2": "the bell", "answer": "2" });
        let behind = " ran, it rang _.";
        assert_eq!(prompts(Layout::WinoGrande, value), (pairs([("As Al", behind), ("As the bell", behind)]), 1));
    }

    #[test]
    fn prompts_of_boolq() {
        let value = json!({ "passage": "It rains.", "question": "is it wet", "answer": true });
        let context = "It rains.\nQuestion: is it wet?\nAnswer:";
        assert_eq!(prompts(Layout::BoolQ, value), (pairs([(context, " no"), (context, " yes")]), 1));
        let value = json!({ "passage": "", "question": "", "label": 0, "answer": "unused" });
        assert_eq!(prompts(Layout::BoolQ, value).1, 0);
    }

    #[test]
    fn lengths_are_characters_of_the_choice() {
        let value = json!({ "goal": "", "sol1": "naïve", "sol2": "🦙", "label": 0 });
        let lengths =
            |layout, value| parse(layout, value).unwrap().choices.iter().map(|c| c.length).collect::<Vec<_>>();
        assert_eq!(lengths(Layout::Piqa, value), [5, 1]);
        let value = json!({ "sentence": "So _.", "option1": "ä", "option2": "of", "answer": "1" });
        assert_eq!(lengths(Layout::WinoGrande, value), [4, 5]);
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let refused = |layout, value| parse(layout, value).unwrap_err();
        let hellaswag =
            |label: Value| json!({ "activity_label": "", "ctx_a": "", "ctx_b": "", "endings": ["a"], "label": label });
        assert_eq!(refused(Layout::HellaSwag, hellaswag(json!("1"))), "label 1 is none of the 1 choices, 0 to 0");
        assert_eq!(refused(Layout::HellaSwag, hellaswag(json!(-1))), "label -1 is none of the 1 choices, 0 to 0");
        assert_eq!(refused(Layout::HellaSwag, hellaswag(json!(""))), "field `label` is no whole number: \"\"");
        assert_eq!(refused(Layout::HellaSwag, json!({})), "no field `ctx_a`");
        assert_eq!(refused(Layout::Piqa, json!({ "sol1": 1 })), "field `sol1` is no string");
        let arc = |key: &str, labels: Value| {
            refused(
                Layout::Arc,
                json!({ "question": "", "choices": { "text": ["a", "b"], "label": labels }, "answerKey": key }),
            )
        };
        assert_eq!(arc("C", json!(["A", "B"])), "answerKey `C` is none of the labels A, B");
        assert_eq!(arc("A", json!(["A"])), "`choices` has 2 texts and 1 labels");
        assert_eq!(arc("A", json!([1, 2])), "in `choices`: field `label` is no list of strings");
        let winogrande = json!({ "sentence": "No blank.", "option1": "", "option2": "", "answer": "1" });
        assert_eq!(refused(Layout::WinoGrande, winogrande), "`sentence` has no blank `_`");
        assert_eq!(refused(Layout::BoolQ, json!({ "answer": 1 })), "field `answer` is no boolean");
        assert_eq!(refused(Layout::BoolQ, json!({})), "no field `label` nor `answer`");
        let unknown = Layout::detect(json!({ "text": "" }).as_object().unwrap()).unwrap_err();
        assert!(unknown.contains("hellaswag has `endings`") && unknown.contains("boolq has `passage`"), "{unknown}");
        let message = "squad".parse::<Layout>().unwrap_err().to_string();
        assert_eq!(message, "unknown layout `squad` of a task; known: hellaswag, arc, piqa, winogrande, boolq");
    }

    #[test]
    fn names_are_the_same_everywhere() {
        for layout in Layout::ALL {
            assert_eq!(layout.name().parse::<Layout>().unwrap(), layout);
            assert_eq!(serde_json::to_value(layout).unwrap(), layout.name());
        }
    }
}
