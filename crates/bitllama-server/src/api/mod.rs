//! The HTTP interface: OpenAI's, and a few requests beside it.
//!
//! | module | subject |
//! |---|---|
//! | `completions` | `POST /v1/completions` |
//! | `chat` | `POST /v1/chat/completions` |
//! | `others` | models, tokens, health, metrics, the page |
//! | `sampling` | parameters that completions share |
//! | `body` | bodies whose keys are all understood |
//! | `structure` | grammars of answers, calls of functions |
//! | `answer`, `stream` | answers as a whole and in pieces |
//! | `logprobs` | probabilities in OpenAI's shapes |
//! | `guard` | the API key, and errors of the HTTP library |
//! | `error` | errors in OpenAI's shape |

mod answer;
mod body;
mod chat;
mod completions;
mod error;
mod guard;
mod logprobs;
mod others;
mod sampling;
mod stream;
mod structure;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;

use crate::models::{Models, now};
use error::ApiError;

/// The state that every request sees.
#[derive(Clone)]
pub struct Server {
    /// The models.
    pub models: Models,
    /// The key that requests must have.
    pub api_key: Option<Arc<str>>,
}

impl Server {
    fn model(&self, id: Option<&str>) -> error::Result<usize> {
        self.models.find(id).ok_or_else(|| ApiError::no_model(id.unwrap_or_default()))
    }
}

/// Bounds of the interface.
#[derive(Debug, Clone)]
pub struct Http {
    /// Bytes of a request's body, at most.
    pub body: usize,
    /// Origins whose pages may ask.
    pub cors: Vec<axum::http::HeaderValue>,
}

/// The routes of a server.
pub fn router(server: Server, http: &Http) -> Router {
    let key = from_fn_with_state(server.clone(), guard::key);
    let guarded = Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/models", get(others::models))
        .route("/v1/models/{*id}", get(others::model))
        .route("/tokenize", post(others::tokenize))
        .route("/detokenize", post(others::detokenize))
        .route("/metrics", get(others::metrics))
        .route_layer(key);
    let open = Router::new().route("/health", get(others::health)).route("/", get(others::page));
    let nothing = async || ApiError::with_status(StatusCode::NOT_FOUND, "there is nothing at this path");
    let wrong_method = async || ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method");
    let panicked = |_| axum::response::IntoResponse::into_response(ApiError::internal("the request failed"));
    let routes = guarded
        .merge(open)
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(http.body))
        .layer(axum::middleware::map_response(guard::in_shape))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(server);
    match http.cors.is_empty() {
        true => routes,
        false => {
            let any = tower_http::cors::Any;
            routes.layer(CorsLayer::new().allow_origin(http.cors.clone()).allow_methods(any).allow_headers(any))
        }
    }
}

/// The fields that all objects of an answer begin with.
#[derive(Clone)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    fn new(prefix: &str, object: &'static str, model: &str) -> Self {
        let id = format!("{prefix}-{:016x}", sampling::random());
        Self { id, object, created: now(), model: model.to_owned() }
    }

    /// An object with `choices` that counts tokens.
    fn counted(&self, choices: Vec<Value>, usage: answer::Usage) -> Value {
        let mut object = self.object(choices);
        object["usage"] = usage.to_json();
        object
    }

    /// An object with `choices`.
    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": self.object, "created": self.created, "model": self.model, "choices": choices,
        })
    }
}
