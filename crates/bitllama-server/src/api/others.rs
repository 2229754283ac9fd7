//! Small requests: models, tokens, health, metrics.

use std::fmt::Write;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bitllama_runtime::text::{decode, encode, own_bos};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Server;
use super::body::parse;
use super::error::{ApiError, Result};
use crate::models::Served;

fn described(model: &Served) -> Value {
    let decoder = model.engine.decoder();
    let size = decoder.size();
    json!({
        "id": model.id, "object": "model", "created": model.created, "owned_by": "bitllama",
        "max_model_len": decoder.config().max_position_embeddings, "parameters": size.parameters,
        "bits_per_weight": size.bytes as f64 * 8.0 / size.parameters as f64,
        "chat": model.template.is_some(),
    })
}

/// `GET /v1/models`: all models.
pub async fn models(State(server): State<Server>) -> Json<Value> {
    let all: Vec<Value> = server.models.iter().map(described).collect();
    Json(json!({ "object": "list", "data": all }))
}

/// `GET /v1/models/ID`: one of them.
pub async fn model(State(server): State<Server>, Path(id): Path<String>) -> Result<Json<Value>> {
    let place = server.model(Some(&id))?;
    Ok(Json(described(server.models.at(place))))
}

#[derive(Deserialize)]
struct Text {
    model: Option<String>,
    #[serde(alias = "prompt")]
    content: String,
    #[serde(default)]
    add_special_tokens: bool,
}

/// `POST /tokenize`: the tokens of a text, control tokens that it spells among them.
pub async fn tokenize(State(server): State<Server>, body: Bytes) -> Result<Json<Value>> {
    let body: Text = parse(&body, &[&["model", "content", "prompt", "add_special_tokens"]])?;
    let model = server.models.at(server.model(body.model.as_deref())?);
    let tokenizer = model.engine.tokenizer();
    let bos = || if body.add_special_tokens { own_bos(tokenizer) } else { Ok(None) };
    let tokens = bos().and_then(|bos| encode(tokenizer, bos, &body.content));
    let tokens = tokens.map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(Json(json!({ "tokens": tokens, "count": tokens.len() })))
}

#[derive(Deserialize)]
struct Tokens {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// `POST /detokenize`: the text of tokens.
pub async fn detokenize(State(server): State<Server>, body: Bytes) -> Result<Json<Value>> {
    let body: Tokens = parse(&body, &[&["model", "tokens"]])?;
    let model = server.models.at(server.model(body.model.as_deref())?);
    let text = decode(model.engine.tokenizer(), &body.tokens);
    let text = text.map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(Json(json!({ "content": text, "prompt": text })))
}

/// `GET /health`.
pub async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /metrics`: counters in Prometheus' text format.
pub async fn metrics(State(server): State<Server>) -> Response {
    let mut lines: Vec<(&str, String)> = Vec::new();
    for model in server.models.iter() {
        let label = model.id.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        for (name, value) in model.engine.metrics().values() {
            lines.push((name, format!("{name}{{model=\"{label}\"}} {value}\n")));
        }
    }
    // All lines of a name stand together, behind its type.
    lines.sort_by_key(|(name, _)| *name);
    let (mut text, mut last) = (String::new(), "");
    for (name, line) in lines {
        let family = name.trim_end_matches("_sum").trim_end_matches("_count");
        if family != last {
            let kind = match (family == name, name.ends_with("_total")) {
                (false, _) => "summary",
                (true, true) => "counter",
                (true, false) => "gauge",
            };
            // Writing to a string never fails.
            let _ = writeln!(text, "# TYPE {family} {kind}");
            last = family;
        }
        text.push_str(&line);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// `GET /`: the page.
pub async fn page() -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                          connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, include_str!("../page.html")).into_response()
}
