//! The formats in which families of models write calls of tools.

/// A family of models by the format of its calls, as their chat templates show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>`, once per call: Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4.
    Hermes,
    /// `{"name": .., "parameters": ..}`, perhaps behind `<|python_tag|>`: Llama 3.1 and 3.2.
    Llama,
    /// `[TOOL_CALLS][{"name": .., "arguments": ..}]`: Mistral up to Nemo and Small 3.1.
    Mistral,
    /// `<|tool_call|>[{"name": .., "arguments": ..}]<|/tool_call|>`: Phi-4-mini.
    Phi,
    /// `<|tool_call|>[{"name": .., "arguments": ..}]`: Granite 3.
    Granite,
    /// `{"name": .., "arguments": ..}`: models without a format that is known here.
    Generic,
}

/// A format of calls.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The text before calls; where none, or `bare`, a text that begins with `{` is a call.
    pub begin: Option<&'static str>,
    /// The text behind them.
    pub end: Option<&'static str>,
    /// Whether a call may come without the text before it.
    pub bare: bool,
    /// Whether calls are a list.
    pub list: bool,
    /// Whether there may be several.
    pub several: bool,
    /// The key of the arguments.
    pub arguments: &'static str,
    /// Whether a call may have an `id`, of nine letters and digits.
    pub ids: bool,
}

/// A call by itself.
const BARE: Facts =
    Facts { begin: None, end: None, bare: true, list: false, several: false, arguments: "arguments", ids: false };
/// A list of calls behind a mark.
const LIST: Facts = Facts { bare: false, list: true, several: true, ..BARE };

const HERMES: Facts =
    Facts { begin: Some("<tool_call>"), end: Some("</tool_call>"), bare: false, several: true, ..BARE };
const LLAMA: Facts = Facts { begin: Some("<|python_tag|>"), arguments: "parameters", ..BARE };
const MISTRAL: Facts = Facts { begin: Some("[TOOL_CALLS]"), ids: true, ..LIST };
const PHI: Facts = Facts { begin: Some("<|tool_call|>"), end: Some("<|/tool_call|>"), ..LIST };
const GRANITE: Facts = Facts { begin: Some("<|tool_call|>"), ..LIST };

impl Family {
    pub(crate) fn facts(self) -> &'static Facts {
        match self {
            Self::Hermes => &HERMES,
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Phi => &PHI,
            Self::Granite => &GRANITE,
            Self::Generic => &BARE,
        }
    }
}

/// The family whose format a chat template shows, by the template's source.
pub fn family_of(template_source: &str) -> Family {
    let has = |text: &str| template_source.contains(text);
    // Formats with the same marks and no JSON in them: Mistral Small 3.2; Qwen 3 Coder; GLM 4.
    if has("[ARGS]") || has("<function=") || has("<arg_key>") {
        return Family::Generic;
    }
    if has("[TOOL_CALLS]") {
        Family::Mistral
    } else if has("<|/tool_call|>") || has("<|/tool|>") {
        Family::Phi
    } else if has("<|tool_call|>") {
        Family::Granite
    } else if has("<tool_call>") {
        Family::Hermes
    } else if has("<|start_header_id|>") && has("\"parameters\"") {
        Family::Llama
    } else {
        Family::Generic
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    #[test]
    fn templates_of_published_models_show_their_families() {
        let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/chat_templates.json")).unwrap();
        let models = golden["models"].as_array().unwrap().iter();
        let text = |model: &Value, key: &str| model[key].as_str().unwrap().to_owned();
        let families: BTreeMap<String, Family> =
            models.map(|model| (text(model, "name"), family_of(&text(model, "template")))).collect();
        for (family, names) in [
            (Family::Hermes, ["Qwen 2.5", "Qwen 3", "QwQ", "Hermes 2 Pro", "Granite 4.0"].as_slice()),
            (Family::Llama, &["Llama 3.1", "Llama 3.2"]),
            (Family::Mistral, &["Mistral Nemo", "Mistral v3, with tools"]),
            (Family::Granite, &["Granite 3.0", "Granite 3.3"]),
            (Family::Generic, &["Llama 2", "Llama 3", "Qwen 3 Coder", "Mistral Small 3.2", "gpt-oss", "Gemma 3"]),
        ] {
            for name in names {
                assert_eq!(families[*name], family, "{name}");
            }
        }
        assert_eq!(family_of("{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}"), Family::Phi);
    }
}
