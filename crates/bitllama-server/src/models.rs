//! The models of a server.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bitllama_chat::ChatTemplate;
use bitllama_runtime::{Decoder, Opened, Settings};
use bitllama_structured::{Family, family_of};

use crate::engine::{Engine, Limits};

/// A model that is served.
pub struct Served {
    /// Name in requests.
    pub id: String,
    /// Its engine.
    pub engine: Engine,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// The format in which it writes calls of functions.
    pub family: Family,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
}

impl Served {
    /// Starts the engine of a model, whose tokens a `draft` with the same tokenizer may guess.
    ///
    /// # Errors
    /// A chat template that cannot be compiled.
    pub fn start(
        id: String,
        model: Opened,
        draft: Option<Decoder>,
        settings: Settings,
        limits: Limits,
    ) -> bitllama_chat::Result<Self> {
        let template = ChatTemplate::from_files(|name| model.companions.get(name))?;
        let draft = draft.map(|draft| draft.with_settings(settings.clone()));
        let engine = Engine::start(model.decoder.with_settings(settings), model.tokenizer, draft, limits);
        let family = family_of(template.as_ref().map_or("", ChatTemplate::source));
        Ok(Self { id, engine, template, family, created: now() })
    }
}

/// Models by name; the first one answers requests that name none.
#[derive(Clone)]
pub struct Models(Arc<[Served]>);

impl Models {
    /// Models of different names.
    pub fn new(models: Vec<Served>) -> Self {
        Self(models.into())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Served> {
        self.0.iter()
    }

    /// The model of a name, or the first one without a name, by its place.
    pub fn find(&self, id: Option<&str>) -> Option<usize> {
        match id {
            Some(id) => self.0.iter().position(|model| model.id == id),
            None => (!self.0.is_empty()).then_some(0),
        }
    }

    /// The model at a place that [`Models::find`] has given.
    pub fn at(&self, place: usize) -> &Served {
        &self.0[place]
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
