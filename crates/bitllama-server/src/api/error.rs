//! Errors in OpenAI's shape.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::Refused;

/// An answer that says what was wrong with a request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, ApiError>;

/// Seconds after which a request that found a full queue may come again.
const RETRY_AFTER: u64 = 2;

impl ApiError {
    /// A request that is wrong whatever the state of the server.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), param: None, code: None }
    }

    /// The same for the parameter `param`.
    pub fn parameter(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }
    }

    /// An answer of another status.
    pub fn with_status(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, ..Self::invalid(message) }
    }

    /// A model that there is not.
    pub fn no_model(name: &str) -> Self {
        let message = format!("the model `{}` does not exist", bitllama_core::excerpt::excerpt(name));
        let not_found = Self::with_status(StatusCode::NOT_FOUND, message);
        Self { param: Some("model".into()), code: Some("model_not_found"), ..not_found }
    }

    /// A fault of the server.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::with_status(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// As a JSON object.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::QueueFull(_) => StatusCode::TOO_MANY_REQUESTS,
            Refused::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Refused::Context { .. } | Refused::Memory { .. } | Refused::Invalid(_) => StatusCode::BAD_REQUEST,
        };
        let code = matches!(refused, Refused::Context { .. }).then_some("context_length_exceeded");
        Self { code, ..Self::with_status(status, refused.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        }
        response
    }
}
