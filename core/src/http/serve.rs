//! A client's connection, HTTP/1 or HTTP/2, until it ends or is drained.

use super::Body;
use super::limits::{CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW};
use super::stall::Carrier;
use crate::batch::batched;
use crate::detect::Protocol;
use crate::relay::Abort;
use crate::tenancy::{Share, Tenant};
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// A client must have sent its next head by then. hyper has no other time-out for
/// idle connections, and clients that keep theirs longer than the proxy would send
/// requests into connections that are being closed: Envoy allows 1 h too.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How long a connection of HTTP/1 that drains waits for one more request, to tell the client
/// with its answer. One that is closed while it is idle may meet a request that is under way,
/// and most clients do not dare to send that again (RFC 9112, 9.5). HTTP/2 has GOAWAY.
const LINGER: Duration = Duration::from_secs(2);

/// Runs a connection's streams, at the expense of whose connection it is.
#[derive(Clone)]
struct Streams(Share);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(self.0.of(Carrier::new(stream)));
    }
}

pub async fn serve<S, H, F>(
    io: S,
    protocol: Protocol,
    drain: &CancellationToken,
    tenant: &Tenant,
    handle: H,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
    H: Unpin + Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    if protocol == Protocol::Http2 {
        // An async block would have room for the response's future twice.
        let service = service_fn(move |request| handle(request).map(Ok::<_, Infallible>));
        let (io, flush) = batched(io);
        let window = tenant.window(CONNECTION_WINDOW);
        let connection = http2::Builder::new(Streams(tenant.share().clone()))
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window.bytes())
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
        let service = service_fn(move |request| {
            handle(request).map(|mut response| {
                if drain.is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let headers = response.headers_mut();
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            })
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .auto_date_header(false)
            // Otherwise hyper would not notice, while a handler runs, that the client left.
            .half_close(false)
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let carried = async {
            tokio::select! {
                // First: one that has only just begun is not idle, it has asked already.
                biased;
                ended = &mut connection => ended,
                () = drain.cancelled() => {
                    // Until then its next answer ends it.
                    let lingered = Box::pin(tokio::time::sleep(LINGER));
                    tokio::select! {
                        ended = &mut connection => ended,
                        () = lingered => {
                            std::pin::Pin::new(&mut connection).graceful_shutdown();
                            (&mut connection).await
                        }
                    }
                }
            }
        };
        let ended = Carrier::new(carried).await;
        // Half an answer must not look whole where its end is the connection's.
        let is_cut = |ended: &hyper::Result<()>| ended.as_ref().is_err_and(hyper::Error::is_user);
        if ended.as_ref().is_none_or(is_cut)
            && let Some(parts) = connection.into_parts()
        {
            parts.io.into_inner().abort();
        }
        // Of one that was overdue, the deadline tells.
        ended.unwrap_or(Ok(()))
    }
}
