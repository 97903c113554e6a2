//! A client's connection, HTTP/1 or HTTP/2, until it ends or is drained.

use super::Body;
use super::limits::{CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW};
use crate::batch::batched;
use crate::detect::Protocol;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// A client must have sent its next head by then. hyper has no other time-out for
/// idle connections, and clients that keep theirs longer than the proxy would send
/// requests into connections that are being closed: Envoy allows 1 h too.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(60 * 60);

pub async fn serve<S, H, F>(
    io: S,
    protocol: Protocol,
    drain: &CancellationToken,
    handle: H,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let response = handle(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    if protocol == Protocol::Http2 {
        let (io, flush) = batched(io);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        tokio::select! {
            // First: one that has only just begun is not idle, it has asked already.
            biased;
            ended = flush.drive(connection.as_mut()) => ended,
            () = drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                flush.drive(connection).await
            }
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .auto_date_header(false)
            // Otherwise hyper would not notice, while a handler runs, that the client left.
            .half_close(false)
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            // First: one that has only just begun is not idle, it has asked already.
            biased;
            ended = connection.as_mut() => ended,
            () = drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }
}
