//! Fields of a JSON object, with the names of those that have been asked for.

use std::cell::RefCell;
use std::collections::HashSet;

use bitllama_core::excerpt;
use bitllama_core::families::{Keys, NEUTRAL, Neutral};
use serde_json::{Map, Value};

/// The fields of one JSON object; an absent one and one that is `null` are the same. Errors are the reason without the file.
pub(super) struct Fields<'a> {
    /// In front of names in messages.
    pub prefix: &'a str,
    pub object: &'a Map<String, Value>,
    asked: RefCell<HashSet<String>>,
}

type Result<T> = std::result::Result<T, String>;

impl<'a> Fields<'a> {
    pub fn new(prefix: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { prefix, object, asked: RefCell::default() }
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(name.to_string());
        self.object.get(name).filter(|v| !v.is_null())
    }

    pub fn wrong(&self, name: &str, what: &str) -> String {
        let value = self.object.get(name).map_or("(absent)".into(), Value::to_string);
        format!("{}{name} = {} {what}", self.prefix, excerpt(&value))
    }

    pub fn required<T>(&self, name: &str, get: fn(&Self, &str) -> Result<Option<T>>) -> Result<T> {
        get(self, name)?.ok_or_else(|| format!("{}{name} is missing", self.prefix))
    }

    fn typed<T>(&self, name: &str, what: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(name).map(|value| convert(value).ok_or_else(|| self.wrong(name, what))).transpose()
    }

    pub fn whole(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "is not a whole number", |v| v.as_u64().and_then(|n| n.try_into().ok()))
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "is not a number", Value::as_f64)
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "is neither true nor false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.typed(name, "is not a string", Value::as_str)
    }

    pub fn object(&self, name: &str, prefix: &'a str) -> Result<Option<Fields<'a>>> {
        let object = self.typed(name, "is not an object", Value::as_object)?;
        Ok(object.map(|object| Fields::new(prefix, object)))
    }

    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>> {
        self.typed(name, "is not a list of numbers", |v| v.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// One token id or a list of them.
    pub fn tokens(&self, name: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.typed(name, "is neither a token id nor a list of them", |value| match value.as_array() {
            Some(list) => list.iter().map(id).collect(),
            None => id(value).map(|one| vec![one]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Refuses a field that would change what the model computes, and that nobody has asked for.
    pub fn refuse_unread(&self) -> Result<()> {
        let asked = self.asked.borrow();
        for (name, neutral) in NEUTRAL.into_iter().filter(|(name, _)| !asked.contains(*name)) {
            let Some(value) = self.object.get(name).filter(|value| !value.is_null()) else { continue };
            let (same, must) = match neutral {
                Neutral::Absent => (false, "it must be null".to_string()),
                Neutral::False => (value.as_bool() == Some(false), "it must be false".into()),
                Neutral::Number(number) => (value.as_f64() == Some(number), format!("it must be {number}")),
            };
            if !same {
                return Err(self.wrong(name, &format!("is not supported; {must}")));
            }
        }
        Ok(())
    }
}

impl Keys for Fields<'_> {
    fn has(&self, key: &str) -> bool {
        self.asked.borrow_mut().insert(key.to_string());
        self.object.contains_key(key)
    }

    fn whole(&self, key: &str) -> Result<Option<usize>> {
        Fields::whole(self, key)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        Fields::number(self, key)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        Fields::flag(self, key)
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        Ok(Fields::text(self, key)?.map(str::to_string))
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let text = |value: &Value| value.as_str().map(str::to_string);
        self.typed(key, "is not a list of strings", |value| value.as_array()?.iter().map(text).collect())
    }

    fn wholes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let whole = |value: &Value| match value.as_bool() {
            Some(flag) => Some(usize::from(flag)),
            None => value.as_u64()?.try_into().ok(),
        };
        self.typed(key, "is not a list of whole numbers", |value| value.as_array()?.iter().map(whole).collect())
    }

    fn wrong(&self, key: &str, what: &str) -> String {
        Fields::wrong(self, key, what)
    }
}
