//! Server-sent events: answers in pieces.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces that wait for a slow reader, at most; the generation goes on, and its events wait in the engine's channel, which holds no
/// more than the tokens that were asked for.
const PIECES: usize = 32;

/// The end of a stream in OpenAI's protocol.
const DONE: &str = "data: [DONE]\n\n";

/// The way to a reader.
#[derive(Clone)]
pub struct Pieces(Sender<Result<String, Infallible>>);

/// Nobody reads any more.
pub struct Gone;

impl Pieces {
    /// Sends a piece, when the reader has taken those before.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send(&self, piece: &Value) -> Result<(), Gone> {
        self.write(format!("data: {piece}\n\n")).await
    }

    /// Ends the stream, after a last piece where there is one.
    pub async fn finish(self, last: Option<Value>) {
        // Nobody may read any more.
        if let Some(last) = last {
            drop(self.send(&last).await);
        }
        drop(self.write(DONE.to_owned()).await);
    }

    /// Completes when nobody reads any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    async fn write(&self, text: String) -> Result<(), Gone> {
        self.0.send(Ok(text)).await.map_err(|_| Gone)
    }
}

/// Runs the parts of a stream side by side while somebody reads, and ends the stream with what `last` makes of the results of those that
/// came to their end.
pub async fn side_by_side<T: Send + 'static>(
    pieces: Pieces,
    parts: impl Iterator<Item = impl Future<Output = Option<T>> + Send + 'static>,
    last: impl FnOnce(Vec<T>) -> Option<Value>,
) {
    let mut tasks = JoinSet::new();
    for part in parts {
        let pieces = pieces.clone();
        tasks.spawn(async move {
            tokio::select! {
                result = part => result,
                () = pieces.closed() => None,
            }
        });
    }
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.extend(result.ok().flatten());
    }
    pieces.finish(last(results)).await;
}

/// A response whose pieces `produce` sends.
pub fn respond<F: Future<Output = ()> + Send + 'static>(produce: impl FnOnce(Pieces) -> F) -> Response {
    let (sender, receiver) = channel(PIECES);
    tokio::spawn(produce(Pieces(sender)));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies such as nginx would gather pieces.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}
