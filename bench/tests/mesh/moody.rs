//! A server that answers as it is told to, and counts who asked.

use super::app::App;
use super::http::{Body, full};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it is told, and what it was asked.
#[derive(Default)]
pub struct Mood {
    /// 0: 200.
    status: AtomicU16,
    grpc_status: AtomicU16,
    /// Milliseconds before it answers.
    head_after: AtomicU64,
    /// And before its body.
    body_after: AtomicU64,
    headers: Mutex<HeaderMap>,
    asked: AtomicU64,
    last: Mutex<Option<Asked>>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    pub uri: http::Uri,
    pub headers: HeaderMap,
    pub body: bytes::Bytes,
}

pub struct Moody(Arc<Mood>);

// === impl Moody ===

impl Moody {
    /// Serves HTTP/1.1 and nothing else.
    pub fn http1(app: &App, port: u16) -> Self {
        let mood = Arc::new(Mood::default());
        let (listener, told) = (app.listen(port), mood.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                let service = service_fn(move |request| answer(told.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self(mood)
    }

    /// Serves HTTP/2 with prior knowledge and nothing else.
    pub fn http2(app: &App, port: u16) -> Self {
        let mood = Arc::new(Mood::default());
        let (listener, told) = (app.listen(port), mood.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                let service = service_fn(move |request| answer(told.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self(mood)
    }

    pub fn turn(&self, status: u16) {
        self.0.status.store(status, Ordering::SeqCst);
    }

    /// To requests in gRPC; 0 goes into trailers as any other.
    pub fn turn_grpc(&self, status: u16) {
        self.0.grpc_status.store(status, Ordering::SeqCst);
    }

    pub fn turn_slow(&self, head: Duration, body: Duration) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        self.0.head_after.store(millis(head), Ordering::SeqCst);
        self.0.body_after.store(millis(body), Ordering::SeqCst);
    }

    /// Headers of its answers from now on.
    pub fn say(&self, headers: &[(&'static str, &'static str)]) {
        let pairs = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        *self.0.headers.lock().unwrap() = pairs.collect();
    }

    pub fn asked(&self) -> u64 {
        self.0.asked.load(Ordering::SeqCst)
    }

    pub fn last(&self) -> Asked {
        self.0.last.lock().unwrap().clone().expect("it was asked")
    }
}

async fn answer(mood: Arc<Mood>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    mood.asked.fetch_add(1, Ordering::SeqCst);
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|all| all.to_bytes());
    let grpc = head
        .headers
        .get("content-type")
        .is_some_and(|kind| kind == "application/grpc");
    *mood.last.lock().unwrap() = Some(Asked {
        uri: head.uri,
        headers: head.headers,
        body: body.unwrap_or_default(),
    });
    let pause = Duration::from_millis(mood.head_after.load(Ordering::SeqCst));
    tokio::time::sleep(pause).await;
    let status = match mood.status.load(Ordering::SeqCst) {
        0 => StatusCode::OK,
        status => StatusCode::from_u16(status).unwrap(),
    };
    let pause = Duration::from_millis(mood.body_after.load(Ordering::SeqCst));
    let body = full("moody");
    let body = if pause.is_zero() {
        body
    } else {
        let frames = futures_util::stream::once(async move {
            tokio::time::sleep(pause).await;
            Ok(http_body::Frame::data(bytes::Bytes::from_static(b"moody")))
        });
        http_body_util::StreamBody::new(frames).boxed()
    };
    let body = if grpc {
        let code = HeaderValue::from(mood.grpc_status.load(Ordering::SeqCst));
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code)]);
        body.with_trailers(async move { Some(Ok(trailers)) })
            .boxed()
    } else {
        body
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.extend(mood.headers.lock().unwrap().clone());
    if grpc {
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    }
    Ok(response)
}
