//! The HTTP service.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | a short line |
//! | `GET /bytes/N` | N bytes |
//! | `POST /echo` | the request's body |
//! | `GET /echo`, `GET /info` | what the server saw of the request, as JSON ([`Info`]) |
//! | any with `Upgrade:` at `/upgrade` | 101, then bytes are echoed |
//! | `POST` with `content-type: application/grpc` | the messages back, `grpc-status: 0` in the trailers |
//! | `GET /via/HOST:PORT/…` | the answer of that server to `GET /…`: a link of a chain |
//!
//! Any path takes `?delay=10ms` (wait before answering) and `?status=503` (answer with that status).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::draining;
use super::tcp::echo_stream;
use super::via::{self, Next};

/// What the server saw of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    pub pod: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub http_version: String,
    pub method: String,
    pub uri: String,
    /// Names (in lower case, as the HTTP library keeps them) and values in the order received.
    pub headers: Vec<(String, String)>,
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// The connection's two ends and the name of this server.
struct Site {
    peer: SocketAddr,
    local: SocketAddr,
    pod: Arc<str>,
    next: Next,
}

/// Serves one connection; on `drain` it finishes open requests and closes.
pub async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    pod: Arc<str>,
    drain: watch::Receiver<bool>,
) -> io::Result<()> {
    let site = Arc::new(Site {
        peer,
        local: stream.local_addr()?,
        pod,
        next: Next::default(),
    });
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(answer(request, &site).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_STREAMS);
    let mut connection =
        std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = draining(drain.clone()) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}

/// hyper announces 200; a stalled path needs more before the load generator queues on its own side.
const MAX_STREAMS: u32 = 1000;

async fn answer(request: Request<Incoming>, site: &Site) -> Response<Reply> {
    let mut status = StatusCode::OK;
    if let Some(query) = request.uri().query() {
        match Wishes::parse(query) {
            Ok(wishes) => {
                if let Some(delay) = wishes.delay {
                    tokio::time::sleep(delay).await;
                }
                status = wishes.status.unwrap_or(status);
            }
            Err(wrong) => return text(StatusCode::BAD_REQUEST, wrong),
        }
    }
    let mut response = match via::onward(request.uri()) {
        Some((to, path)) => match site.next.ask(&to, &path).await {
            Ok(answer) => answer.map(Reply::Echo),
            Err(error) => text(StatusCode::BAD_GATEWAY, format!("{to}: {error}\n")),
        },
        None => route(request, site),
    };
    if status != StatusCode::OK {
        *response.status_mut() = status;
    }
    response
}

fn route(request: Request<Incoming>, site: &Site) -> Response<Reply> {
    if is_grpc(request.headers()) {
        let mut response = Response::new(Reply::Grpc(Some(request.into_body())));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        return response;
    }
    let path = request.uri().path();
    if let Some(count) = path.strip_prefix("/bytes/") {
        return match count.parse() {
            Ok(count) => Response::new(Reply::repeat(count)),
            Err(_) => text(
                StatusCode::BAD_REQUEST,
                format!("/bytes/{count}: write a number of bytes\n"),
            ),
        };
    }
    match path {
        "/" => text(StatusCode::OK, "duet-bench serve\n"),
        "/echo" if request.method() == Method::POST => {
            let content_type = request.headers().get(CONTENT_TYPE).cloned();
            let mut response = Response::new(Reply::Echo(request.into_body()));
            if let Some(content_type) = content_type {
                response.headers_mut().insert(CONTENT_TYPE, content_type);
            }
            response
        }
        "/echo" | "/info" => info(&request, site),
        "/upgrade" => upgrade(request),
        _ => text(
            StatusCode::NOT_FOUND,
            format!(
                "{path}: try /, /bytes/N, /echo, /info or /upgrade, with ?delay=10ms or ?status=503\n"
            ),
        ),
    }
}

/// What a query asks of any path.
#[derive(Default)]
struct Wishes {
    delay: Option<Duration>,
    status: Option<StatusCode>,
}

impl Wishes {
    fn parse(query: &str) -> Result<Self, String> {
        let mut wishes = Self::default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let wrong = |error: String| format!("?{key}={value}: {error}\n");
            match key {
                "delay" => {
                    wishes.delay =
                        Some(humantime::parse_duration(value).map_err(|e| wrong(e.to_string()))?);
                }
                "status" => {
                    wishes.status = Some(
                        value
                            .parse()
                            .map_err(|_| wrong("write 200 to 999".to_owned()))?,
                    );
                }
                _ => {}
            }
        }
        Ok(wishes)
    }
}

fn info(request: &Request<Incoming>, site: &Site) -> Response<Reply> {
    let header = |(name, value): (&http::HeaderName, &HeaderValue)| {
        (
            name.to_string(),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        )
    };
    let info = Info {
        pod: site.pod.to_string(),
        http_version: format!("{:?}", request.version()),
        method: request.method().to_string(),
        uri: Uri::to_string(request.uri()),
        headers: request.headers().iter().map(header).collect(),
        peer: site.peer,
        local: site.local,
    };
    let json = serde_json::to_vec(&info).expect("strings and addresses are always JSON");
    let mut response = Response::new(Reply::Bytes(Some(json.into())));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn upgrade(mut request: Request<Incoming>) -> Response<Reply> {
    let Some(protocol) = request.headers().get(UPGRADE).cloned() else {
        let mut response = text(
            StatusCode::UPGRADE_REQUIRED,
            "/upgrade: send an Upgrade header\n",
        );
        response
            .headers_mut()
            .insert(UPGRADE, HeaderValue::from_static("echo"));
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            let _ = echo_stream(TokioIo::new(stream)).await;
        }
    });
    let mut response = Response::new(Reply::Bytes(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, protocol);
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Reply::Bytes(Some(text.into())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The body of an answer.
pub enum Reply {
    Bytes(Option<Bytes>),
    /// That many bytes from one constant block.
    Repeat {
        left: u64,
    },
    Echo(Incoming),
    /// The request's messages, then the status in trailers; `None` once those are sent.
    Grpc(Option<Incoming>),
}

static BLOCK: [u8; 64 * 1024] = [b'd'; 64 * 1024];

impl Reply {
    fn repeat(bytes: u64) -> Self {
        Self::Repeat { left: bytes }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Repeat { left: 0 } => Poll::Ready(None),
            Self::Repeat { left } => {
                let chunk = (*left).min(BLOCK.len() as u64);
                *left -= chunk;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(
                    &BLOCK[..chunk as usize],
                )))))
            }
            Self::Echo(body) => Pin::new(body).poll_frame(context),
            Self::Grpc(None) => Poll::Ready(None),
            Self::Grpc(body @ Some(_)) => {
                let messages = body.as_mut().map(|body| Pin::new(body).poll_frame(context));
                match messages {
                    Some(Poll::Ready(Some(Ok(frame)))) if frame.is_data() => {
                        Poll::Ready(Some(Ok(frame)))
                    }
                    Some(Poll::Ready(Some(Err(error)))) => Poll::Ready(Some(Err(error))),
                    Some(Poll::Pending) => Poll::Pending,
                    _ => {
                        *body = None;
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_none(),
            Self::Repeat { left } => *left == 0,
            Self::Echo(body) => body.is_end_stream(),
            Self::Grpc(body) => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Repeat { left } => SizeHint::with_exact(*left),
            Self::Echo(body) => body.size_hint(),
            Self::Grpc(_) => SizeHint::default(),
        }
    }
}
