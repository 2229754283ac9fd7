//! Grammars out of requests.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, request};
use crate::schema;

/// Bytes of the longest regular expression or grammar.
const LONGEST: usize = 32 << 10;

/// White space in JSON: one space, or lines and their indentation. More would let a model go on without saying anything.
const WHITE_SPACE: &str = r"\x20|\x0A{1,2}[\x20\x09]{0,20}";

/// A set of texts. It belongs to no model.
#[derive(Debug, Clone)]
pub struct Grammar {
    pub(crate) source: TopLevelGrammar,
    /// The parameter of the request that it is from.
    parameter: &'static str,
}

impl Grammar {
    /// The grammar of OpenAI's `response_format`: none for `{"type": "text"}`, any object for `{"type": "json_object"}`, and that of
    /// a schema for `{"type": "json_schema", "json_schema": {"schema": .., "strict": ..}}`.
    ///
    /// # Errors
    /// [`Error::Request`] if it is something else, or [`json_schema`](Self::json_schema) refuses the schema.
    pub fn of_response_format(format: &Value) -> Result<Option<Self>> {
        let bad = |cause: String| Err(request(FORMAT, cause));
        let Some(kind) = format.get("type").and_then(Value::as_str) else {
            return bad("`type` must be \"text\", \"json_object\" or \"json_schema\"".into());
        };
        match kind {
            "text" => Ok(None),
            "json_object" => Ok(Some(Self::json_object())),
            "json_schema" => {
                let Some(Value::Object(named)) = format.get("json_schema") else {
                    return bad("`json_schema` must be an object with a `schema`".into());
                };
                let Some(schema) = named.get("schema") else {
                    return bad("`json_schema.schema` is missing".into());
                };
                let strict = match named.get("strict") {
                    None | Some(Value::Null) => false,
                    Some(Value::Bool(strict)) => *strict,
                    Some(_) => return bad("`json_schema.strict` must be true or false".into()),
                };
                Self::json_schema(schema, strict).map(Some)
            }
            kind => bad(format!("the type `{kind}` is none of \"text\", \"json_object\" and \"json_schema\"")),
        }
    }

    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::of(GrammarWithLexer::from_json_schema(with_options(json!({"type": "object"}))), FORMAT)
    }

    /// JSON that a schema admits. The properties of an object come in the order of the schema. Where `strict`, objects have no
    /// properties but those that the schema names, unless it says otherwise.
    ///
    /// # Errors
    /// [`Error::Request`] if the schema is none, has a keyword that is not supported, or is too large.
    pub fn json_schema(schema: &Value, strict: bool) -> Result<Self> {
        let schema = schema::checked(schema, strict).map_err(|cause| request(FORMAT, cause))?;
        Ok(Self::of(GrammarWithLexer::from_json_schema(with_options(schema)), FORMAT))
    }

    /// Text that a regular expression matches as a whole. Its syntax is that of the crate `regex`: no look-around, no references
    /// back.
    ///
    /// # Errors
    /// [`Error::Request`] if it is too long.
    pub fn regex(regex: &str) -> Result<Self> {
        let grammar = GrammarWithLexer::from_regex(&bounded(regex, REGEX)?);
        Ok(Self::of(grammar, REGEX))
    }

    /// Text of a grammar in llguidance's variant of Lark's syntax, which begins at the rule `start`.
    ///
    /// # Errors
    /// [`Error::Request`] if it is too long.
    pub fn lark(grammar: &str) -> Result<Self> {
        Ok(Self::of(GrammarWithLexer::from_lark(bounded(grammar, LARK)?), LARK))
    }

    /// A grammar of tool calls: its rules, and schemas that they name.
    pub(crate) fn of_tools(rules: String, schemas: impl IntoIterator<Item = (String, Value)>) -> Self {
        let schemas = schemas.into_iter().map(|(name, schema)| GrammarWithLexer {
            name: Some(name),
            ..GrammarWithLexer::from_json_schema(with_options(schema))
        });
        let grammars = std::iter::once(GrammarWithLexer::from_lark(rules)).chain(schemas).collect();
        Self { source: TopLevelGrammar { grammars, max_tokens: None }, parameter: "tools" }
    }

    fn of(grammar: GrammarWithLexer, parameter: &'static str) -> Self {
        Self { source: TopLevelGrammar::from_grammar(grammar), parameter }
    }

    /// The error of a grammar that cannot be compiled.
    pub(crate) fn error(&self, cause: &str) -> Error {
        request(self.parameter, cause)
    }
}

const FORMAT: &str = "response_format";
const REGEX: &str = "guided_regex";
const LARK: &str = "guided_grammar";

fn bounded(text: &str, parameter: &'static str) -> Result<String> {
    if text.len() > LONGEST {
        return Err(request(parameter, format!("it is longer than {LONGEST} bytes")));
    }
    Ok(text.to_owned())
}

/// A schema with the options of this crate. One that is no object admits everything.
fn with_options(schema: Value) -> Value {
    let mut object = match schema {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    object.insert("x-guidance".into(), json!({ "whitespace_pattern": WHITE_SPACE }));
    object.into()
}
