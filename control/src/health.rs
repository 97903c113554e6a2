//! `/ready`, `/live` and `/metrics`, plain HTTP/1.1.

use crate::metrics::Metrics;
use crate::ready::Readiness;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A client that has not sent its request by then is let go.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at once; a probe and a scraper need two.
pub const MAX_CONNECTIONS: usize = 64;
/// After an `accept` that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever. /ready says 503 once `shutdown` has begun.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = room.clone().acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (metrics, readiness) = (metrics.clone(), readiness.clone());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request| {
                let response = answer(&request, &metrics, &readiness, &shutdown);
                async move { Ok::<_, Infallible>(response) }
            });
            // What goes wrong here went wrong at the client.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Metrics,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" if shutdown.is_cancelled() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
        }
        "/ready" => match readiness.page() {
            (true, page) => text(StatusCode::OK, page),
            (false, page) => text(StatusCode::SERVICE_UNAVAILABLE, page),
        },
        "/metrics" => {
            let mut page = Vec::new();
            match TextEncoder::new().encode(&metrics.registry.gather(), &mut page) {
                Ok(()) => text(StatusCode::OK, page),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "try /ready, /live or /metrics\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(prometheus::TEXT_FORMAT),
    );
    response
}
