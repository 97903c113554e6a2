//! A client's connection, HTTP/1 or HTTP/2, until it ends or is drained.

use super::Body;
use super::idle::{HEADER_TIMEOUT, Pulse, Stop, Watched};
use super::limits::{CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW};
use super::spelling::{Case, Habit, spelled};
use super::stall::{Awaited, Carrier};
use crate::batch::batched;
use crate::detect::Protocol;
use crate::rarely::rarely;
use crate::relay::Abort;
use crate::tenancy::{Share, Tenant};
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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

/// What `server` answers to a client.
pub async fn serve<S, H, F>(
    io: S,
    protocol: Protocol,
    server: SocketAddr,
    drain: &CancellationToken,
    tenant: &Tenant,
    handle: H,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
    H: Unpin + Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    if protocol == Protocol::Http2 {
        // Boxed, so that what few connections need makes none of them larger.
        Box::pin(serve_http2(io, drain, tenant, handle)).await
    } else {
        serve_http1(io, Habit::of(server), drain, handle).await
    }
}

async fn serve_http2<S, H, F>(
    io: S,
    drain: &CancellationToken,
    tenant: &Tenant,
    handle: H,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
    H: Unpin + Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // An async block would have room for the response's future twice.
    let service = service_fn(move |request: Request<Incoming>| {
        handle(request.map(Body::from))
            .map(|response| Ok::<_, Infallible>(response.map(Awaited::new)))
    });
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
    let stuck = rarely(async {
        tokio::select! {
            () = flush.stuck(HEADER_TIMEOUT) => true,
            () = drain.cancelled() => false,
        }
    });
    tokio::select! {
        // First: one that has only just begun is not idle, it has asked already.
        biased;
        ended = flush.drive(connection.as_mut()) => ended,
        stuck = stuck => {
            if stuck {
                flush.abort();
                return Ok(());
            }
            connection.as_mut().graceful_shutdown();
            flush.drive(connection).await
        }
    }
}

/// Takes its connection from hyper while it is idle.
async fn serve_http1<S, H, F>(
    io: S,
    habit: Habit,
    drain: &CancellationToken,
    handle: H,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
    H: Unpin + Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let pulse = Arc::<Pulse>::default();
    let mut service = service_fn(|mut request: Request<Incoming>| {
        let under_way = pulse.begin();
        pulse.heads.note(request.headers_mut());
        handle(request.map(|body| under_way.receiving(body))).map(|mut response| {
            let (told, case) = spelled(response.headers_mut(), pulse.case());
            response.extensions_mut().extend(told);
            if case != pulse.case() {
                // So are those that come later.
                habit.becomes(case);
            }
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                pulse.heads.leave();
            } else if drain.is_cancelled() {
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| under_way.answering(body)))
        })
    });
    let mut io = Watched::new(io, pulse.clone());
    let mut deadline = Instant::now() + HEADER_TIMEOUT;
    loop {
        pulse.writes(habit.case());
        let connection = http1::Builder::new()
            .auto_date_header(false)
            .title_case_headers(pulse.case() == Case::Title)
            // Otherwise hyper would not notice, while a handler runs, that the client left.
            .half_close(false)
            // The pulse has one.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        // Boxed: it is not there while it is idle.
        let mut connection = Box::new(connection);
        let carried = async {
            let stops = rarely(async {
                tokio::select! {
                    stop = pulse.stops(&mut deadline) => Some(stop),
                    () = drain.cancelled() => None,
                }
            });
            tokio::select! {
                // First: one that has only just begun is not idle, it has asked already.
                biased;
                ended = &mut connection => Ok(ended),
                stops = stops => match stops {
                    Some(stop) => Err(stop),
                    None => {
                        // Until then its next answer ends it.
                        let lingered = Box::pin(tokio::time::sleep(LINGER));
                        tokio::select! {
                            ended = &mut connection => Ok(ended),
                            () = lingered => {
                                std::pin::Pin::new(&mut *connection).graceful_shutdown();
                                // If a head has begun, hyper waits for the rest of it.
                                tokio::select! {
                                    biased;
                                    ended = &mut connection => Ok(ended),
                                    stop = pulse.stops(&mut deadline) => Err(stop),
                                }
                            }
                        }
                    }
                }
            }
        };
        match Carrier::new(carried).await {
            Some(Err(Stop::Idle)) => {
                let Some(parts) = unboxed(connection).into_parts() else {
                    return Ok(());
                };
                (io, service) = (parts.io.into_inner(), parts.service);
                io.unread(parts.read_buf);
                if !wakes(&mut io, deadline, drain).await {
                    return Ok(());
                }
            }
            Some(Err(Stop::Overdue)) => return Ok(()),
            // What hyper refuses to read is answered, and there is nothing half done.
            Some(Ok(ended)) if ended.as_ref().err().is_none_or(hyper::Error::is_parse) => {
                // None if it is something else's now.
                let parts = unboxed(connection).into_parts();
                if let Some(io) = parts.map(|parts| parts.io.into_inner()) {
                    let leaves = Box::pin(io.leaves());
                    drain.run_until_cancelled(leaves).await;
                }
                return ended;
            }
            cut => {
                // Half an answer must not look whole where its end is the connection's.
                if let Some(parts) = connection.into_parts() {
                    parts.io.into_inner().abort();
                }
                // Of an answer that was overdue, its deadline tells.
                return cut.and_then(Result::ok).unwrap_or(Ok(()));
            }
        }
    }
}

#[expect(
    clippy::boxed_local,
    reason = "it is freed here, and not when its place is"
)]
fn unboxed<T>(boxed: Box<T>) -> T {
    *boxed
}

/// Whether the client says something before it is too late. If not, it is told of the end.
async fn wakes<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut Watched<S>,
    deadline: Instant,
    drain: &CancellationToken,
) -> bool {
    let lingered = async {
        drain.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    let woken = tokio::select! {
        biased;
        woken = io.wakes(deadline) => woken,
        () = lingered => false,
    };
    if !woken {
        // A stream that is merely dropped would be reset.
        let _ = io.shutdown().await;
    }
    woken
}
