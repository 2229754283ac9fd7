//! The chat template and the special tokens of a model's files.

use std::collections::BTreeMap;

use bitllama_core::excerpt::excerpt;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::template::{ChatTemplate, DEFAULT, TOOL_USE};

/// Special tokens by their names as templates know them, such as `bos_token`.
pub type SpecialTokens = BTreeMap<String, String>;

/// Files beside `tokenizer_config.json` that a model may have its template in, as text. They come before that file, the first of
/// these before the second.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateFiles<'a> {
    /// `chat_template.jinja`, a template.
    pub jinja: Option<&'a str>,
    /// `chat_template.json`, an object with a template.
    pub json: Option<&'a str>,
}

/// The names that `transformers` has for special tokens of every model.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The file of the special tokens.
const CONFIG: &str = "tokenizer_config.json";

impl ChatTemplate {
    /// Compiles the template of a model, from the content of its `tokenizer_config.json` and the files beside it. `None` if the
    /// model has none.
    ///
    /// # Errors
    ///
    /// If the entries are not what `transformers` writes, or the template cannot be compiled.
    pub fn from_config(config: &Value, files: &TemplateFiles<'_>) -> Result<Option<Self>> {
        let special = special_tokens(config)?;
        if let Some(source) = files.jinja {
            return Self::new(source, special).map(Some);
        }
        let beside = files.json.map(parse).transpose()?;
        let (file, entry) = match beside.as_ref().and_then(entry) {
            Some(entry) => ("chat_template.json", Some(entry)),
            None => (CONFIG, entry(config)),
        };
        entry.map(|entry| Self::named(sources(file, entry)?, special)).transpose()
    }
}

fn entry(config: &Value) -> Option<&Value> {
    config.get("chat_template").filter(|entry| !entry.is_null())
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::Config(format!("chat_template.json: {error}; correct the file")))
}

/// The templates of an entry `chat_template` that [`ChatTemplate::render`] uses: text is the default, a list has names.
fn sources<'a>(file: &str, entry: &'a Value) -> Result<Vec<(&'a str, &'a str)>> {
    let bad = || invalid(file, "chat_template", "is neither a text nor a list of {name, template}");
    let named = |entry: &'a Value| {
        let text = |key| entry.get(key).and_then(Value::as_str).ok_or_else(bad);
        Ok((text("name")?, text("template")?))
    };
    match entry {
        Value::String(source) => Ok(vec![(DEFAULT, source)]),
        Value::Array(entries) => {
            let all: Vec<(&str, &str)> = entries.iter().map(named).collect::<Result<_>>()?;
            let used: Vec<_> = all.into_iter().filter(|(name, _)| [DEFAULT, TOOL_USE].contains(name)).collect();
            if used.is_empty() {
                Err(invalid(file, "chat_template", "has neither `default` nor `tool_use`"))
            } else {
                Ok(used)
            }
        }
        _ => Err(bad()),
    }
}

