//! HTTP applications: clients, and servers that answer with what they saw.

use super::app::{App, plain};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

pub type Body = BoxBody<Bytes, hyper::Error>;

/// What the server's application saw of a request, told in its answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub version: String,
    pub host: String,
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// A response with its body read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

pub enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// Serves HTTP/1.1 and nothing else.
pub fn serve_http1(app: &App, port: u16) {
    let listener = app.listen(port);
    tokio::spawn(async move {
        while let Ok((stream, seen)) = accept(&listener).await {
            let service = service_fn(move |request| answer(request, seen));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
}

/// Serves HTTP/2 with prior knowledge and nothing else.
pub fn serve_http2(app: &App, port: u16) {
    let listener = app.listen(port);
    tokio::spawn(async move {
        while let Ok((stream, seen)) = accept(&listener).await {
            let service = service_fn(move |request| answer(request, seen));
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
}

/// Serves a stream that came by another way than TCP.
pub fn serve_stream(stream: tokio::io::DuplexStream, http2: bool) {
    let nowhere = SocketAddr::from(([0; 4], 0));
    let service = service_fn(move |request| answer(request, [nowhere; 2]));
    let io = TokioIo::new(stream);
    if http2 {
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(served.serve_connection(io, service));
    } else {
        let served = hyper::server::conn::http1::Builder::new();
        tokio::spawn(served.serve_connection(io, service));
    }
}

async fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, [SocketAddr; 2])> {
    let (stream, peer) = listener.accept().await?;
    let local = stream.local_addr()?;
    Ok((stream, [plain(peer), plain(local)]))
}

/// `/echo` gives the body back, trailers and all; `/grpc` too, with a gRPC
/// status behind it; `/slow` takes its time; all say what they saw.
async fn answer(
    request: Request<Incoming>,
    [peer, local]: [SocketAddr; 2],
) -> Result<Response<Body>, Infallible> {
    let host = match request.headers().get(http::header::HOST) {
        Some(host) => host.to_str().unwrap().to_owned(),
        None => request
            .uri()
            .authority()
            .map_or(String::new(), ToString::to_string),
    };
    let response = Response::builder()
        .header("seen-version", format!("{:?}", request.version()))
        .header("seen-host", host)
        .header("seen-peer", peer.to_string())
        .header("seen-local", local.to_string());
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        "/echo" => response.body(request.into_body().boxed()),
        "/grpc" => {
            let trailers = HeaderMap::from_iter([
                (HeaderName::from_static("grpc-status"), "7".parse().unwrap()),
                (
                    HeaderName::from_static("grpc-message"),
                    "not for you".parse().unwrap(),
                ),
            ]);
            response.header("content-type", "application/grpc").body(
                request
                    .into_body()
                    .with_trailers(async move { Some(Ok(trailers)) })
                    .boxed(),
            )
        }
        "/grpc-error" => response
            .header("content-type", "application/grpc")
            .header("grpc-status", "12")
            .body(empty()),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            response.body(full("at last"))
        }
        "/missing" => response.status(StatusCode::NOT_FOUND).body(empty()),
        // hyper would send the body of HTTP/2 all the same.
        _ if request.method() == Method::HEAD => response.header("content-length", 5).body(empty()),
        _ => {
            // An answer before the request's end hides what is wrong with that end.
            let _ = request.into_body().collect().await;
            response.body(full("hello"))
        }
    };
    Ok(response.unwrap())
}

// === impl Client ===

impl Client {
    pub async fn http1(app: &App, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = app.connect(to).await?;
        let (client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(client))
    }

    pub async fn http2(app: &App, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = app.connect(to).await?;
        let io = TokioIo::new(stream);
        let (client, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Self::Http2(client))
    }

    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, path, &[], empty()).await
    }

    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Answer> {
        self.send(Method::POST, path, &[], full(body)).await
    }

    /// All requests are for `shop.example`, a name only the applications know.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = match self {
            Self::Http1(client) => {
                client.ready().await?;
                let request = request.uri(path).header("host", "shop.example:81");
                client.send_request(request.body(body)?).await?
            }
            Self::Http2(client) => {
                client.ready().await?;
                let request = request.uri(format!("http://shop.example:81{path}"));
                client.send_request(request.body(body)?).await?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        Ok(Answer {
            status: head.status,
            version: head.version,
            headers: head.headers,
            trailers: body.trailers().cloned(),
            body: body.to_bytes(),
        })
    }

    /// For requests at the same time; `None` over HTTP/1.1.
    pub fn another(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(client) => Some(Self::Http2(client.clone())),
        }
    }
}

// === impl Answer ===

impl Answer {
    pub fn seen(&self) -> Seen {
        let field = |name: &str| match self.headers.get(name) {
            Some(value) => value.to_str().unwrap().to_owned(),
            None => panic!("this answer is not from the application: {self:?}"),
        };
        Seen {
            version: field("seen-version"),
            host: field("seen-host"),
            peer: field("seen-peer").parse().unwrap(),
            local: field("seen-local").parse().unwrap(),
        }
    }
}
