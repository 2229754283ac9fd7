//! Connections: how many, how long a request may take to arrive, and the end of all of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Bounds of connections.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// Connections at a time; others wait.
    pub most: usize,
    /// Time for the head of a request to arrive.
    pub head: Duration,
    /// Time for answers in progress, after the server was asked to stop.
    pub drain: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self { most: 2048, head: Duration::from_secs(15), drain: Duration::from_secs(60) }
    }
}

/// Answers connections until `stop` completes, and then those requests that have arrived.
pub async fn listen(listener: TcpListener, router: Router, connections: Connections, stop: impl Future<Output = ()>) {
    let (room, graceful) = (Arc::new(Semaphore::new(connections.most)), GracefulShutdown::new());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = &mut stop => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        // Pieces of a stream are small and must not wait for more.
        let _ = stream.set_nodelay(true);
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(connections.head);
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A client that breaks off is no fault.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(connections.drain, graceful.shutdown()).await;
}

/// The next connection, when there is room for one.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(_) => {
            // Out of descriptors, most likely; some will be free in a moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}