/// The special tokens of a `tokenizer_config.json`: those that every model may have, any other key that ends in `_token`, and
/// those of `extra_special_tokens` that have names.
///
/// # Errors
///
/// If one of the common names has a value that is neither a text nor an object with a text `content`.
pub fn special_tokens(config: &Value) -> Result<SpecialTokens> {
    let mut tokens = SpecialTokens::new();
    for (name, value) in config.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        match text(value) {
            Some(text) if name.ends_with("_token") => drop(tokens.insert(name.clone(), text.to_owned())),
            None if NAMES.contains(&name.as_str()) => {
                return Err(invalid(CONFIG, name, "is neither a text nor an object with one"));
            }
            _ => {}
        }
    }
    let extra = ["extra_special_tokens", "model_specific_special_tokens"]
        .into_iter()
        .filter_map(|key| config.get(key)?.as_object());
    tokens.extend(extra.flatten().filter_map(|(name, value)| Some((name.clone(), text(value)?.to_owned()))));
    Ok(tokens)
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn invalid(file: &str, key: &str, cause: &str) -> Error {
    Error::Config(format!("{file}: `{}` {cause}; correct the entry", excerpt(key)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conversation::{Conversation, message};

    fn rendered(config: &Value, files: TemplateFiles<'_>, tools: bool) -> Result<String> {
        let template = ChatTemplate::from_config(config, &files)?.unwrap();
        let tools = tools.then(|| vec![json!({})]);
        template.render(&Conversation { messages: vec![message("user", "a")], tools, ..Conversation::default() })
    }

    #[test]
    fn a_model_without_a_template_has_none() {
        for config in [json!({}), json!({"chat_template": null}), json!({"eos_token": "</s>"})] {
            assert!(ChatTemplate::from_config(&config, &TemplateFiles::default()).unwrap().is_none());
        }
    }

    #[test]
    fn special_tokens_are_texts_or_objects_and_may_have_any_name() {
        let config = json!({
            "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": false}, "eos_token": "</s>", "unk_token": null,
            "image_token": "<img>", "add_bos_token": true, "extra_special_tokens": {"boi_token": "<boi>", "eoi_token": {"content": "<eoi>"}},
        });
        let tokens = special_tokens(&config).unwrap();
        let pairs = [
            ("boi_token", "<boi>"),
            ("bos_token", "<s>"),
            ("eoi_token", "<eoi>"),
            ("eos_token", "</s>"),
            ("image_token", "<img>"),
        ];
        assert_eq!(tokens, pairs.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
        let error = special_tokens(&json!({"eos_token": 2})).unwrap_err().to_string();
        assert_eq!(
            error,
            "tokenizer_config.json: `eos_token` is neither a text nor an object with one; correct the entry"
        );
    }

    #[test]
    fn files_beside_the_config_come_first() {
        let config = json!({"chat_template": "config", "eos_token": "</s>"});
        let files = TemplateFiles { json: Some(r#"{"chat_template": "json{{ eos_token }}"}"#), jinja: None };
        assert_eq!(rendered(&config, TemplateFiles::default(), false).unwrap(), "config");
        assert_eq!(rendered(&config, files, false).unwrap(), "json</s>");
        assert_eq!(rendered(&config, TemplateFiles { jinja: Some("jinja"), ..files }, false).unwrap(), "jinja");
        assert_eq!(rendered(&config, TemplateFiles { json: Some("{}"), jinja: None }, false).unwrap(), "config");
    }

    #[test]
    fn conversations_with_tools_take_the_template_for_them() {
        let entry = |name: &str| json!({"name": name, "template": name});
        let config = json!({"chat_template": [entry("default"), entry("tool_use"), {"name": "rag", "template": "{{"}]});
        assert_eq!(rendered(&config, TemplateFiles::default(), false).unwrap(), "default");
        assert_eq!(rendered(&config, TemplateFiles::default(), true).unwrap(), "tool_use");
        let config = json!({"chat_template": [entry("default")]});
        assert_eq!(rendered(&config, TemplateFiles::default(), true).unwrap(), "default");
        let config = json!({"chat_template": [entry("tool_use")]});
        assert!(rendered(&config, TemplateFiles::default(), false).unwrap_err().to_string().contains("give tools"));
    }

    #[test]
    fn entries_that_are_no_templates_are_named() {
        for (entry, cause) in [
            (json!(3), "is neither a text nor a list of {name, template}"),
            (json!([{"name": "default"}]), "is neither a text nor a list of {name, template}"),
            (json!([{"name": "rag", "template": ""}]), "has neither `default` nor `tool_use`"),
        ] {
            let error =
                ChatTemplate::from_config(&json!({"chat_template": entry}), &TemplateFiles::default()).unwrap_err();
            assert_eq!(error.to_string(), format!("tokenizer_config.json: `chat_template` {cause}; correct the entry"));
        }
        let files = TemplateFiles { json: Some("{"), jinja: None };
        let error = ChatTemplate::from_config(&json!({}), &files).unwrap_err().to_string();
        assert!(error.starts_with("chat_template.json: EOF while parsing"), "{error}");
    }
}
