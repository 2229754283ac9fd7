//! The API key, and the shape of errors that the HTTP library makes.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::Server;
use super::error::ApiError;

/// Refuses requests without the key, where there is one.
pub async fn key(State(server): State<Server>, request: Request, next: Next) -> Response {
    let Some(expected) = &server.api_key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
    match given.is_some_and(|given| given.ct_eq(expected.as_bytes()).into()) {
        true => next.run(request).await,
        false => {
            let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
            ApiError::with_status(StatusCode::UNAUTHORIZED, message).into_response()
        }
    }
}

/// Gives errors that the HTTP library makes, such as that of a body that is too large, the shape of all others.
pub async fn in_shape(response: Response) -> Response {
    let status = response.status();
    let json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let message = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "the body is too large",
        StatusCode::BAD_REQUEST => "the body could not be read",
        _ => "the request could not be answered",
    };
    ApiError::with_status(status, message).into_response()
}
